"""Runs a pipeline under Slurm: submits every phase at once, each to start when those before it are done.

    imagen_jax script launch/slurm.py --config launch/configs/slurm_gpu.py --config.out_dir=/shared/runs/mine \\
      --config.log_dir=/shared/runs/mine/launch [--dry_run] [--action=status|logs|cancel]

It returns when all is in the queue; from there Slurm does the rest. Given again, it submits only what failed or never
was. docs/launch.md tells more.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))

from imagen_jax.errors import UserError  # noqa: E402
from launch.jobs import command_line, remote  # noqa: E402
from launch.jobs.job import State, TryLaterError  # noqa: E402
from launch.jobs.phases import earlier  # noqa: E402
from launch.jobs.runner import Runner  # noqa: E402
from launch.jobs.slurm_job import SlurmJob  # noqa: E402


def submit_all(jobs: remote.Jobs) -> None:
    """Submits every phase that is neither done nor in the queue, to wait for those before it that are not done.

    Raises:
      UserError: Slurm takes one of them not, or not now; those before it are in the queue.
    """
    open_ones: set[str] = set()
    for phase, job in jobs.items():
        status = job.status()
        if status.state is not State.DONE:
            open_ones.add(phase.name)
            if status.state in (State.ABSENT, State.FAILED):
                before = [jobs[one] for one in earlier(phase, list(jobs)) if one.name in open_ones]
                try:
                    job.submit(before)
                except TryLaterError as error:
                    raise UserError(f"{error}; give the same command again") from error
                status = job.status()
        print(f"{phase.name}: {status}", flush=True)


def launch(configs: Sequence[Mapping[str, Any]], action: str, dry_run: bool, runner: Runner | None = None) -> int:
    """Submits pipelines, or asks about them.

    Args:
      configs: of the pipelines.
      action: one of `command_line.ACTIONS`.
      dry_run: prints commands and scripts, and calls nothing.
      runner: calls Slurm's programs; None: those of this machine.

    Returns:
      0; for `status` 1 if a job failed.
    """
    caller, code = runner or Runner(), 0

    def jobs_of(config: Mapping[str, Any]) -> remote.Jobs:
        restarts = remote.restarts_of(config)
        return remote.jobs_of(config, lambda phase: SlurmJob(config, phase, restarts, caller))

    for config in [remote.for_show(config) if dry_run else config for config in configs]:
        jobs = jobs_of(config)
        if action == "run" and not dry_run:
            submit_all(jobs)
        else:
            code = max(code, remote.act([(config, jobs)], action, dry_run, poll_s=0))
    return code


if __name__ == "__main__":
    command_line.main(launch, "launch/configs/slurm_gpu.py")
