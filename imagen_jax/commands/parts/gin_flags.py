"""Flags of the modes that gin files configure, and the config that they describe; gin loads only when one runs."""

import argparse
from collections.abc import Sequence
from typing import Any

from imagen_jax.checks import with_home
from imagen_jax.commands.parts.command import GinCommand
from imagen_jax.commands.parts.paths import user_path
from imagen_jax.errors import UserError

GIN_FLAGS = """\
  --gin.NAME=VALUE      sets the macro NAME of the gin files; repeatable
  --gin.Class.parameter=VALUE
                        sets one parameter; a VALUE that is plain text or a path needs no quotes
"""


def add_gin_flags(sub: argparse.ArgumentParser) -> None:
    """Adds --gin_file and --gin_search_paths."""
    sub.add_argument(
        "--gin_file",
        type=user_path,
        action="append",
        default=[],
        metavar="FILE",
        help="gin file; repeatable, later ones win",
    )
    sub.add_argument(
        "--gin_search_paths",
        action="append",
        default=[],
        metavar="DIR[,DIR]",
        help="more folders in which gin files and their includes are looked for; repeatable",
    )


def split_bindings(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits command-line words into gin bindings (from --gin.X=VALUE) and the rest, in order.

    Raises:
      UserError: a --gin.X has no value.
    """
    if not any(word.startswith("--gin.") for word in arguments):
        return [], list(arguments)
    from imagen_jax.gin_config import split_gin_flags

    return split_gin_flags(arguments)


def load_gin(command: GinCommand, args: argparse.Namespace, bindings: Sequence[str]) -> tuple[Any, str]:
    """Loads the config that a mode's flags describe.

    Args:
      command: the mode.
      args: what the flags of `add_gin_flags` gave.
      bindings: from `split_bindings`.

    Returns:
      The config, and the operative config as gin text.

    Raises:
      UserError: no gin file is named, or see `gin_config.load_with_operative`.
    """
    if not args.gin_file:
        raise UserError(f"{command.name} needs a configuration; add --gin_file=FILE (see configs/experiments/)")
    from imagen_jax import gin_config

    search_paths = [
        with_home("--gin_search_paths", folder) for word in args.gin_search_paths for folder in word.split(",")
    ]
    return gin_config.load_with_operative(
        command.config_class(), args.gin_file, bindings, search_paths, command.open_paths
    )
