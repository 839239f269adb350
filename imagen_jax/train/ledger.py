"""The ledger of a run: every second of its wall clock in one category, over all restarts.

ledger.jsonl in the run directory has one line for each stretch of time, appended and never changed:

    {"run": name of the process, "begin": s, "end": s, "first_step": N, "step": N, "num_steps": N,
     "seconds": {category: s}, "reason": "…"}

`begin` and `end` are seconds since 1970; `first_step` and `step` are updates done at the two. `reason` stands in the
last line of a process that ended by itself. A kill loses at most the stretch since the last line: that time, and the
time until the next process begins, is read as "down".
"""

import contextlib
import json
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from imagen_jax.errors import UserError, one_line
from imagen_jax.files import GrowingFile, StrPath, as_path, check_content, make_dirs, write_bytes

LEDGER = "ledger.jsonl"
# What a process does, as it tells: getting ready, compiling, waiting for batches, updates, saving and ending, previews.
TOLD = ("start", "compile", "data", "step", "checkpoint", "evaluation")
# What is known afterwards alone: updates (and their batches) done again after a kill; no process at work.
CATEGORIES = (*TOLD, "lost", "down")
_REDONE = ("data", "step")
_FIELDS = {"run": str, "begin": float, "end": float, "first_step": int, "step": int, "num_steps": int, "seconds": dict}


class Ledger:
    """Counts the seconds of one process by category, and appends them to the run's ledger.

    Args:
      model_dir: run directory.
      num_steps: updates of the whole run.
      active: False counts and writes nothing: of several processes the first tells.

    Attributes:
      interruptions: checkpoints and evaluations so far, begun ones included.
    """

    def __init__(self, model_dir: StrPath, num_steps: int, active: bool = True):
        self._path, self._num_steps, self._active = as_path(model_dir) / LEDGER, num_steps, active
        self._name = secrets.token_hex(8)
        self._step: int | None = None
        self._category = TOLD[0]
        self._seconds = dict.fromkeys(TOLD, 0.0)
        self._begin, self._mark = time.time(), time.perf_counter()
        self._file: GrowingFile | None = None
        self.interruptions = 0

    @contextlib.contextmanager
    def during(self, category: str) -> Iterator[None]:
        """A block whose time belongs to a category; afterwards that of before goes on."""
        before = self._category
        self.interruptions += category in ("checkpoint", "evaluation")
        self.enter(category)
        try:
            yield
        finally:
            self.enter(before)

    def enter(self, category: str) -> None:
        """From here on time belongs to a category of `TOLD`."""
        now = time.perf_counter()
        self._seconds[self._category] += now - self._mark
        self._category, self._mark = category, now

    def begin_steps(self, step: int) -> None:
        """The first update is next: `step` are done. Nothing is written before: a refused run leaves no trace."""
        self._step = step
        self.enter("step")
        self.write(step)

    def write(self, step: int, reason: str | None = None) -> None:
        """Appends a line for the time since the last one.

        Args:
          step: updates done.
          reason: why this process ends, in its last line.
        """
        self.enter(self._category)
        if not self._active or self._step is None:
            return
        # Of one clock, so that the categories of a line are its whole length; the other one may be set meanwhile.
        end = self._begin + sum(self._seconds.values())
        line: dict[str, Any] = {
            "run": self._name,
            "begin": self._begin,
            "end": end,
            "first_step": self._step,
            "step": step,
            "num_steps": self._num_steps,
            "seconds": {name: round(seconds, 6) for name, seconds in self._seconds.items() if seconds},
        }
        if reason is not None:
            line["reason"] = one_line(reason)
        file = self._open()
        with open(file.local, "ab") as stream:
            stream.write(json.dumps(line).encode() + b"\n")
        file.grown()
        self._begin, self._step = end, step
        self._seconds = dict.fromkeys(TOLD, 0.0)

    def close(self, step: int, reason: str) -> None:
        """Appends the last line."""
        self.write(step, reason)
        if self._file is not None:
            self._file.close()

    def send(self) -> None:
        """Makes the lines so far last, also those of a file in a bucket."""
        if self._file is not None:
            self._file.send()

    def _open(self) -> GrowingFile:
        if self._file is None:
            make_dirs(self._path.parent)
            # A line that a kill cut short would spoil the next one.
            there = self._path.read_bytes() if self._path.exists() else b""
            if not there.endswith(b"\n") and there:
                write_bytes(self._path, there[: there.rfind(b"\n") + 1])
            self._file = GrowingFile(self._path)
        return self._file


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """One line of a ledger; see the module."""

    run: str
    begin: float
    end: float
    first_step: int
    step: int
    num_steps: int
    seconds: dict[str, float]
    reason: str | None = None


def read_ledger(model_dir: StrPath) -> list[Stretch]:
    """Lines of a run's ledger, without a last one cut short by a kill; none where there is no file.

    Raises:
      UserError: a line is not of a ledger.
    """
    path, found = as_path(model_dir) / LEDGER, []
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    for number, text in enumerate(lines, 1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} line {number} is no JSON ({error}); delete that line") from error
        check_content(path, line, _FIELDS, "delete that line", f"line {number}")
        seconds = {name: line["seconds"].get(name, 0.0) for name in TOLD}
        check_content(path, seconds, dict.fromkeys(TOLD, float), "delete that line", f"line {number}, seconds")
        found.append(
            Stretch(**{name: line[name] for name in _FIELDS} | {"seconds": seconds}, reason=line.get("reason"))
        )
    return found


def totals(stretches: list[Stretch]) -> dict[str, float]:
    """Seconds of each of `CATEGORIES` from the first line's begin to the last one's end.

    Where a process went on before updates that an earlier one had done, those are lost: in a stretch that lies across
    that step, their share of it.

    Args:
      stretches: lines, in the order of the file.
    """
    found = dict.fromkeys(CATEGORIES, 0.0)
    starts = _first_steps(stretches)
    for number, stretch in enumerate(stretches):
        # The earliest step to which any later process went back.
        back = min((step for at, step in starts if at > number), default=stretch.step)
        steps = stretch.step - stretch.first_step
        lost = min(max(0, stretch.step - back) / steps, 1.0) if steps else 0.0
        for name, seconds in stretch.seconds.items():
            redone = lost * seconds if name in _REDONE else 0.0
            found["lost"] += redone
            found[name] += seconds - redone
        if number:
            found["down"] += max(0.0, stretch.begin - stretches[number - 1].end)
    return found


def _first_steps(stretches: list[Stretch]) -> list[tuple[int, int]]:
    """Number of the line in which each process began its updates, and the step of it."""
    last, found = "", []
    for number, stretch in enumerate(stretches):
        if stretch.run != last:
            found.append((number, stretch.first_step))
            last = stretch.run
    return found


def goodput(seconds: dict[str, float]) -> float:
    """Share of the wall clock that went into updates which count.

    Args:
      seconds: of each category, from `totals`.
    """
    return seconds["step"] / max(sum(seconds.values()), 1e-9)
