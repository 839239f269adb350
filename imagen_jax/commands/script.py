"""`imagen_jax script`: a Python program that came with the package, by its place in the repository."""

import argparse
import os
import sys
from pathlib import Path

from imagen_jax.commands.parts.command import Command
from imagen_jax.errors import UserError

# Folders of programs that people start; their helpers lie deeper.
_FOLDERS = ("data", "docs", "launch")


def add_flags(sub: argparse.ArgumentParser) -> None:
    """Adds the script and its own words."""
    sub.add_argument("script", metavar="FILE", help="as in the repository, e.g. data/build_shapes.py")
    sub.add_argument("words", nargs=argparse.REMAINDER, metavar="…", help="what the script takes; it has --help")


def run(args: argparse.Namespace) -> None:
    """Becomes the script, so that its signals and exit code are those of this command."""
    from imagen_jax.files import shipped_root

    root = Path(shipped_root())
    scripts = sorted(path.relative_to(root).as_posix() for name in _FOLDERS for path in (root / name).glob("*.py"))
    if args.script not in scripts:
        raise UserError(f"there is no script {args.script!r}; choose one of {', '.join(scripts)}")
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, str(root / args.script), *args.words])


COMMAND = Command(
    name="script",
    help="run a script that came with the package, such as launch/local.py, from any folder",
    run=run,
    add_flags=add_flags,
    order=21,
    verbatim=True,
)
