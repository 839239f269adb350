"""The paper's stages planned over many TPU slices: the smallest that hold them, and how their traffic grows.

    python -m benchmarks.slices smallest [--stages imagen_sr256 …] [--chips v5e …] [--batches 2048 256]
    python -m benchmarks.slices scaling  [--stages imagen_sr256 …]

`smallest` tries the slices of each kind of chip from one chip upwards, with ever smaller microbatches, until the stage
fits; every microbatch that does not fit costs a compilation too. `scaling` keeps the rows of a chip and adds chips.
Needs the TPU compiler (extra `plan`), minutes a line and no TPU. Prints one line of a Markdown table a plan.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from imagen_jax.cost.topologies import GENERATIONS

STAGES = ("imagen_base", "imagen_sr256", "imagen_sr1024")
ROWS = (8, 2, 1)
# Slices of v4 by their chips, and rows a chip as in the paper: batch 2048 on 256 chips, and on 128.
SCALING_CHIPS = (8, 64, 256, 1024)
SCALING_ROWS = {"imagen_base": 8, "imagen_sr256": 16, "imagen_sr1024": 16}


def plan(stage: str, topology: str, batch: int, *flags: str) -> dict[str, Any]:
    """One plan, in a process of its own: what it compiled leaves memory with it."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "plan.json"
        command = [sys.executable, "-m", "imagen_jax.main", "plan", f"--gin_file=configs/experiments/{stage}.gin"]
        given = [f"--topology={topology}", f"--global_batch_size={batch}", f"--json={path}", *flags]
        done = subprocess.run([*command, *given], capture_output=True, text=True)
        if not path.exists():
            raise SystemExit(f"{stage} on {topology}: {done.stderr}")
        return json.loads(path.read_text())


def smallest(stage: str, kind: str, batch: int) -> dict[str, Any] | None:
    """The plan of the smallest slice of one kind of chip that fits."""
    _, cores, shapes, _ = GENERATIONS[kind]
    for chips in shapes:
        for rows in ROWS:
            if batch % (rows * chips):
                continue
            microbatches = batch // (rows * chips)
            mesh = [f"--gin.MeshConfig.fsdp={min(8, chips)}", f"--gin.TrainConfig.accumulate_steps={microbatches}"]
            found = plan(stage, f"{kind}-{cores * chips}", batch, *mesh)
            if found["fits"]:
                return found
            print(
                f"{stage} on {found['topology']}, {rows} rows: {found['peak_hbm_gib']:.1f} of "
                f"{found['hbm_limit_gib']:.2f} GiB",
                file=sys.stderr,
            )
            if found["state_gib"] > 0.7 * found["hbm_limit_gib"]:
                break  # Beside the state there are gradients: fewer rows will not help.
    return None


def line(found: dict[str, Any]) -> str:
    """A plan as a row of a Markdown table."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in found["mesh"].items() if size > 1) or "one device"
    sums = {kind: sum(axes.values()) / 2**20 for kind, axes in found["collective_bytes"].items()}
    traffic = ", ".join(f"{kind} {size:,.0f}" for kind, size in sums.items()) or "none"
    times, mfu = found["step_time_s"], found["roofline_mfu"]
    cells = (
        found["stage"],
        found["topology"],
        mesh,
        f"{found['batch_size']}",
        f"{found['accumulate_steps']} x {found['per_device_batch']}",
        f"{found['peak_hbm_gib']:.1f} of {found['hbm_limit_gib']:.2f}",
        f"{found['hardware_flops'] / found['model_flops']:.2f}",
        traffic,
        f"{found['largest_collective_bytes'].get('all-gather', 0) / 2**20:,.0f}",
        f"{found['ici_bytes_sent'] / 2**30:.2f}",
        f"{times['overlap']:.3g} to {times['no_overlap']:.3g}",
        f"{mfu['overlap']:.0%} to {mfu['no_overlap']:.0%}",
        f"{found['days']['overlap']:.3g} to {found['days']['no_overlap']:.3g}",
        f"{found['compile_s']:.0f}",
    )
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Runs the plans of one of the two tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("table", choices=("smallest", "scaling"))
    parser.add_argument("--stages", nargs="+", default=STAGES)
    parser.add_argument("--chips", nargs="+", default=("v5e", "v5p", "v6e"))
    parser.add_argument("--batches", nargs="+", type=int, default=(2048, 256))
    args = parser.parse_args()
    print(
        "| stage | slice | mesh | batch | microbatches x rows | peak GiB | FLOPs, hardware / model "
        "| collectives MiB | largest gather MiB | sent GiB | step s | MFU | days | compiled s |"
    )
    print("|---" * 14 + "|", flush=True)
    for stage in args.stages:
        if args.table == "scaling":
            for chips in SCALING_CHIPS:
                print(line(plan(stage, f"v4-{2 * chips}", chips * SCALING_ROWS[stage])), flush=True)
            continue
        for kind in args.chips:
            for batch in args.batches:
                found = smallest(stage, kind, batch)
                print(f"| {stage} | no {kind} slice |" if found is None else line(found), flush=True)


if __name__ == "__main__":
    main()
