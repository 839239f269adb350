"""The console command `imagen_jax MODE …`: a registry of the files in commands/.

A mode's libraries load only when it runs, so that `--help` is quick.
"""

import argparse
import importlib
import pkgutil
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

from imagen_jax import commands
from imagen_jax.commands.parts.buckets import bucket_errors
from imagen_jax.commands.parts.command import Command, GinCommand
from imagen_jax.commands.parts.devices import device_errors
from imagen_jax.commands.parts.distributed import add_distributed_flags, join_processes, leave_processes
from imagen_jax.commands.parts.gin_flags import GIN_FLAGS, add_gin_flags, load_gin, split_bindings
from imagen_jax.errors import INTERRUPTED, TERMINATED, UserError, exit_code, printable
from imagen_jax.files import is_unicode
from imagen_jax.streams import leave_at_once


class _Parser(argparse.ArgumentParser):
    """Quotes wrong words as every error does: on one line, without what would steer a terminal."""

    def error(self, message: str) -> NoReturn:
        """Ends the program with argparse's usage and the message."""
        super().error(printable(message))


def find_modes() -> dict[str, Command | GinCommand]:
    """The COMMAND of every file in commands/, by name, in the order of `--help`."""
    files = [found.name for found in pkgutil.iter_modules(commands.__path__) if not found.ispkg]
    modules = [importlib.import_module(f"{commands.__name__}.{name}") for name in files]
    found: list[Command | GinCommand] = [module.COMMAND for module in modules]
    return {mode.name: mode for mode in sorted(found, key=lambda mode: (mode.order, mode.name))}


def build_parser(modes: Mapping[str, Command | GinCommand] | None = None) -> argparse.ArgumentParser:
    """Builds the whole command line; --gin.X=… flags are taken out before it is used.

    Args:
      modes: by name; None: those of `find_modes`.
    """
    parser = _Parser("imagen_jax", description="Train Imagen-style cascades.", allow_abbrev=False)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="MODE")
    for name, mode in (find_modes() if modes is None else modes).items():
        takes_gin = isinstance(mode, GinCommand)
        sub = subparsers.add_parser(
            name,
            help=mode.help,
            description=mode.help[0].upper() + mode.help[1:] + ".",
            epilog=GIN_FLAGS if takes_gin else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if takes_gin:
            add_gin_flags(sub)
        mode.add_flags(sub)
        if isinstance(mode, GinCommand) and mode.several_hosts:
            add_distributed_flags(sub)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one mode.

    Args:
      argv: the words of the command line; None: those of this process, which then may end here.

    Returns:
      The exit code: 0, or, told on stderr in plain words, 2 after an error of the user's, 130 after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    code = exit_code(lambda: _run(arguments))
    leave_processes(code)
    if argv is None and code in (INTERRUPTED, TERMINATED):
        # A compilation goes on in a thread of jax's, which crashes when Python, on its way out, takes jax down.
        leave_at_once(code)
    return code


def _run(arguments: Sequence[str]) -> None:
    modes = find_modes()
    for word in arguments:
        if not is_unicode(word):
            raise UserError(f"the argument {ascii(word)} is not UTF-8 text; write it in UTF-8")
    named = modes.get(arguments[0]) if arguments else None
    verbatim = isinstance(named, Command) and named.verbatim
    bindings, words = ([], list(arguments)) if verbatim else split_bindings(arguments)
    for word in words:
        # argparse would drop the -- and take the flag's value for an empty list.
        if word.startswith("--") and word.endswith("=--") and not verbatim:
            raise UserError(f"{word} has no value; write {word.removesuffix('--')}VALUE, or leave the flag out")
    parser = build_parser(modes)
    args = parser.parse_args(words)
    mode = modes[args.command]
    if isinstance(mode, Command) and bindings:
        parser.error(f"{mode.name} takes no --gin flags")
    with device_errors(), bucket_errors():
        if isinstance(mode, Command):
            mode.run(args)
            return
        if mode.several_hosts:
            join_processes(args)
        config, operative = load_gin(mode, args, bindings)
        mode.run(args, config, operative)


if __name__ == "__main__":
    sys.exit(main())
