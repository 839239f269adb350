"""Runs a pipeline on this machine, phase after phase, and measures what each costs.

    python -m launch.local --config launch/configs/demo.py [--config.out_dir=runs/mine]

A config holds `out_dir` and `phases`, pairs of a name and a command; a tuple of pairs runs at the same time. In a
command, {field} stands for that field of the config; `python` and `imagen_jax` are those of this environment, and
leading NAME=VALUE words are set in the environment of that command alone, as in a shell. Every phase is run again on a
second start; those whose mode resumes, as training does, go on from what they find. The phase named "report"
is not measured: it reads what was.
"""

import contextlib
import dataclasses
import itertools
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
from absl import app
from ml_collections import config_flags

from imagen_jax.files import read_json, write_json

SAMPLE_EVERY_S = 0.5
COMMANDS = {"python": [sys.executable], "imagen_jax": [sys.executable, "-m", "imagen_jax.main"]}
REPORT = "report"

_CONFIG = config_flags.DEFINE_config_file("config", None, "pipeline to run, e.g. launch/configs/demo.py")


def expand(command: str, fields: Mapping[str, Any]) -> list[str]:
    """The argument list of a phase's command; a field's value with spaces in it stays one word."""
    return [word.format(**fields) for word in command.split()]


def split_settings(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The NAME=VALUE words that lead a command, and the command."""
    settings = list(itertools.takewhile(re.compile("[A-Z_]+=").match, words))
    return dict(word.split("=", 1) for word in settings), list(words[len(settings) :])


def tree_memory(pid: int) -> int:
    """Resident bytes of a process and all its descendants, now; 0 where it has ended."""
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for member in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):  # It ended since it was listed.
                total += member.memory_info().rss
    return total


@dataclasses.dataclass(frozen=True)
class Phase:
    """A command of a pipeline: its name and its words, NAME=VALUE settings first."""

    name: str
    words: list[str]


def read_phases(config: Mapping[str, Any]) -> list[list[Phase]]:
    """The phases of a config with its fields filled in; those of an inner list run at the same time."""
    steps = [[step] if isinstance(step[0], str) else step for step in config["phases"]]
    return [[Phase(name, expand(command, config)) for name, command in step] for step in steps]


def start(phase: Phase, piped: bool = False) -> subprocess.Popen[str]:
    """Starts a phase; after NAME=VALUE words may come a name of COMMANDS.

    Args:
      phase: what to run.
      piped: what it says on stderr passes through this process, so that it shows plain lines of progress: the bars of
        two phases would overwrite each other on a terminal.
    """
    settings, (program, *arguments) = split_settings(phase.words)
    return subprocess.Popen(
        [*COMMANDS.get(program, [program]), *arguments],
        env={**os.environ, **settings},
        stderr=subprocess.PIPE if piped else None,
        text=True,
        errors="replace",
    )


def _copy_lines(lines: Iterable[str]) -> None:
    for line in lines:
        print(line, end="", file=sys.stderr, flush=True)


def run_phases(phases: Sequence[Phase]) -> tuple[list[tuple[int, float]], int]:
    """Runs phases at the same time, their output shown live; the first that fails ends the others.

    Returns:
      exit code and wall seconds of each, and the largest sum of resident bytes over all their processes.
    """
    begun, peak = time.monotonic(), 0
    processes: list[subprocess.Popen[str]] = []
    done: dict[int, tuple[int, float]] = {}
    readers: list[threading.Thread] = []
    try:
        for phase in phases:
            processes.append(start(phase, piped=len(phases) > 1))
            if processes[-1].stderr is not None:
                readers.append(threading.Thread(target=_copy_lines, args=(processes[-1].stderr,), daemon=True))
                readers[-1].start()
        while len(done) < len(phases):
            running = [i for i in range(len(phases)) if i not in done]
            peak = max(peak, sum(tree_memory(processes[i].pid) for i in running))
            # Waits for one of them; what the others do meanwhile is seen in the next round.
            with contextlib.suppress(subprocess.TimeoutExpired):
                processes[running[0]].wait(SAMPLE_EVERY_S)
            for i in running:
                code = processes[i].poll()
                if code is not None:
                    done[i] = (code, time.monotonic() - begun)
            if any(code for code, _ in done.values()):
                break
    finally:  # Where this launcher is interrupted or one phase fails, no phase must run on alone.
        for process in processes:
            if process.poll() is None:
                process.terminate()
        for process in processes:
            process.wait()
        for reader in readers:
            reader.join()
    return [done.get(i, (0, time.monotonic() - begun)) for i in range(len(phases))], peak


def alignment(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """The fractions of eval.json at its best guidance weight, and the unconditional one."""
    best = float(evaluation["best_guidance_weight"])
    by_weight = {float(weight): scores for weight, scores in evaluation["alignment"].items()}
    return {**by_weight[best], "unconditional_both": evaluation["unconditional_both"]}


def write_metrics(out_dir: Path, seconds: Mapping[str, float], seconds_total: float, peak_bytes: int) -> None:
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
    out_dir = Path(config["out_dir"])
    steps = read_phases(config)
    out_dir.mkdir(parents=True, exist_ok=True)
    commands = [{"phase": phase.name, "command": shlex.join(phase.words)} for phase in itertools.chain(*steps)]
    write_json(out_dir / "commands.json", commands, indent=2, end="\n")
    seconds: dict[str, float] = {}
    begun, peak = time.monotonic(), 0
    for number, step in enumerate(steps, 1):
        for phase in step:
            print(f"\n[{number}/{len(steps)}] {phase.name}: {shlex.join(phase.words)}", flush=True)
            if phase.name == REPORT:
                write_metrics(out_dir, seconds, time.monotonic() - begun, peak)
        results, step_peak = run_phases(step)
        peak = max(peak, step_peak)
        for phase, (code, took) in zip(step, results, strict=True):
            if code:
                print(f"error: phase {phase.name} failed with exit code {code} after {took:.0f} s", file=sys.stderr)
                return code if code > 0 else 128 - code  # A negative code is the signal that ended it.
        for phase, (_, took) in zip(step, results, strict=True):
            if phase.name != REPORT:
                seconds[phase.name] = took
            print(f"[{number}/{len(steps)}] {phase.name}: {took:.0f} s", flush=True)
        print(f"[{number}/{len(steps)}] at most {step_peak / 1e9:.2f} GB", flush=True)
    total = time.monotonic() - begun
    write_metrics(out_dir, seconds, total, peak)
    print(f"\ndone in {total:.0f} s, at most {peak / 1e9:.2f} GB of memory; see {out_dir}", flush=True)
    return 0


def parse_flags(arguments: list[str]) -> list[str]:
    """absl's parsing, with what a config refuses told in plain words."""
    try:
        rest = app.parse_flags_with_usage(arguments)
        if _CONFIG.value is not None:
            _CONFIG.value.get("out_dir")  # A config file that could not be read says so only when it is used.
        return rest
    except (AttributeError, KeyError) as error:
        problem = "the config has no setting " + str(error).replace("\\n", "; ").replace("\\'", "").strip("\"'")
    except OSError as error:
        problem = str(error)
    print(f"error: {problem}\n  from {' '.join(arguments[1:])}", file=sys.stderr)
    sys.exit(2)


def main(arguments: Sequence[str]) -> None:
    if len(arguments) > 1:
        raise app.UsageError(f"unexpected argument {arguments[1]}; settings are given as --config.NAME=VALUE")
    if _CONFIG.value is None:
        raise app.UsageError("--config is missing; use --config launch/configs/demo.py")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        sys.exit(run(_CONFIG.value))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
