"""Runs a pipeline on this machine, phase after phase, and measures what each costs.

    imagen_jax script launch/local.py --config launch/configs/demo.py [--config.out_dir=runs/mine]

A config is found by its place in the repository from any folder. It holds `out_dir` and `phases`, pairs of a name and a
command. In a command, {field} stands for that field of the config; `python` and `imagen_jax` are those of this
environment, and leading NAME=VALUE words are set in the environment of that command alone, as in a shell. Every phase
is run again on a second start; those whose mode resumes, as training does, go on from what they find. The phase named
"report" is not measured: it reads what was.

With `num_processes`, modes that take several processes run as so many, joined by jax. A phase that ends with the retry
code or by a signal is started again, `max_restarts` times at most. With `min_processes`, a process that does not come
back is left out, and so few may go on.
"""

import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from imagen_jax.errors import UserError
from imagen_jax.files import AnyPath, as_path, make_dirs, read_json, write_json

# Configs import their neighbours as launch.configs, wherever this folder lies.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from launch.jobs import command_line  # noqa: E402
from launch.jobs.job import Restarts, Supervisor  # noqa: E402
from launch.jobs.local_job import LocalJob, takes_several_hosts  # noqa: E402
from launch.jobs.phases import REPORT, Phase, read_phases  # noqa: E402

SAMPLE_EVERY_S = 0.5


def run_phase(phase: Phase, num_processes: int, restarts: Restarts, fewest: int = 0) -> tuple[int, float, int]:
    """Runs the commands of a phase with their output shown live.

    Args:
      num_processes, restarts, fewest: of each command's `LocalJob`.

    Returns:
      exit code, wall seconds, and the largest sum of resident bytes over its process trees.
    """
    start, peak = time.monotonic(), 0
    for command in phase.commands:
        number = num_processes if takes_several_hosts(command) else 1
        job = LocalJob(phase.name, command, number, restarts, fewest)
        try:
            one = Phase(name=phase.name, commands=(command,))
            Supervisor.run_all([Supervisor({one: job}, progress=False)], SAMPLE_EVERY_S)
        finally:  # Where this launcher is interrupted, the phase must not run on alone.
            job.cancel()
        peak = max(peak, job.peak_bytes)
        if job.code:
            return job.code, time.monotonic() - start, peak
    return 0, time.monotonic() - start, peak


def alignment(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """The fractions of eval.json at its best guidance weight, and the unconditional one."""
    best = float(evaluation["best_guidance_weight"])
    by_weight = {float(weight): scores for weight, scores in evaluation["alignment"].items()}
    return {**by_weight[best], "unconditional_both": evaluation["unconditional_both"]}


def write_metrics(out_dir: AnyPath, seconds: Mapping[str, float], seconds_total: float, peak_bytes: int) -> None:
    """Writes out_dir/metrics.json: seconds of each phase and in all, peak memory in 1e9 bytes, alignment."""
    metrics: dict[str, Any] = {
        "seconds_total": round(seconds_total, 1),
        "peak_memory_gb": round(peak_bytes / 1e9, 2),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
    }
    evaluation = out_dir / "eval.json"
    if evaluation.exists():
        metrics["alignment"] = alignment(read_json(evaluation))
    write_json(out_dir / "metrics.json", metrics, indent=2, end="\n")


def run(config: Mapping[str, Any]) -> int:
    """Runs every phase in order; stops at the first that fails.

    Returns:
      0, or the exit code of the phase that failed.
    """
    out_dir = as_path(config["out_dir"])
    phases = read_phases(config)
    make_dirs(out_dir)
    commands = [{"phase": phase.name, "command": typed(phase)} for phase in phases]
    write_json(out_dir / "commands.json", commands, indent=2, end="\n")
    seconds: dict[str, float] = {}
    start, peak = time.monotonic(), 0
    restarts = Restarts(max_restarts=config.get("max_restarts", 0))
    for number, phase in enumerate(phases, 1):
        heading, name = f"[{number}/{len(phases)}] {phase.name}", phase.name
        print(f"\n{heading}: {typed(phase)}", flush=True)
        if name == REPORT:
            write_metrics(out_dir, seconds, time.monotonic() - start, peak)
        code, took, phase_peak = run_phase(
            phase, config.get("num_processes", 1), restarts, config.get("min_processes", 0)
        )
        peak = max(peak, phase_peak)
        if code:
            print(f"error: phase {name} failed with exit code {code} after {took:.0f} s", file=sys.stderr)
            return code if code > 0 else 128 - code  # A negative code is the signal that ended it.
        if name != REPORT:
            seconds[name] = took
        print(f"{heading}: {took:.0f} s, {phase_peak / 1e9:.2f} GB", flush=True)
    total = time.monotonic() - start
    write_metrics(out_dir, seconds, total, peak)
    print(f"\ndone in {total:.0f} s, at most {peak / 1e9:.2f} GB of memory; see {out_dir}", flush=True)
    return 0


def typed(phase: Phase) -> str:
    """A phase as one would type it."""
    return " && ".join(shlex.join(command) for command in phase.commands)


def launch(configs: Sequence[Mapping[str, Any]], action: str, dry_run: bool) -> int:
    """Runs pipelines one after the other, or shows their commands.

    Returns:
      0, or the exit code of the first that failed.
    """
    if action != "run":
        raise UserError(f"--action={action} is for machines elsewhere; here the launcher and its phases end together")
    for config in configs:
        if dry_run:
            print("\n".join(phase.line() for phase in read_phases(config)))
        elif code := run(config):
            return code
    return 0


if __name__ == "__main__":
    command_line.main(launch, "launch/configs/demo.py")
