"""The inputs that a build refuses, and those that it repairs."""

import contextlib
import dataclasses
import json
from collections import Counter
from typing import Any, BinaryIO, NamedTuple

from imagen_jax.data.raw import Rejection
from imagen_jax.errors import UserError, listed
from imagen_jax.files import AnyPath, whole_file

REJECTS, REPAIRS = "rejects.jsonl", "repairs.jsonl"
_FIRST_REASONS = 3


class Counts(NamedTuple):
    """Refused inputs, accepted ones of which a part could not be used, and the refused ones by what dropped them."""

    rejected: int
    repaired: int
    dropped: dict[str, int]


class Rejects:
    """rejects.jsonl and repairs.jsonl while they are written.

    They take their places when the block ends without an error.

    Args:
      folder: of the files.
    """

    def __init__(self, folder: AnyPath):
        self._folder, self._stack = folder, contextlib.ExitStack()
        self._files: dict[str, BinaryIO] = {}
        self._counts, self._first = dict.fromkeys((REJECTS, REPAIRS), 0), list[str]()
        self._dropped: Counter[str] = Counter()

    def __enter__(self) -> "Rejects":
        self._files = {name: self._stack.enter_context(whole_file(self._folder / name)) for name in self._counts}
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    @property
    def counts(self) -> Counts:
        """Numbers so far."""
        return Counts(self._counts[REJECTS], self._counts[REPAIRS], dict(sorted(self._dropped.items())))

    def _write(self, name: str, one: Rejection) -> None:
        self._counts[name] += 1
        fields = {field: value for field, value in dataclasses.asdict(one).items() if value or field != "dropped_by"}
        self._files[name].write(f"{json.dumps(fields)}\n".encode())

    def add(self, one: Rejection) -> None:
        """Writes the line of a refused input."""
        self._write(REJECTS, one)
        if one.dropped_by:
            self._dropped[one.dropped_by] += 1
        if self.counts.rejected <= _FIRST_REASONS:
            self._first.append(f"{one.source}: {one.reason}")

    def add_repair(self, key: str, repair: str) -> None:
        """Writes the line of an accepted example, if a part of it could not be used."""
        if repair:
            self._write(REPAIRS, Rejection(source=key, reason=repair))

    def add_recurring(self, key: str) -> None:
        """Writes the line of an example whose key an earlier one has."""
        self.add(Rejection(source=key, reason="another example has the same key"))

    def add_dropped(self, key: str, problem: tuple[str, str]) -> None:
        """Writes the line of an example that a screen drops, with the reason and by what."""
        self.add(Rejection(source=key, reason=problem[0], dropped_by=problem[1]))

    def nothing_accepted(self, name: str) -> UserError:
        """Makes the error for a corpus `name` of which every input was refused."""
        return UserError(
            f"no usable example among {self.counts.rejected} for corpus {name!r}; nothing was written. "
            "Check captions, files, min_size and filters. "
            f"First refusals: {listed(self._first) or 'none, the source is empty'}"
        )
