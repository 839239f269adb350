"""Time of a sweep over eight pairs of guidance weights beside the time of drawing its images alone.

    python -m benchmarks.sweep_cost --run_dir DIR [--rounds 3] [--prompts 64]

DIR is a trained cascade of stages "base" and "sr". Both draw the same images in one process after everything is
compiled: the sweep with its files, locks, scores and tables; the sampling alone with `Cascade.sample`, four times the
base stage and eight times the stage above, from images in memory, and nothing written or scored.
"""

import argparse
import dataclasses
import statistics
import tempfile
import time

from imagen_jax import gin_config
from imagen_jax.evals.sweeps.prompts import ShapesPrompts
from imagen_jax.evals.sweeps.sweep import SweepConfig, run_sweep
from imagen_jax.sampling.cascade import Cascade
from imagen_jax.sampling.images import from_uint8

CONFIG = "configs/experiments/demo_sweep.gin"


def alone(config: SweepConfig, cascade: Cascade) -> None:
    """Draws the sweep's images and does nothing else."""
    prompts = config.prompts.read()
    base, above = cascade.only("base", "base"), cascade.only("sr", "sr")
    for low in config.grids[0].guidance_weight:
        one = base.configure(lambda _, own, w=low: dataclasses.replace(own, guidance_weight=w))
        (images,) = one.sample(prompts.prompts, seed=prompts.seeds, batch_size=config.batch_size)
        for high in config.grids[1].guidance_weight:
            two = above.configure(lambda _, own, w=high: dataclasses.replace(own, guidance_weight=w))
            two.sample(prompts.prompts, seed=prompts.seeds, low_res=from_uint8(images), batch_size=config.batch_size)


def swept(config: SweepConfig, cascade: Cascade) -> None:
    """Runs the sweep in a new folder."""
    with tempfile.TemporaryDirectory() as folder:
        run_sweep(dataclasses.replace(config, output_dir=f"{folder}/sweep"), cascade=cascade)


def seconds(work, *args) -> tuple[float, float]:
    """Time of a call, and processor time, which other programs on the machine disturb less."""
    start, start_cpu = time.perf_counter(), time.process_time()
    work(*args)
    return time.perf_counter() - start, time.process_time() - start_cpu


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run_dir", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=64)
    args = parser.parse_args()
    config = gin_config.load(SweepConfig, [CONFIG], [f"RUN_DIR='{args.run_dir}'", "OUTPUT_DIR='unused'"])
    prompts = ShapesPrompts(num_single=args.prompts, num_two=0, num_count=0, num_heldout=0)
    config = dataclasses.replace(config, prompts=prompts)
    cascade = Cascade.load(args.run_dir)
    # Every weight once: one of 1 draws by a program of its own.
    alone(config, cascade)
    swept(config, cascade)
    times: dict[str, list[tuple[float, float]]] = {"sampling alone": [], "sweep": []}
    for _ in range(args.rounds):
        times["sampling alone"].append(seconds(alone, config, cascade))
        times["sweep"].append(seconds(swept, config, cascade))
    for place, kind in enumerate(("seconds", "processor seconds")):
        by_name = {name: [one[place] for one in found] for name, found in times.items()}
        for name, found in by_name.items():
            print(
                f"{kind}, {name}: median {statistics.median(found):.1f} of {', '.join(f'{one:.1f}' for one in found)}"
            )
        ratios = [a / b for a, b in zip(by_name["sweep"], by_name["sampling alone"], strict=True)]
        print(f"{kind}, ratio: median {statistics.median(ratios):.3f} of {', '.join(f'{one:.3f}' for one in ratios)}")
