"""Pipelines whose jobs run elsewhere: shown, run to their end, asked about, or ended."""

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from imagen_jax.files import as_path, make_dirs, read_json, write_json
from launch.jobs.job import Job, Restarts, State, Supervisor
from launch.jobs.phases import Phase, read_phases

Jobs = Mapping[Phase, Job]


def restarts_of(config: Mapping[str, Any]) -> Restarts:
    """The restart policy of a config."""
    return Restarts(max_restarts=config["max_restarts"])


def jobs_of(config: Mapping[str, Any], make: Callable[[Phase], Job]) -> dict[Phase, Job]:
    """The jobs of a config's phases, by phase."""
    return {phase: make(phase) for phase in read_phases(config)}


# Fields that are a user's to set.
NEEDED = ("project", "out_dir", "corpus_dir", "t5_path", "vocabulary", "package", "image", "log_dir")


def for_show(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A config for a dry run: needed fields that are still empty stand in capitals, and are said."""
    filled = copy.deepcopy(config)
    empty = [name for name in NEEDED if name in config and config[name] == ""]
    if "package" in config and "image" in empty:  # One of the two is enough.
        empty.remove("image")
    for name in empty:
        filled[name] = name.upper()  # type: ignore[index]
    if empty:
        print(f"# still empty in the config: {', '.join(empty)}\n")
    return filled


def show(jobs: Jobs) -> None:
    """Prints the exact commands and files of every phase."""
    for phase, job in jobs.items():
        after = f", after {', '.join(phase.after)}" if phase.after else ""
        print(f"# {phase.name}{after}\n{job.preview()}\n", flush=True)


def ask(jobs: Jobs, action: str) -> int:
    """Carries out `status`, `logs` or `cancel` for every job.

    Returns:
      0; for `status` 1 if a job failed.
    """
    code = 0
    for phase, job in jobs.items():
        if action == "cancel":
            job.cancel()
            print(f"{phase.name}: ended", flush=True)
            continue
        status = job.status()
        code = max(code, int(status.state is State.FAILED))
        print(f"{phase.name}: {status}", flush=True)
        if action == "logs" and status.state is not State.ABSENT:
            print(job.logs(), flush=True)
    return code if action == "status" else 0


class Done:
    """The names of a pipeline's finished phases, kept in its OUT_DIR: machines are gone by then, and with them what
    they could tell.

    Args:
      out_dir: of the pipeline; a folder or a bucket.
    """

    def __init__(self, out_dir: str):
        self._path = as_path(out_dir) / "launch" / "done.json"

    def names(self) -> list[str]:
        """Phases that are done."""
        return [str(name) for name in read_json(self._path)] if self._path.exists() else []

    def add(self, name: str) -> None:
        """Keeps one more."""
        make_dirs(self._path.parent)
        write_json(self._path, [*self.names(), name])


def launch(
    configs: Sequence[Mapping[str, Any]],
    action: str,
    dry_run: bool,
    make: Callable[[Mapping[str, Any], Phase], Job],
    poll_s: float,
) -> int:
    """Runs pipelines side by side, or asks about them.

    Args:
      configs: of the pipelines.
      make: the job of a config's phase.
      action, dry_run, poll_s: as for `act`.

    Returns:
      The exit code.
    """
    chosen = [for_show(config) if dry_run else config for config in configs]
    pipelines = [(config, jobs_of(config, functools.partial(make, config))) for config in chosen]
    return act(pipelines, action, dry_run, poll_s)


def act(pipelines: Sequence[tuple[Mapping[str, Any], Jobs]], action: str, dry_run: bool, poll_s: float) -> int:
    """Does what a command line asks for.

    Args:
      pipelines: config and jobs of each.
      action: one of `command_line.ACTIONS`.
      dry_run: prints commands and files, and calls nothing.
      poll_s: seconds between two looks.

    Returns:
      The exit code.
    """
    if dry_run:
        for _, jobs in pipelines:
            show(jobs)
        return 0
    if action == "run":
        return run_to_end(pipelines, poll_s)
    return max(ask(jobs, action) for _, jobs in pipelines)


def run_to_end(pipelines: Sequence[tuple[Mapping[str, Any], Jobs]], poll_s: float) -> int:
    """Runs pipelines side by side.

    Args:
      pipelines: config and jobs of each.
      poll_s: seconds between two looks.

    Returns:
      0, or 1 if a phase failed.
    """
    supervisors = []
    for config, jobs in pipelines:
        done = Done(config["out_dir"])
        supervisors.append(Supervisor(jobs, title=config["name"], done=done.names(), mark_done=done.add))
    return Supervisor.run_all(supervisors, poll_s)
