"""Runs a door's cases: each gives a result or the one error meant for people, in time, and touches nothing else."""

import contextlib
import os
import random
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import pytest

from imagen_jax.errors import UserError

T = TypeVar("T")

CASE_S = 20.0
# How much more memory a case may take at a time: inputs are small.
CASE_KIB = 1 << 20
_SHOWN = 400


class Hang(BaseException):
    """A case took longer than CASE_S."""


class _Guard:
    """Notes what the running case does to files and processes, by Python's audit events."""

    def __init__(self) -> None:
        self.on, self.allowed, self.found = False, "", list[str]()
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open":
            path, mode, flags = args
            writes = set(str(mode or "")) & set("wxa+") or (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writes and not isinstance(path, int):
                self._check(event, path)
        elif event in ("os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree"):
            # Below a folder that shutil.rmtree has opened names are relative to it.
            if args[-1] in (None, -1) or event in ("os.truncate", "shutil.rmtree"):
                self._check(event, args[0])
        elif event in ("os.rename", "os.link", "os.symlink"):
            self._check(event, args[0])
            self._check(event, args[1])
        elif event == "subprocess.Popen" and (args[0] == "uname" or args[1][:2] == ["git", "describe"]):
            pass  # Python's own module `platform`, and the revision that artefacts state.
        elif event in ("subprocess.Popen", "os.system", "os.exec", "socket.connect", "pickle.find_class"):
            self.found.append(f"{event} {args[:2]!r}")

    def _check(self, event: str, path: Any) -> None:
        text = os.path.abspath(os.fsdecode(path))
        # What Python and jax keep of their own accord.
        kept = "__pycache__" in text or text.startswith(str(jax.config.jax_compilation_cache_dir))
        if not (self.allowed and (text + os.sep).startswith(self.allowed + os.sep)) and not kept and text != os.devnull:
            self.found.append(f"{event} {text}")


_GUARD = _Guard()


@contextlib.contextmanager
def _guarded(allowed: str) -> Iterator[None]:
    def ring(number: int, frame: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, CASE_S)
    _GUARD.on, _GUARD.allowed, _GUARD.found = True, allowed, []
    try:
        yield
    finally:
        _GUARD.on = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def fuzz(
    config: pytest.Config,
    door: str,
    make: Callable[[random.Random], T],
    attempt: Callable[[T], object],
    writes: Path | None = None,
    share: float = 1.0,
) -> None:
    """Tries a door with many inputs.

    Args:
      config: says how many (--cases), from which on (--first), or which one alone (--case).
      door: name of the door; with the number of a case it is the seed of its input.
      make: an input from a generator.
      attempt: uses the input as a user would; returns, or raises UserError.
      writes: the only folder that `attempt` may change; None: no folder.
      share: cases of this door for each of --cases, for a door that is slow.

    Raises:
      pytest.fail.Exception: lists the cases that raise anything else, hang, fill the memory, or touch a file elsewhere;
        one of each kind with its number, its input and its traceback.
    """
    alone, first = config.getoption("--case"), config.getoption("--first")
    numbers = [alone] if alone is not None else range(first, first + max(1, round(config.getoption("--cases") * share)))
    allowed = "" if writes is None else os.path.abspath(writes)
    kinds: dict[str, list[str]] = {}
    for number in numbers:
        case = make(random.Random(f"{door}/{number}"))
        problem, trace, before = "", "", _peak_kib(reset=True)
        try:
            with _guarded(allowed):
                attempt(case)
        except UserError as error:
            problem = "" if str(error).strip() else f"UserError without a message at {_place(error)}"
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit, Hang and the panics of libraries too.
            problem = f"{type(error).__name__} at {_place(error)}"
            trace = "".join(traceback.format_exception(error))[-1500:]
        if _GUARD.found:
            problem = f"touched: {_GUARD.found[0]}" + (f", then {problem}" if problem else "")
        if not problem and _peak_kib() - before > CASE_KIB:
            problem = "memory"
        if problem:
            kinds.setdefault(problem, []).append(f"case {number}: {_short(case)}\n{trace}")
    if kinds:
        lines = [f"{problem} ({len(cases)} cases), first {cases[0]}" for problem, cases in kinds.items()]
        total = sum(map(len, kinds.values()))
        unchecked = "UNCHECKED_TYPES=1 " if "UNCHECKED_TYPES" in os.environ else ""
        test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
        again = f"one alone: {unchecked}.venv/bin/python -m pytest '{test}' --case N"
        pytest.fail(f"{door}: {total} of {len(numbers)} cases; {again}\n" + "\n".join(lines), pytrace=False)


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/imagen_jax/" in frame.filename] or frames
    return f"{os.path.basename(ours[-1].filename)}:{ours[-1].lineno}"


def _peak_kib(reset: bool = False) -> int:
    """The most memory that this process held since the last reset, which makes it what it holds now (Linux)."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def _short(case: object) -> str:
    text = ascii(case)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({len(text)} characters)"
