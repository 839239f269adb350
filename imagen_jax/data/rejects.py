"""The inputs that a build refuses."""

import dataclasses
import json
from pathlib import Path

from imagen_jax.data.raw import Rejection
from imagen_jax.errors import UserError

REJECTS = "rejects.jsonl"
_FIRST_REASONS = 3


class Rejects:
    """rejects.jsonl while it is written.

    Args:
      scratch: directory of the file.

    Attributes:
      count: refused inputs so far.
    """

    def __init__(self, scratch: Path):
        self._file = (scratch / REJECTS).open("w")
        self.count, self._first = 0, ""

    def __enter__(self) -> "Rejects":
        return self

    def __exit__(self, *unused: object) -> None:
        self._file.close()

    def add(self, one: Rejection) -> None:
        """Writes one line."""
        self.count += 1
        if self.count <= _FIRST_REASONS:
            self._first += f"\n  {one.source}: {one.reason}"
        self._file.write(json.dumps(dataclasses.asdict(one)) + "\n")

    def add_recurring(self, key: str) -> None:
        """Writes the line of an example whose key an earlier one has."""
        self.add(Rejection(source=key, reason="another example has the same key"))

    def nothing_accepted(self, name: str) -> UserError:
        """Makes the error for a corpus `name` of which every input was refused."""
        return UserError(
            f"no usable example among {self.count} for corpus {name!r}; nothing was written. "
            "Check captions, files and min_size. "
            f"First refusals:{self._first or ' none, the source is empty'}"
        )
