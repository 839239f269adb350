"""Records of ArrayRecord files in buckets, each read by a request for its bytes alone.

What was read stays on this machine in a file with holes, of the size of the one in the bucket, and a bit a record that
tells if it is there; see `files.copies` for how much.
"""

import contextlib
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from imagen_jax.array_records.index import ENTRY, SUFFIX, cut, span
from imagen_jax.errors import UserError
from imagen_jax.files import copy_place, take_room, write_bytes
from imagen_jax.files.ranges import read_ranges

# A file that was not read before costs a few requests, two of them at a time.
_OPENED_AT_ONCE = 16


@dataclass(frozen=True)
class Wanted:
    """Records of one file.

    Args:
      path: the file.
      num_records: how many it must hold.
      indices: numbers of the records wanted, in any order.
    """

    path: str
    num_records: int
    indices: Sequence[int]


class RemoteRecords:
    """Reads records of files in buckets; several threads may.

    Args:
      fix: what to do about a damaged file, the end of a message.
    """

    def __init__(self, fix: str):
        self._fix = fix
        self._lock = threading.Lock()
        self._copies: dict[str, _Copy] = {}

    def read(self, wanted: Sequence[Wanted]) -> list[list[bytes]]:
        """The records, in the order wanted, those that are not on this machine all at once.

        Raises:
          UserError: a file or its index is missing, or a record is damaged.
          OSError: the bucket cannot be read.
        """
        try:
            return self._read(wanted)
        except (UserError, OSError):
            if not self._replaced(wanted):
                raise
        return self._read(wanted)

    def _replaced(self, wanted: Sequence[Wanted]) -> bool:
        """Forgets those of the files that another process has written anew since; tells if there are any."""
        with self._lock:
            changed = [
                path for path in {one.path for one in wanted} & self._copies.keys() if self._copies[path].is_old()
            ]
            for path in changed:
                del self._copies[path]
        return bool(changed)

    def _read(self, wanted: Sequence[Wanted]) -> list[list[bytes]]:
        found: list[list[bytes]] = []
        missing: list[tuple[int, int, _Copy, np.void]] = []
        for file, (one, copy) in enumerate(zip(wanted, self._opened(wanted), strict=True)):
            entries = copy.entries(one.indices)
            found.append([copy.read(number, entry) or b"" for number, entry in zip(one.indices, entries, strict=True)])
            missing += [
                (file, place, copy, entry)
                for place, entry in enumerate(entries)
                if len(found[file][place]) != entry["length"]
            ]
        if missing:
            for (file, place, copy, entry), record in zip(missing, self._fetch(wanted, missing), strict=True):
                found[file][place] = record
                copy.keep(wanted[file].indices[place], entry)
        return found

    def close(self) -> None:
        """Forgets the files; a later read finds them again."""
        with self._lock:
            self._copies.clear()

    def _opened(self, wanted: Sequence[Wanted]) -> "list[_Copy]":
        """The copies of the files, those that are new opened at once."""
        with self._lock:
            known = {one.path: self._copies[one.path] for one in wanted if one.path in self._copies}
        new = list({one.path: one for one in wanted if one.path not in known}.values())
        if new:
            with ThreadPoolExecutor(min(_OPENED_AT_ONCE, len(new))) as threads:
                opened = list(threads.map(self._open, new))
            with self._lock:
                for one, copy in zip(new, opened, strict=True):
                    known[one.path] = self._copies.setdefault(one.path, copy)
        return [known[one.path] for one in wanted]

    def _open(self, wanted: Wanted) -> "_Copy":
        try:
            return _Copy(wanted, self._fix)
        except FileNotFoundError as error:
            raise UserError(f"shard {wanted.path} or its {SUFFIX} is missing; {self._fix}") from error

    def _fetch(self, wanted: Sequence[Wanted], missing: "list[tuple[int, int, _Copy, np.void]]") -> list[bytes]:
        spans = [span(entry) for _, _, _, entry in missing]
        paths = [wanted[file].path for file, _, _, _ in missing]
        contents = read_ranges(paths, spans)
        records = []
        for (file, place, copy, entry), content, (start, _) in zip(missing, contents, spans, strict=True):
            if content is None:
                raise UserError(f"shard {wanted[file].path} is missing; {self._fix}")
            record = cut(content, entry)
            if record is None:
                raise UserError(
                    f"shard {wanted[file].path} is damaged (record {wanted[file].indices[place]}); {self._fix}"
                )
            copy.write(start, content)
            records.append(record)
        take_room(sum(len(content or b"") for content in contents))
        return records


class _Copy:
    """A copy of a part of one file on this machine, and of its index, which is of the same version.

    Args:
      wanted: names the file.
      fix: what to do about a damaged index.

    Raises:
      FileNotFoundError: there is no such file, or no index.
      UserError: the index is not of that many records.
    """

    def __init__(self, wanted: Wanted, fix: str):
        self._path, self._num_records, self._fix = wanted.path, wanted.num_records, fix
        self._place = copy_place(wanted.path)
        self._there = self._place.with_name(f"{self._place.name}.there")
        self._index = self._place.with_name(f"{self._place.name}{SUFFIX}")
        if not self._index.exists():
            self._fetch_index()

    def _fetch_index(self) -> None:
        url, expected = f"{self._path}{SUFFIX}", self._num_records * ENTRY.itemsize
        (content,) = read_ranges([url], [(0, None)])
        if content is None:
            raise FileNotFoundError(url)
        if len(content) != expected:
            raise UserError(f"{url} is {len(content)} bytes long; expected {expected}; {self._fix}")
        take_room(len(content))
        self._index.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # Another process needed the room; it is fetched again.
            write_bytes(self._index, content)

    def is_old(self) -> bool:
        """Tells if the file was replaced since."""
        try:
            return copy_place(self._path) != self._place
        except FileNotFoundError:
            return False

    def entries(self, indices: Sequence[int]) -> np.ndarray:
        """Index entries of records."""
        while True:
            # Copies go when they are unused for long, or another process needs their room.
            with contextlib.suppress(FileNotFoundError), open(self._index, "rb") as file:
                os.utime(file.fileno())
                size = ENTRY.itemsize
                return np.frombuffer(b"".join(os.pread(file.fileno(), size, index * size) for index in indices), ENTRY)
            self._fetch_index()

    def read(self, number: int, entry: np.void) -> bytes | None:
        """The record, None where it is not here whole."""
        try:
            with open(self._there, "rb") as bits:
                if not os.pread(bits.fileno(), 1, number // 8)[0] >> number % 8 & 1:
                    return None
            with open(self._place, "rb") as file:
                start, end = span(entry)
                os.utime(file.fileno())
                return cut(os.pread(file.fileno(), end - start, start), entry)
        except (FileNotFoundError, IndexError):
            return None

    def write(self, start: int, content: bytes) -> None:
        """Keeps bytes of the file."""
        _write_at(self._place, start, content)

    def keep(self, number: int, entry: np.void) -> None:
        """Notes that a record is here."""
        # Two processes may lose one of two notes of one byte; that record is fetched once more.
        before = b"\0"
        with contextlib.suppress(FileNotFoundError):
            with open(self._there, "rb") as bits:
                before = os.pread(bits.fileno(), 1, number // 8) or b"\0"
        _write_at(self._there, number // 8, bytes([before[0] | 1 << number % 8]))


def _write_at(path: Path, start: int, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        os.pwrite(descriptor, content, start)
    finally:
        os.close(descriptor)
