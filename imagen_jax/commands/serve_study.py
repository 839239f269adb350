"""`imagen_jax serve_study`: the page of a study for several raters at once."""

import argparse

from imagen_jax.commands.parts.command import Command
from imagen_jax.commands.parts.paths import user_path


def add_flags(sub: argparse.ArgumentParser) -> None:
    """Adds the study and the address."""
    sub.add_argument("--study", type=user_path, required=True, metavar="DIR", help="folder that build_study made")
    sub.add_argument(
        "--host", default="127.0.0.1", metavar="NAME", help="address to listen on (127.0.0.1: this machine alone)"
    )
    sub.add_argument("--port", type=int, default=8000, metavar="N", help="0 takes a free one (8000)")


def run(args: argparse.Namespace) -> None:
    """Serves until it is stopped."""
    from imagen_jax.ratings.server import serve

    serve(args.study, args.host, args.port)


COMMAND = Command(
    name="serve_study",
    help="serve the page of a study to raters, and gather their answers",
    run=run,
    add_flags=add_flags,
    order=13,
)
