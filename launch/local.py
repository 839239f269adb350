"""Runs a pipeline on this machine, phase after phase, and measures what each costs.

    imagen_jax script launch/local.py --config launch/configs/demo.py [--config.out_dir=runs/mine]

A config is found by its place in the repository from any folder. It holds `out_dir` and `phases`, pairs of a name and a
command. In a command, {field} stands for that field of the config; `python` and `imagen_jax` are those of this
environment, and leading NAME=VALUE words are set in the environment of that command alone, as in a shell. Every phase
is run again on a second start; those whose mode resumes, as training does, go on from what they find. The phase named
"report" is not measured: it reads what was.
"""

import itertools
import os
import re
import runpy
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
from absl import app, flags
from ml_collections import ConfigDict, config_flags

from imagen_jax.checks import check_path, with_home
from imagen_jax.errors import UserError, exit_code
from imagen_jax.files import AnyPath, as_path, make_dirs, read_json, shipped_file, write_json

# Configs import their neighbours as launch.configs, wherever this folder lies.
sys.path.append(str(Path(__file__).resolve().parents[1]))

SAMPLE_EVERY_S = 0.5
COMMANDS = {"python": [sys.executable], "imagen_jax": [sys.executable, "-m", "imagen_jax.main"]}
REPORT = "report"

_EXAMPLE = "launch/configs/demo.py"
_CONFIG = config_flags.DEFINE_config_file("config", None, f"pipeline to run, e.g. {_EXAMPLE}")


def expand(command: str, fields: Mapping[str, Any]) -> list[str]:
    """The argument list of a phase's command; a field's value with spaces in it stays one word."""
    return [word.format(**fields) for word in command.split()]


def expanded(config: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """The phases of a config, each with the words of its command.

    Raises:
      UserError: they are no pairs of texts, or a command is empty or holds a {field} that the config lacks.
    """
    try:
        phases = [(name, expand(command, config)) for name, command in config["phases"]]
        if all(split_settings(words)[1] for _, words in phases):
            return phases
        problem = "a command is empty"
    except KeyError as error:
        problem = f"there is no setting {error}"
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        problem = str(error)
    raise UserError(
        f"the config's phases cannot be run ({problem}); write pairs of a name and a command, as {_EXAMPLE} does, with "
        "no {field} but the config's own settings"
    )


def split_settings(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The NAME=VALUE words that lead a command, and the command."""
    settings = list(itertools.takewhile(re.compile("[A-Z_]+=").match, words))
    return dict(word.split("=", 1) for word in settings), list(words[len(settings) :])


def tree_memory(process: psutil.Process) -> int:
    """Resident bytes of a process and all its descendants, now."""
    total = 0
    for member in [process, *_children(process)]:
        try:
            total += member.memory_info().rss
        except psutil.NoSuchProcess:  # It ended since it was listed.
            continue
    return total


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def run_phase(words: Sequence[str]) -> tuple[int, float, int]:
    """Runs one command with its output shown live; after NAME=VALUE words may come a name of COMMANDS.

    Returns:
      exit code, wall seconds, and the largest sum of resident bytes over its process tree.
    """
    start, peak = time.monotonic(), 0
    settings, (program, *arguments) = split_settings(words)
    process = subprocess.Popen([*COMMANDS.get(program, [program]), *arguments], env={**os.environ, **settings})
    try:
        watched = psutil.Process(process.pid)
        while True:
            peak = max(peak, tree_memory(watched))
            try:
                code = process.wait(SAMPLE_EVERY_S)
                return code, time.monotonic() - start, peak
            except subprocess.TimeoutExpired:
                continue
    finally:  # Where this launcher is interrupted, the phase must not run on alone.
        if process.poll() is None:
            process.terminate()
            process.wait()


def alignment(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """The fractions of eval.json at its best guidance weight, and the unconditional one."""
    best = float(evaluation["best_guidance_weight"])
    by_weight = {float(weight): scores for weight, scores in evaluation["alignment"].items()}
    return {**by_weight[best], "unconditional_both": evaluation["unconditional_both"]}


def write_metrics(out_dir: AnyPath, seconds: Mapping[str, float], seconds_total: float, peak_bytes: int) -> None:
    """Writes out_dir/metrics.json: seconds of each phase and in all, peak memory in 1e9 bytes, alignment."""
    metrics: dict[str, Any] = {
        "seconds_total": round(seconds_total, 1),
        "peak_memory_gb": round(peak_bytes / 1e9, 2),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
    }
    evaluation = out_dir / "eval.json"
    if evaluation.exists():
        metrics["alignment"] = alignment(read_json(evaluation))
    write_json(out_dir / "metrics.json", metrics, indent=2, end="\n")


def run(config: Mapping[str, Any]) -> int:
    """Runs every phase in order; stops at the first that fails.

    Returns:
      0, or the exit code of the phase that failed.
    """
    out_dir = as_path(config["out_dir"])
    phases = expanded(config)
    make_dirs(out_dir)
    commands = [{"phase": name, "command": shlex.join(words)} for name, words in phases]
    write_json(out_dir / "commands.json", commands, indent=2, end="\n")
    seconds: dict[str, float] = {}
    start, peak = time.monotonic(), 0
    for number, (name, words) in enumerate(phases, 1):
        heading = f"[{number}/{len(phases)}] {name}"
        print(f"\n{heading}: {shlex.join(words)}", flush=True)
        if name == REPORT:
            write_metrics(out_dir, seconds, time.monotonic() - start, peak)
        code, took, phase_peak = run_phase(words)
        peak = max(peak, phase_peak)
        if code:
            print(f"error: phase {name} failed with exit code {code} after {took:.0f} s", file=sys.stderr)
            return code if code > 0 else 128 - code  # A negative code is the signal that ended it.
        if name != REPORT:
            seconds[name] = took
        print(f"{heading}: {took:.0f} s, {phase_peak / 1e9:.2f} GB", flush=True)
    total = time.monotonic() - start
    write_metrics(out_dir, seconds, total, peak)
    print(f"\ndone in {total:.0f} s, at most {peak / 1e9:.2f} GB of memory; see {out_dir}", flush=True)
    return 0


def parse_flags(arguments: list[str]) -> list[str]:
    """absl's parsing; what it or a config refuses ends the program as other errors of people do."""
    rest: list[str] = []
    code = exit_code(lambda: rest.extend(_parse(arguments)))
    if code:
        sys.exit(code)
    return rest


def _parse(arguments: Sequence[str]) -> list[str]:
    words = list(arguments)
    for number, word in enumerate(words[1:], 1):
        name, equals, value = word.partition("=")
        if name in ("--config", "-config") and equals:
            words[number] = f"{name}={_config_file(value)}"
        elif words[number - 1] in ("--config", "-config"):
            words[number] = _config_file(word)
    try:
        rest = flags.FLAGS(words)
    except (AttributeError, KeyError) as error:
        setting = str(error).replace("\\n", "\n").replace("\\'", "").strip("\"'")
        raise UserError(f"the config has no setting {setting}") from error
    except flags.Error as error:
        raise UserError(f"{error}; see --help") from error
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]}; settings are given as --config.NAME=VALUE")
    if _CONFIG.value is None:
        raise UserError(f"--config is missing; write --config {_EXAMPLE}")
    check_path("--config.out_dir", _CONFIG.value.out_dir)
    _CONFIG.value.out_dir = with_home("--config.out_dir", _CONFIG.value.out_dir)
    return rest


def _config_file(name: str) -> str:
    """A config's file, once it is sure that it makes a config.

    Raises:
      UserError: there is no such file, or it fails; it is a program, which may fail in any way.
    """
    path = shipped_file(name)
    if not os.path.isfile(path):
        raise UserError(f"--config={name}: there is no such file; give a pipeline, such as {_EXAMPLE}")
    try:
        made = runpy.run_path(path)["get_config"]()
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
    else:
        if isinstance(made, ConfigDict) and {"out_dir", "phases"} <= set(made):
            return path
        problem = "its get_config() gives no ConfigDict with out_dir and phases"
    raise UserError(f"--config={name} makes no config ({problem}); write it as {_EXAMPLE} is")


def main(arguments: Sequence[str]) -> None:
    codes: list[int] = []
    ended = exit_code(lambda: codes.append(run(_CONFIG.value)))
    sys.exit(ended or codes[0])


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
