"""`imagen_jax upgrade_run`: checkpoints of an older version to ones that load."""

import argparse

from imagen_jax.commands.parts.command import Command
from imagen_jax.commands.parts.paths import user_path


def add_flags(sub: argparse.ArgumentParser) -> None:
    """Adds the flags that name the run and its vocabulary."""
    sub.add_argument(
        "--run_dir",
        type=user_path,
        required=True,
        metavar="DIR",
        help="cascade directory, or run directory of one stage",
    )
    sub.add_argument(
        "--vocabulary",
        type=user_path,
        metavar="PATH",
        help="vocabulary of the training; default: where the run's config says",
    )


def run(args: argparse.Namespace) -> None:
    """Writes the records that are missing."""
    from imagen_jax.checkpoints.upgrade import upgrade_run

    done = upgrade_run(args.run_dir, args.vocabulary)
    for path in done:
        print(f"{path}: upgraded")
    if not done:
        print(f"{args.run_dir}: every checkpoint has its record already")


COMMAND = Command(
    name="upgrade_run",
    help="give the checkpoints of an older version the record that loading reads",
    run=run,
    add_flags=add_flags,
    order=20,
)
