"""CascadePrograms timed in turn, A B A B …, so that a busy machine slows all alike; what counts is their ratio."""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence


def serve(step: Callable[[], object]) -> None:
    """In the timed process: runs `step` once for every line on stdin and prints its seconds; once before, unprinted."""
    step()
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        step()
        print(time.perf_counter() - start, flush=True)


def take_turns(
    programs: Mapping[str, Sequence[str]], rounds: int, environments: Mapping[str, Mapping[str, str]] | None = None
) -> dict[str, list[float]]:
    """Starts every program (a command that ends in `serve`) and times it `rounds` times, in turn.

    Args:
      programs: command by name.
      rounds: turns of each.
      environments: additions to a program's environment, by name.

    Returns:
      Seconds of each turn, by name.
    """
    more = environments or {}
    servers = {
        name: subprocess.Popen(
            list(command),
            env={**os.environ, **more.get(name, {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name, command in programs.items()
    }
    for name, server in servers.items():
        assert server.stdout is not None
        while (line := server.stdout.readline()) != "ready\n":
            if not line:
                raise SystemExit(f"error: {name} ended before it was ready")
    seconds: dict[str, list[float]] = {name: [] for name in servers}
    for number in range(rounds):
        for name, server in servers.items():
            assert server.stdin is not None and server.stdout is not None
            print(number, file=server.stdin, flush=True)
            seconds[name].append(float(server.stdout.readline()))
    for server in servers.values():
        server.communicate()
    return seconds


def ratio(seconds: Mapping[str, Sequence[float]], slow: str, fast: str) -> str:
    """How many times faster `fast` is than `slow`: the median over the turns, and the spread."""
    ratios = [a / b for a, b in zip(seconds[slow], seconds[fast], strict=True)]
    return f"{slow} / {fast}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
