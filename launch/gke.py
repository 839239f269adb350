"""Runs a pipeline on Google Kubernetes Engine: each phase a JobSet, queued by Kueue, of one or several TPU slices.

    imagen_jax script launch/gke.py --config launch/configs/gke_v5e.py --config.image=IMAGE \\
      --config.out_dir=gs://B/run [--dry_run] [--action=status|logs|cancel]

kubectl must know the cluster. Interrupted, it leaves the JobSets at work; the same command goes on with those that are
next. docs/launch.md tells more.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))

from launch.jobs import command_line, remote  # noqa: E402
from launch.jobs.gke_job import GkeJob  # noqa: E402
from launch.jobs.job import Job  # noqa: E402
from launch.jobs.phases import Phase  # noqa: E402
from launch.jobs.runner import Runner  # noqa: E402

POLL_S = 30


def launch(configs: Sequence[Mapping[str, Any]], action: str, dry_run: bool, runner: Runner | None = None) -> int:
    """Runs pipelines side by side, or asks about them.

    Args:
      configs: of the pipelines.
      action: one of `command_line.ACTIONS`.
      dry_run: prints commands and YAML, and calls nothing.
      runner: calls kubectl; None: the one of this machine.

    Returns:
      0, or 1 if a phase failed.
    """
    caller = runner or Runner()

    def make(config: Mapping[str, Any], phase: Phase) -> Job:
        return GkeJob(config, phase, remote.restarts_of(config), caller)

    return remote.launch(configs, action, dry_run, make, POLL_S)


if __name__ == "__main__":
    command_line.main(launch, "launch/configs/gke_v5e.py")
