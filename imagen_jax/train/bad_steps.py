"""Updates that the step skipped: counted, written down with the examples they were of, and too many in a row refused.

Others skip too: optax.apply_if_finite counts in the optimizer's state and lets the bad update through when it has seen
too many, which no run comes back from. Here the run stops instead, with the last good parameters.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from imagen_jax.errors import UserError
from imagen_jax.files import StrPath, as_path, make_dirs, write_text

FILE = "bad_steps.jsonl"
# A line holds the records of a whole batch.
_MAX_LINES = 100


class BadSteps:
    """Looks for skipped updates among those of a run.

    Args:
      max_in_a_row: so many skipped ones in a row stop the run.
      model_dir: run directory, for bad_steps.jsonl; None writes nothing.
      records: gives the examples of the batch after so many updates, JSON-able.
    """

    def __init__(
        self,
        max_in_a_row: int,
        model_dir: StrPath | None = None,
        records: Callable[[int], Any] = lambda step: None,
    ):
        self._max, self._model_dir, self._records = max_in_a_row, model_dir, records
        self._in_a_row = 0

    def look(self, step: int, row: Mapping[str, Any]) -> None:
        """Looks at one update.

        Args:
          step: its number, from 1.
          row: its metrics, on the host.

        Raises:
          UserError: it is one skipped update too many in a row.
        """
        if not row["skipped"]:
            self._in_a_row = 0
            return
        self._in_a_row += 1
        self._write(step, row)
        if self._in_a_row >= self._max:
            bad = ", ".join(f"{name} = {row[name]}" for name in ("loss", "grad_norm"))
            finite = np.isfinite(row["loss"]) and np.isfinite(row["grad_norm"])
            what, more = ("a spike of the loss", "raise max_spike_sigmas, ") if finite else ("not finite", "")
            first = step - self._in_a_row + 1
            raise UserError(
                f"{what} at step {step}: {bad}; skipped in a row: {self._in_a_row} (from step {first} on), and "
                f"max_bad_steps is {self._max}. Lower learning_rate, set grad_clip_norm, {more}or look at the examples "
                f"that {FILE} names; running again goes on from the last checkpoint"
            )

    def _write(self, step: int, row: Mapping[str, Any]) -> None:
        if self._model_dir is None or jax.process_index() != 0:
            return
        path = as_path(self._model_dir) / FILE
        old = path.read_text().splitlines() if path.exists() else []
        # A run that goes on from a checkpoint meets its steps again.
        before = [line for line in old if json.loads(line)["step"] < step]
        # As text, since JSON has no number for them.
        values = {name: str(np.asarray(row[name])) for name in ("loss", "grad_norm")}
        line = json.dumps({"step": step, **values, "examples": self._records(step - 1)})
        make_dirs(self._model_dir)
        write_text(path, "\n".join([*before, line][-_MAX_LINES:]) + "\n")
