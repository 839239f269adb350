"""Command lines of the launchers: a config file by its place, settings of it, and what to do."""

import functools
import os
import runpy
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from imagen_jax.checks import check_path, with_home
from imagen_jax.commands.parts.buckets import bucket_errors
from imagen_jax.errors import UserError, exit_code
from imagen_jax.files import shipped_file
from launch.jobs.job import TryLaterError

ACTIONS = ("run", "status", "logs", "cancel")

CONFIG = config_flags.DEFINE_config_file("config", None, "what to run, and where; e.g. launch/configs/demo.py")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "print the exact commands and files, and call nothing")
ACTION = flags.DEFINE_enum("action", "run", ACTIONS, "run the pipeline, or ask about it, show its logs, or end it")


def parse_flags(arguments: Sequence[str], example: str) -> list[str]:
    """absl's parsing; what it or a config refuses ends the program as other errors of people do.

    Args:
      arguments: the command line.
      example: a config of this launcher, for errors.
    """
    rest: list[str] = []
    code = exit_code(lambda: rest.extend(_parse(arguments, example)))
    if code:
        sys.exit(code)
    return rest


def _parse(arguments: Sequence[str], example: str) -> list[str]:
    words = list(arguments)
    for number, word in enumerate(words[1:], 1):
        name, equals, value = word.partition("=")
        if name in ("--config", "-config") and equals:
            words[number] = f"{name}={_config_file(value, example)}"
        elif words[number - 1] in ("--config", "-config"):
            words[number] = _config_file(word, example)
    try:
        rest = flags.FLAGS(words)
    except (AttributeError, KeyError) as error:
        setting = str(error).replace("\\n", "\n").replace("\\'", "").strip("\"'")
        raise UserError(f"the config has no setting {setting}") from error
    except (TypeError, ValueError, flags.Error) as error:
        raise UserError(f"{error}; see --help") from error
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]}; settings are given as --config.NAME=VALUE")
    if CONFIG.value is None:
        raise UserError(f"--config is missing; write --config {example}")
    if CONFIG.value.out_dir != "" or not DRY_RUN.value:  # A dry run shows what is still to be set.
        check_path("--config.out_dir", CONFIG.value.out_dir)
        CONFIG.value.out_dir = with_home("--config.out_dir", CONFIG.value.out_dir)
    return rest


def _config_file(name: str, example: str) -> str:
    """A config's file, once it is sure that it makes a config.

    Raises:
      UserError: there is no such file, or it fails; it is a program, which may fail in any way.
    """
    path = shipped_file(name)
    if not os.path.isfile(path):
        raise UserError(f"--config={name}: there is no such file; give a pipeline, such as {example}")
    try:
        made = runpy.run_path(path)["get_config"]()
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
    else:
        if isinstance(made, ConfigDict) and "out_dir" in made:
            return path
        problem = "its get_config() gives no ConfigDict with out_dir"
    raise UserError(f"--config={name} makes no config ({problem}); write it as {example} is")


def main(launch: Callable[[Sequence[Any], str, bool], int], example: str) -> None:
    """The whole program of a launcher.

    Args:
      launch: called with configs, an action and whether to show only; returns an exit code.
      example: a config of this launcher.
    """

    def run(arguments: list[str]) -> None:
        del arguments  # Flags alone.
        codes: list[int] = []

        def program() -> None:
            try:
                with bucket_errors():
                    codes.append(launch([CONFIG.value], ACTION.value, DRY_RUN.value))
            except TryLaterError as error:
                raise UserError(f"{error}; give the same command again") from error

        code = exit_code(program)
        sys.exit(code or codes[0])

    app.run(run, flags_parser=functools.partial(parse_flags, example=example))
