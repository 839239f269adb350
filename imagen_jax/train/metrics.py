"""Metrics of a run: metrics.jsonl, TensorBoard, and the sums behind every average."""

import json
import math
import time
import types
from collections.abc import Callable, Mapping, Set
from typing import Any

import jax
import numpy as np

from imagen_jax.checkpoints.processes import gathered
from imagen_jax.errors import UserError
from imagen_jax.files import GrowingFile, StrPath, as_path, write_text
from imagen_jax.progress import Progress
from imagen_jax.train.bad_steps import BadSteps
from imagen_jax.train.event_file import EventFile
from imagen_jax.train.hooks import Hook, StepInfo
from imagen_jax.train.step import Metrics

METRICS = "metrics.jsonl"

# Updates the host may be ahead of the device: enough to hide its own work, few enough that the batches
# waiting on the device stay small.
STEPS_AHEAD = 2


class Window:
    """Metrics of the updates since the last line, kept on the device until they are wanted.

    Averages are made of sums and counts, so a line is the mean over its examples whatever the batch.

    Args:
      step: updates done when the window opens.
      batch_size: rows of one update.
      flops_per_step: FLOPs that one update needs, over all devices.
      peak_flops: peak FLOP/s of all devices together, None where unknown.
      labels: the objective's `metrics`.
      bad_steps: is told of the updates that were skipped; None: the first one stops the run.
    """

    def __init__(
        self,
        step: int,
        batch_size: int,
        flops_per_step: int,
        peak_flops: float | None,
        labels: Mapping[str, tuple[str, ...]] = types.MappingProxyType({}),
        bad_steps: BadSteps | None = None,
    ):
        self._bad_steps = bad_steps or BadSteps(1)
        self._skipped = 0
        self._labels = labels
        self._batch_size, self._flops, self._peak = batch_size, flops_per_step, peak_flops
        self._checked = step
        self._waiting: list[Metrics] = []
        self._rows: list[dict[str, Any]] = []
        self._last: dict[str, Any] = {}
        self._data_s = self._compute_s = 0.0
        self._mark = time.perf_counter()

    def start(self) -> None:
        """Time from here on belongs to the window (what came before was sampling or saving)."""
        self._mark = time.perf_counter()

    def data_ready(self) -> None:
        """The next batch is there: the time since the last mark was waiting for data."""
        self._data_s += self._lap()

    def add(self, metrics: Metrics) -> None:
        """Takes the metrics of one dispatched update; waits only when the host is too far ahead."""
        self._waiting.append(metrics)
        if len(self._waiting) > STEPS_AHEAD:
            jax.block_until_ready(self._waiting[-1 - STEPS_AHEAD])
        self._compute_s += self._lap()

    def check(self) -> None:
        """Fetches what is waiting, and looks for updates that were skipped.

        Raises:
          UserError: too many were skipped in a row, or the parameters themselves are not finite.
        """
        if not self._waiting:
            return
        rows = jax.device_get(self._waiting)
        self._compute_s += self._lap()
        self._waiting = []
        for step, row in enumerate(rows, self._checked + 1):
            self._bad_steps.look(step, row)
            if not np.isfinite(row["param_norm"]):
                raise UserError(
                    f"the parameters are not finite after step {step} (param_norm = {row['param_norm']}); nothing was "
                    "saved since the last checkpoint: lower learning_rate or set grad_clip_norm, then give the same "
                    "command again"
                )
        self._checked += len(rows)
        self._rows += [row for row in rows if not row["skipped"]]
        self._skipped += sum(bool(row["skipped"]) for row in rows)
        self._last = rows[-1]

    def close(self) -> dict[str, Any]:
        """The line of this window; opens the next one."""
        self.check()
        rows, num = self._rows, len(self._rows) + self._skipped
        seconds = self._data_s + self._compute_s
        line: dict[str, Any] = {
            "step": self._checked,
            **(self._averages() if rows else {}),
            "param_norm": float(self._last["param_norm"]),
            "learning_rate": float(self._last["learning_rate"]),
            "images_per_s": self._batch_size * num / seconds,
            "step_time_s": seconds / num,
            "data_s": self._data_s / num,
            "compute_s": self._compute_s / num,
        }
        if self._peak is not None:
            line["mfu"] = self._flops * num / seconds / self._peak
        if self._skipped:
            line["skipped_steps"] = self._skipped
        self._rows, self._skipped = [], 0
        self._data_s = self._compute_s = 0.0
        return line

    def _averages(self) -> dict[str, Any]:
        """Means over the updates that were not skipped."""
        loss, norm = (float(np.mean([row[name] for row in self._rows])) for name in ("loss", "grad_norm"))
        return {"loss": loss, **self._means(), "grad_norm": norm}

    def _means(self) -> dict[str, Any]:
        """The objective's metrics over the window, without entries that no example counted in."""
        found: dict[str, Any] = {}
        for name, labels in self._labels.items():
            total = np.sum([row["means"][name].total for row in self._rows], axis=0)
            count = np.sum([row["means"][name].count for row in self._rows], axis=0)
            if labels:
                entries = zip(labels, total, count, strict=True)
                found[name] = {label: float(above / below) for label, above, below in entries if below}
            elif count:
                found[name] = float(total / count)
        return found

    def _lap(self) -> float:
        now = time.perf_counter()
        passed, self._mark = now - self._mark, now
        return passed


def read_lines(model_dir: StrPath) -> list[tuple[float, str]]:
    """Reads metrics.jsonl of a run directory, without a last line cut short by a kill.

    A last line that is whole is one also without its line break, as after an editor.

    Returns:
      The step of every line, and the line; nothing where there is no file.

    Raises:
      UserError: a line is no JSON object with a step that is a finite number.
    """
    path = as_path(model_dir) / METRICS
    if not path.exists():
        return []
    found = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            step = json.loads(line)["step"]
            if isinstance(step, bool | str) or not math.isfinite(step):
                raise ValueError(f"step {step!r}")
            found.append((float(step), f"{line.decode()}\n"))
        except (ValueError, TypeError, LookupError, OverflowError, RecursionError) as error:
            if number == len(lines):
                break
            raise UserError(
                f"{path} line {number} is {line[:60].decode(errors='replace')!r}; expected a JSON object with a "
                'number "step"; delete that line or move the file away'
            ) from error
    return found


def drop_lines_after(model_dir: StrPath, step: int) -> None:
    """Rewrites metrics.jsonl without the lines after `step` and without a last line cut short by a kill."""
    path = as_path(model_dir) / METRICS
    if path.exists():
        write_text(path, "".join(line for of_step, line in read_lines(model_dir) if of_step <= step))


class MetricWriter:
    """Writes lines to metrics.jsonl and curves to TensorBoard; silent on all processes but the first.

    Args:
      model_dir: run directory.
      step: updates done; later lines of an earlier process are dropped.
    """

    def __init__(self, model_dir: StrPath, step: int):
        self._active = jax.process_index() == 0
        if not self._active:
            return
        drop_lines_after(model_dir, step)
        self._lines = GrowingFile(as_path(model_dir) / METRICS)
        self._events = EventFile(as_path(model_dir) / "tensorboard", step)

    def write(self, line: Mapping[str, Any]) -> None:
        """Appends one line; nested values become curves named "outer/inner"."""
        if not self._active:
            return
        with open(self._lines.local, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        self._lines.grown()
        scalars: dict[str, float] = {}
        for name, value in line.items():
            if isinstance(value, Mapping):
                scalars |= {f"{name}/{inner}": number for inner, number in value.items()}
            elif name != "step":
                scalars[name] = value
        self._events.scalars(line["step"], scalars)

    def image(self, step: int, tag: str, png: bytes, height: int, width: int) -> None:
        """Adds one PNG image to TensorBoard."""
        if self._active:
            self._events.image(step, tag, png, height, width)

    def send(self) -> None:
        """Makes what was written last, also in a bucket: called before each checkpoint, which goes on from there."""
        if self._active:
            self._lines.send()
            self._events.send()

    def close(self) -> None:
        """Closes the files."""
        if self._active:
            self._lines.close()
            self._events.close()


class PassedOver:
    """Counts the bad records that all processes have passed over since they began, each record once.

    Args:
      mine: gives those of this process: the number of the source, and of the record in it.
    """

    def __init__(self, mine: Callable[[], Set[tuple[int, int]]]):
        self._mine = mine
        self._all: set[tuple[int, int]] = set()

    def count(self) -> int:
        """Their number so far; every process asks at the same step, and is told the same."""
        new = sorted(self._mine() - self._all)
        with jax.transfer_guard("allow"):
            told = gathered(json.dumps(new).encode())
        for one in told:
            self._all.update((source, record) for source, record in json.loads(one))
        return len(self._all)


class MetricLines(Hook):
    """Writes the lines of a run.

    Args:
      writer: where they go.
      epochs: gives how often each source of a mixture was gone through before a step; {} of one corpus.
      passed_over: counts bad records; None where a run stops at the first.
      fields: gives more fields of a line.
    """

    def __init__(
        self,
        writer: MetricWriter,
        epochs: Callable[[int], Mapping[str, float]] = lambda step: {},
        passed_over: PassedOver | None = None,
        fields: Callable[[], Mapping[str, Any]] = dict,
    ):
        self._writer, self._epochs, self._passed_over, self._fields = writer, epochs, passed_over, fields

    def after_step(self, info: StepInfo) -> None:
        """Writes the line, where one is due."""
        if info.line is not None:
            epochs = self._epochs(info.step)
            bad = self._passed_over.count() if self._passed_over is not None else 0
            more: dict[str, Any] = {"epochs": dict(epochs)} if epochs else {}
            self._writer.write({**info.line, **more, **({"bad_records": bad} if bad else {}), **self._fields()})


class ShowProgress(Hook):
    """Counts the steps of a run on the terminal, with the loss and the speed of the newest line."""

    def __init__(self, progress: Progress):
        self._progress = progress

    def after_step(self, info: StepInfo) -> None:
        """Counts one step."""
        line = info.line or {}
        self._progress.update(1, **{name: line[name] for name in ("loss", "images_per_s") if name in line})
