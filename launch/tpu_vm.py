"""Runs a pipeline on Cloud TPU machines: each phase on a queued resource of its own, with those that may side by side.

    imagen_jax script launch/tpu_vm.py --config launch/configs/tpu_v4.py --config.project=P \\
      --config.out_dir=gs://B/run --config.package=gs://B/imagen_jax [--dry_run] [--action=status|logs|cancel]

It asks for the machines, waits for each phase, asks for new machines where they were preempted, and deletes them at
the end. Interrupted, it leaves the machines at work; the same command goes on watching. docs/launch.md tells more.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))

from launch.jobs import command_line, remote  # noqa: E402
from launch.jobs.job import Job  # noqa: E402
from launch.jobs.phases import Phase  # noqa: E402
from launch.jobs.runner import Runner  # noqa: E402
from launch.jobs.tpu_job import TpuJob  # noqa: E402

POLL_S = 30


def launch(configs: Sequence[Mapping[str, Any]], action: str, dry_run: bool, runner: Runner | None = None) -> int:
    """Runs pipelines side by side, or asks about them.

    Args:
      configs: of the pipelines.
      action: one of `command_line.ACTIONS`.
      dry_run: prints commands and files, and calls nothing.
      runner: calls gcloud; None: the one of this machine.

    Returns:
      0, or 1 if a phase failed.
    """
    caller = runner or Runner()

    def make(config: Mapping[str, Any], phase: Phase) -> Job:
        return TpuJob(config, phase, remote.restarts_of(config), caller)

    return remote.launch(configs, action, dry_run, make, POLL_S)


if __name__ == "__main__":
    command_line.main(launch, "launch/configs/tpu_v4.py")
