"""Files that the steps of a pipeline hand to each other in a folder of the shared file system.

A worker may be killed and its work done again, even twice at once: every file is written beside and then renamed.
"""

import glob
import json
import os
import pickle
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam

from imagen_jax.array_records import open_records
from imagen_jax.data.records import SplitWriter

_BATCH = 64


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


def save_items(path: Path, items: Iterable[Any]) -> None:
    """Writes things that pickle, for workers to take by number."""
    write_records(path, (pickle.dumps(item) for item in items))


def load_item(path: Path, number: int) -> Any:
    """One of them."""
    return pickle.loads(next(read_records(path, [number])))


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
