"""Command lines of the launchers: a config file by its place, settings of it, and what to do."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from imagen_jax.errors import UserError, exit_code, one_line, printable
from imagen_jax.files import shipped_file
from launch.jobs.job import TryLaterError

ACTIONS = ("run", "status", "logs", "cancel")

CONFIG = config_flags.DEFINE_config_file("config", None, "what to run, and where; e.g. launch/configs/demo.py")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "print the exact commands and files, and call nothing")
ACTION = flags.DEFINE_enum("action", "run", ACTIONS, "run the pipeline, or ask about it, show its logs, or end it")


def parse_flags(arguments: list[str]) -> list[str]:
    """absl's parsing, with what a config refuses told in one line."""
    words = list(arguments)
    for number, word in enumerate(words[1:], 1):
        name, equals, value = word.partition("=")
        if name in ("--config", "-config") and equals:
            words[number] = f"{name}={shipped_file(value)}"
        elif words[number - 1] in ("--config", "-config"):
            words[number] = shipped_file(word)
    try:
        rest = app.parse_flags_with_usage(words)
        if CONFIG.value is not None:
            CONFIG.value.get("out_dir")  # A config file that could not be read says so only when it is used.
        return rest
    except (AttributeError, KeyError) as error:
        problem = "the config has no setting " + str(error).replace("\\n", "\n").replace("\\'", "").strip("\"'")
    except (OSError, TypeError, ValueError) as error:
        problem = str(error)
    print(f"error: {printable(one_line(problem))} (given: {' '.join(arguments[1:])})", file=sys.stderr)
    sys.exit(2)


def config_of(arguments: Sequence[str], example: str) -> ConfigDict:
    """The config that the command line names.

    Args:
      arguments: what absl left of the command line.
      example: a config of this launcher.
    """
    if len(arguments) > 1:
        raise app.UsageError(f"unexpected argument {arguments[1]}; settings are given as --config.NAME=VALUE")
    if CONFIG.value is None:
        raise app.UsageError(f"--config is missing; use --config {example}")
    return CONFIG.value


def main(launch: Callable[[Sequence[Any], str, bool], int], example: str) -> None:
    """The whole program of a launcher.

    Args:
      launch: called with configs, an action and whether to show only; returns an exit code.
      example: a config of this launcher.
    """

    def run(arguments: list[str]) -> None:
        config, codes = config_of(arguments, example), []

        def program() -> None:
            try:
                codes.append(launch([config], ACTION.value, DRY_RUN.value))
            except TryLaterError as error:
                raise UserError(f"{error}; give the same command again") from error

        code = exit_code(program)
        sys.exit(code or codes[0])

    app.run(run, flags_parser=parse_flags)
