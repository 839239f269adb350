"""`imagen_jax report`: one page about a run."""

import argparse

from imagen_jax.commands.parts.command import Command
from imagen_jax.commands.parts.paths import user_path


def add_flags(sub: argparse.ArgumentParser) -> None:
    """Adds --run_dir."""
    sub.add_argument(
        "--run_dir", type=user_path, required=True, metavar="DIR", help="cascade run directory, e.g. runs/demo"
    )


def run(args: argparse.Namespace) -> None:
    """Writes the page and prints its path."""
    from imagen_jax.report.page import write_report

    print(write_report(args.run_dir))


COMMAND = Command(
    name="report",
    help="write one page with the curves, samples and figures of a run",
    run=run,
    add_flags=add_flags,
    order=9,
)
