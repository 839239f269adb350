"""`imagen_jax status`: a run in ten lines."""

import argparse

from imagen_jax.commands.parts.command import Command
from imagen_jax.commands.parts.paths import user_path


def add_flags(sub: argparse.ArgumentParser) -> None:
    """Adds the run directory, --watch and --poll."""
    sub.add_argument("run_dir", type=user_path, metavar="DIR", help="run directory of a stage, or of a cascade")
    sub.add_argument("--watch", action="store_true", help="tell it again and again, until Ctrl-C")
    sub.add_argument(
        "--poll", type=float, default=10.0, metavar="S", help="seconds between looks (default %(default)g)"
    )


def run(args: argparse.Namespace) -> None:
    """Prints the status once, or until Ctrl-C."""
    from imagen_jax.report.status import status, watch

    if args.watch:
        watch(args.run_dir, args.poll)
    else:
        print(status(args.run_dir))


COMMAND = Command(
    name="status",
    help="how a run is doing, in ten lines",
    run=run,
    add_flags=add_flags,
    order=6,
)
