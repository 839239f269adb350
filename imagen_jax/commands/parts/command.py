"""A mode of the console command, as data: `imagen_jax.main` reads the COMMAND of every file in commands/."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


def add_no_flags(sub: argparse.ArgumentParser) -> None:
    """Leaves the parser of a mode without flags of its own."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """A mode whose flags say everything.

    Args:
      name: the word on the command line, and the file's name.
      help: one line of `imagen_jax --help`, without a full stop.
      run: does the work; imports its libraries inside, so that `--help` stays quick.
      add_flags: adds the mode's flags to its parser.
      order: place in the list of modes, the lowest first; modes of one order stand by name.
      verbatim: its words are for another program, which takes flags of gin itself.
    """

    name: str
    help: str
    run: Callable[[argparse.Namespace], None]
    add_flags: Callable[[argparse.ArgumentParser], None] = add_no_flags
    order: int = 100
    verbatim: bool = False


@dataclass(frozen=True, kw_only=True)
class GinCommand:
    """A mode that gin files configure; it takes --gin_file, --gin_search_paths and --gin.NAME=VALUE.

    Args:
      name, help, add_flags, order: as for `Command`.
      config_class: imports the frozen dataclass that the gin files describe, and returns it.
      run: does the work, given the flags, the config and the operative config (gin text).
      open_paths: value of the macros named …_DIR and …_PATH that are required and not given; None: an error.
      several_hosts: also takes the flags by which several processes join, and joins them before `run`.
    """

    name: str
    help: str
    config_class: Callable[[], type]
    run: Callable[[argparse.Namespace, Any, str], None]
    add_flags: Callable[[argparse.ArgumentParser], None] = add_no_flags
    order: int = 100
    open_paths: str | None = None
    several_hosts: bool = False
