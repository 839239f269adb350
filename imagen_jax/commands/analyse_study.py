"""`imagen_jax analyse_study`: what raters preferred, as JSON and a page."""

import argparse

from imagen_jax.commands.parts.command import Command
from imagen_jax.commands.parts.paths import user_path


def add_flags(sub: argparse.ArgumentParser) -> None:
    """Adds the study and files of ratings."""
    sub.add_argument("--study", type=user_path, required=True, metavar="DIR", help="folder that build_study made")
    sub.add_argument(
        "--ratings", type=user_path, nargs="*", default=[], metavar="FILE", help="also those that raters downloaded"
    )


def run(args: argparse.Namespace) -> None:
    """Writes ratings.json and the page, and prints its path."""
    from imagen_jax.ratings.analysis import analyse_study

    print(analyse_study(args.study, args.ratings))


COMMAND = Command(
    name="analyse_study",
    help="write preferences, intervals and agreement of a study's raters as JSON and a page",
    run=run,
    add_flags=add_flags,
    order=14,
)
