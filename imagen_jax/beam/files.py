"""Files that the steps of a pipeline hand to each other in a folder that all its workers see, here or in a bucket.

A worker may be killed and its work done again, even twice at once: every file has a name and a content that follow from
the work alone, and is whole or absent. They hold plain data: what another user of the folder put there could be wrong,
and could not run.
"""

import contextlib
import dataclasses
import json
import os
import secrets
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
import msgpack
import numpy as np

from imagen_jax.array_records import RecordFiles, Wanted, open_records
from imagen_jax.data.raw import RawExample, Rejection
from imagen_jax.data.records import SplitWriter
from imagen_jax.errors import UserError
from imagen_jax.files import (
    LEASE_S,
    AnyPath,
    Lock,
    file_system,
    files_under,
    is_remote,
    make_dirs,
    move_file,
    remove_tree,
    whole_file,
)

_BATCH = 64
# Files that lines are divided among: as many workers write them at once.
_LINE_FILES = 64
_LOCK = ".lock"
_ARRAY = 1
_KINDS: dict[int, type] = {2: RawExample, 3: Rejection}


@contextlib.contextmanager
def shared_folder(parent: AnyPath, prefix: str) -> Iterator[AnyPath]:
    """A new folder in `parent`, of a name that begins with `prefix`, which goes with all in it when the block ends.

    A lock beside it tells that this process is at work; see `remove_abandoned`.
    """
    folder = parent / f"{prefix}{secrets.token_hex(8)}"
    make_dirs(parent)
    lock = Lock(_lock_of(folder))
    lock.acquire()
    try:
        if not is_remote(folder):
            make_dirs(folder)
        yield folder
        remove_tree(folder)
    except BaseException:
        with contextlib.suppress(Exception):  # What went wrong first is told.
            remove_tree(folder)
        raise
    finally:
        with contextlib.suppress(Exception):  # It is given up soon, or with this process.
            lock.release()


def remove_abandoned(parent: AnyPath, prefix: str) -> None:
    """Removes folders that `shared_folder` made in `parent` for processes that were killed since.

    Args:
      parent: where they are; it need not exist.
      prefix: of their names.

    Raises:
      OSError: one cannot be removed.
    """
    if is_remote(parent):
        places = {name.partition("/")[0] for name in files_under(parent)}
    else:
        places = {path.name for path in parent.iterdir()} if parent.is_dir() else set()
    for name in sorted({place.removesuffix(_LOCK) for place in places if place.startswith(prefix)}):
        lock = Lock(_lock_of(parent / name))
        # In a bucket the lease of a process of another machine has to be seen unchanged for a while.
        if lock.acquire(LEASE_S + 5 if is_remote(parent) else 0.0, patient=False):
            remove_tree(parent / name)
            lock.release()


def _lock_of(folder: AnyPath) -> AnyPath:
    return folder.parent / f"{folder.name}{_LOCK}"


def write_records(path: AnyPath, records: Iterable[bytes]) -> dict[str, Any] | None:
    """Writes a shard of a corpus; returns its entry in the manifest, None where there are no records."""
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=None if is_remote(path) else path.parent) as own:
        writer = SplitWriter(Path(own), "shard", 2**62)
        for record in records:
            writer.write(record)
        for entry in writer.finish()["shards"]:
            index = entry["index"]
            index_name = path.name + index["file"].removeprefix(entry["file"])
            move_file(Path(own, index["file"]), path.parent / index_name)
            move_file(Path(own, entry["file"]), path)
            return {**entry, "file": path.name, "index": {**index, "file": index_name}}
    return None


def read_records(path: AnyPath, numbers: Sequence[int]) -> Iterator[bytes]:
    """Most of the records of such a file by their numbers, in the order given; one in a bucket is read whole."""
    with tempfile.TemporaryDirectory() as own:
        local = os.fspath(path)
        if is_remote(path):
            local = os.path.join(own, path.name)
            file_system(path).get_file(os.fspath(path), local)
        reader = open_records(local)
        for start in range(0, len(numbers), _BATCH):
            yield from reader.read(list(numbers[start : start + _BATCH]))


def packed(item: Any) -> bytes:
    """Plain data as bytes: what is read back is data too, whoever wrote the file, and runs nothing.

    Args:
      item: None, booleans, numbers, text, bytes, lists and dicts of such, uint8 arrays, RawExample and Rejection.
        Tuples come back as lists, paths as text.

    Raises:
      UserError: it holds anything else.
    """
    try:
        # File names that are no UTF-8 are text with lone surrogates in Python.
        return msgpack.packb(item, default=_extension, unicode_errors="surrogatepass")
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"a part of the source cannot be handed to workers ({error}); its arguments must be plain data: text, "
            "numbers, lists, uint8 arrays, RawExample"
        ) from error


def unpacked(data: bytes) -> Any:
    """Contents of what `packed` made.

    Raises:
      UserError: these are other bytes.
    """
    try:
        return msgpack.unpackb(data, ext_hook=_from_extension, unicode_errors="surrogatepass", strict_map_key=False)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise UserError(
            f"a file that steps of the pipeline hand on is damaged ({error}); start the same command again"
        ) from error


def _extension(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, np.ndarray) and value.dtype == np.uint8:
        return msgpack.ExtType(_ARRAY, packed([list(value.shape), value.tobytes()]))
    for code, kind in _KINDS.items():
        if type(value) is kind:
            return msgpack.ExtType(code, packed([getattr(value, field.name) for field in dataclasses.fields(kind)]))
    raise TypeError(f"got a {type(value).__name__}")


def _from_extension(code: int, data: bytes) -> Any:
    fields = unpacked(data)
    if code == _ARRAY:
        shape, values = fields
        return np.frombuffer(values, np.uint8).reshape(shape)
    kind: Any = _KINDS.get(code)
    if kind is None:
        raise ValueError(f"kind {code}")
    return kind(**dict(zip([field.name for field in dataclasses.fields(kind)], fields, strict=True)))


def save_items(path: AnyPath, items: Iterable[Any]) -> None:
    """Writes things that `packed` takes, for workers to read by number."""
    write_records(path, map(packed, items))


def load_item(path: AnyPath, number: int, num_items: int) -> Any:
    """One of them; of a file in a bucket no more than that is read.

    Args:
      path: the file.
      number: of the thing.
      num_items: how many the file holds.
    """
    files = RecordFiles("start the same command again")
    return unpacked(files.read([Wanted(os.fspath(path), num_items, [number])])[0][0])


class WriteLines(beam.PTransform):
    """Ends a branch of a pipeline: JSON-able elements as lines that `read_lines` reads.

    Args:
      folder: of the files with the lines, and of nothing else.
    """

    def __init__(self, folder: AnyPath):
        super().__init__()
        self._folder = folder

    def expand(self, elements: beam.PCollection) -> Any:
        """The lines."""
        return (
            elements
            | beam.Map(json.dumps)
            | "divide" >> beam.Map(_with_file)
            | beam.GroupByKey()
            | "write" >> beam.Map(_write_lines, folder=self._folder)
        )


def _with_file(line: str) -> tuple[int, str]:
    return zlib.crc32(line.encode()) % _LINE_FILES, line


def _write_lines(group: tuple[int, Iterable[str]], folder: AnyPath) -> None:
    number, lines = group
    if not is_remote(folder):
        make_dirs(folder)
    with whole_file(folder / f"{number:02d}.jsonl") as file:
        file.writelines(f"{line}\n".encode() for line in lines)


def read_lines(folder: AnyPath) -> Iterator[Any]:
    """Reads the lines that `WriteLines` wrote, in any order."""
    for name in files_under(folder):
        with (folder / name).open("r", encoding="utf-8") as file:
            yield from map(json.loads, file)
