"""The inputs that a build refuses, and those that it repairs."""

import dataclasses
import json
from pathlib import Path
from typing import NamedTuple

from imagen_jax.data.raw import Rejection
from imagen_jax.errors import UserError, listed

REJECTS, REPAIRS = "rejects.jsonl", "repairs.jsonl"
_FIRST_REASONS = 3


class Counts(NamedTuple):
    """Refused inputs, and accepted ones of which a part could not be used."""

    rejected: int
    repaired: int


class Rejects:
    """rejects.jsonl and repairs.jsonl while they are written.

    Args:
      scratch: directory of the files.
    """

    def __init__(self, scratch: Path):
        self._files = {name: (scratch / name).open("w") for name in (REJECTS, REPAIRS)}
        self._counts, self._first = dict.fromkeys(self._files, 0), list[str]()

    def __enter__(self) -> "Rejects":
        return self

    def __exit__(self, *unused: object) -> None:
        for file in self._files.values():
            file.close()

    @property
    def counts(self) -> Counts:
        """Numbers of both so far."""
        return Counts(self._counts[REJECTS], self._counts[REPAIRS])

    def _write(self, name: str, one: Rejection) -> None:
        self._counts[name] += 1
        self._files[name].write(json.dumps(dataclasses.asdict(one)) + "\n")

    def add(self, one: Rejection) -> None:
        """Writes the line of a refused input."""
        self._write(REJECTS, one)
        if self.counts.rejected <= _FIRST_REASONS:
            self._first.append(f"{one.source}: {one.reason}")

    def add_repair(self, key: str, repair: str) -> None:
        """Writes the line of an accepted example, if a part of it could not be used."""
        if repair:
            self._write(REPAIRS, Rejection(source=key, reason=repair))

    def add_recurring(self, key: str) -> None:
        """Writes the line of an example whose key an earlier one has."""
        self.add(Rejection(source=key, reason="another example has the same key"))

    def nothing_accepted(self, name: str) -> UserError:
        """Makes the error for a corpus `name` of which every input was refused."""
        return UserError(
            f"no usable example among {self.counts.rejected} for corpus {name!r}; nothing was written. "
            "Check captions, files and min_size. "
            f"First refusals: {listed(self._first) or 'none, the source is empty'}"
        )
