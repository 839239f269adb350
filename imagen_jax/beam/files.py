"""Files that the steps of a pipeline hand to each other in a folder of the shared file system.

A worker may be killed and its work done again, even twice at once: every file is written beside and then renamed.
They hold plain data: what another user of the file system put there could be wrong, and could not run.
"""

import dataclasses
import glob
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
import msgpack
import numpy as np

from imagen_jax.array_records import open_records
from imagen_jax.data.raw import RawExample, Rejection
from imagen_jax.data.records import SplitWriter
from imagen_jax.errors import UserError

_BATCH = 64
_ARRAY = 1
_KINDS: dict[int, type] = {2: RawExample, 3: Rejection}


def write_records(path: Path, records: Iterable[bytes]) -> dict[str, Any] | None:
    """Writes a shard of a corpus; returns its entry in the manifest, None where there are no records."""
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=path.parent) as own:
        writer = SplitWriter(Path(own), "shard", 2**62)
        for record in records:
            writer.write(record)
        for entry in writer.finish()["shards"]:
            index = entry["index"]
            index_name = path.name + index["file"].removeprefix(entry["file"])
            os.replace(Path(own, index["file"]), path.with_name(index_name))
            os.replace(Path(own, entry["file"]), path)
            return {**entry, "file": path.name, "index": {**index, "file": index_name}}
    return None


def read_records(path: Path, numbers: Sequence[int]) -> Iterator[bytes]:
    """Records of such a file by their numbers, in the order given."""
    reader = open_records(path)
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


def save_items(path: Path, items: Iterable[Any]) -> None:
    """Writes things that `packed` takes, for workers to read by number."""
    write_records(path, map(packed, items))


def load_item(path: Path, number: int) -> Any:
    """One of them."""
    return unpacked(next(read_records(path, [number])))


class WriteLines(beam.PTransform):
    """Ends a branch of a pipeline: JSON-able elements as lines that `read_lines` reads.

    Args:
      prefix: path that their files' names begin with.
    """

    def __init__(self, prefix: Path):
        super().__init__()
        self._prefix = str(prefix)

    def expand(self, elements: beam.PCollection) -> Any:
        """The lines."""
        return elements | beam.Map(json.dumps) | beam.io.WriteToText(self._prefix, ".jsonl")


def read_lines(prefix: Path) -> Iterator[Any]:
    """Reads the lines that `WriteLines` wrote, in any order."""
    for name in sorted(glob.glob(f"{glob.escape(str(prefix))}-*-of-*.jsonl")):
        with open(name, encoding="utf-8") as file:
            yield from map(json.loads, file)
