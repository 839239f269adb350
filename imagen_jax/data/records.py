"""The corpus directory: ArrayRecord shards of tf.train.Example and the manifest corpus.json.

    corpus.json                            written last: its presence means that the corpus is whole
    <split>-SSSSS-of-NNNNN.array_record    key, image (PNG, JPEG or WebP), caption, height, width, meta (JSON)
    ….array_record.index                   where each record lies, for reading from a bucket
    rejects.jsonl                          one line a refused input
    vocabulary.model                       SentencePiece model, when trained from the captions

Record g of a split is the g-th over its shards in their order.
"""

import bisect
import dataclasses
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
from array_record.python.array_record_module import ArrayRecordWriter

from imagen_jax.array_records import SUFFIX, RecordFiles, Wanted, open_records, write_index
from imagen_jax.checks import check_path
from imagen_jax.data.sizes import SIZES_FORM, Size, SizeRange, ranges_of
from imagen_jax.errors import UserError, file_errors
from imagen_jax.files import (
    FILE_NAME,
    StrPath,
    as_path,
    check_content,
    files_under,
    local_copy,
    read_json,
    sha256_of_file,
)

FORMAT_VERSION = 1
MANIFEST = "corpus.json"
_SHARD_FORM = {"file": FILE_NAME, "num_examples": int, "num_bytes": int, "sha256": str}
_MANIFEST_FORM = {
    "image_size": int,
    "num_rejected": int,
    "splits": {...: {"num_examples": int, "shards": [_SHARD_FORM]}},
}

# Images are compressed already, and single-record groups make random access cheap.
_WRITER_OPTIONS = "group_size:1,uncompressed"
_READ_AT_ONCE = 256
_FIX = "copy it again or rebuild the corpus"

PARSE_SPEC = {
    "key": tf.io.FixedLenFeature([], tf.string),
    "image": tf.io.FixedLenFeature([], tf.string),
    "caption": tf.io.FixedLenFeature([], tf.string),
    "orientation": tf.io.FixedLenFeature([], tf.int64, default_value=1),
}
# Of a corpus of sizes besides: height and width before the picture got its size.
SIZED_PARSE_SPEC = {**PARSE_SPEC, "original_size": tf.io.FixedLenFeature([2], tf.int64)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """One example of a corpus.

    Args:
      key: stable identity, UTF-8.
      image: encoded PNG, JPEG or WebP.
      caption: the text.
      height, width: size of the upright image, in pixels.
      meta: JSON text, "" if none.
      orientation: 1 to 8 as EXIF counts them, of a kept original: how its pixels are turned when it is read.
      original_size: height and width before the picture got its size, in a corpus of sizes.
    """

    key: bytes
    image: bytes
    caption: str
    height: int
    width: int
    meta: str = ""
    orientation: int = 1
    original_size: Size | None = None


def encode_record(record: Record) -> bytes:
    """Serialises a record as a tf.train.Example; equal records give equal bytes."""

    def text(value: bytes) -> tf.train.Feature:
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    def number(*values: int) -> tf.train.Feature:
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))

    feature = {
        "key": text(record.key),
        "image": text(record.image),
        "caption": text(record.caption.encode()),
        "height": number(record.height),
        "width": number(record.width),
        "meta": text(record.meta.encode()),
    }
    if record.orientation != 1:
        feature["orientation"] = number(record.orientation)
    if record.original_size is not None:
        feature["original_size"] = number(*record.original_size)
    example = tf.train.Example(features=tf.train.Features(feature=feature))
    return example.SerializeToString(deterministic=True)


def decode_record(serialized: bytes) -> Record:
    """Reads what `encode_record` wrote."""
    feature = tf.train.Example.FromString(serialized).features.feature
    original = tuple(feature["original_size"].int64_list.value) if "original_size" in feature else ()
    return Record(
        key=feature["key"].bytes_list.value[0],
        image=feature["image"].bytes_list.value[0],
        caption=feature["caption"].bytes_list.value[0].decode(),
        height=feature["height"].int64_list.value[0],
        width=feature["width"].int64_list.value[0],
        meta=feature["meta"].bytes_list.value[0].decode(),
        orientation=feature["orientation"].int64_list.value[0] if "orientation" in feature else 1,
        original_size=(original[0], original[1]) if original else None,
    )


def shard_name(split: str, shard: int, num_shards: int) -> str:
    """File name of shard `shard` of `num_shards` of a split."""
    return f"{split}-{shard:05d}-of-{num_shards:05d}.array_record"


def renamed(shard: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The entry of a shard in the manifest, under another file name."""
    return {**shard, "file": name, "index": {**shard["index"], "file": f"{name}{SUFFIX}"}}


class ShardWriter:
    """Writes one shard file and its index.

    Args:
      path: of the file, on this machine.

    Attributes:
      num_examples, num_bytes: records so far, and the bytes in them.
    """

    def __init__(self, path: Path):
        self._path, self.num_examples, self.num_bytes = path, 0, 0
        with file_errors():
            self._writer = ArrayRecordWriter(str(path), _WRITER_OPTIONS)

    def write(self, serialized: bytes) -> None:
        """Appends one record."""
        with file_errors():
            self._writer.write(serialized)
        self.num_examples += 1
        self.num_bytes += len(serialized)

    def close(self) -> dict[str, Any]:
        """Ends the file; returns the entry of the shard in the manifest."""
        with file_errors():
            self._writer.close()
        return {
            "file": self._path.name,
            "num_examples": self.num_examples,
            "num_bytes": self._path.stat().st_size,
            "sha256": sha256_of_file(self._path),
            "index": write_index(self._path, self.num_examples),
        }


class SplitWriter:
    """Writes the records of one split into numbered shards of a directory.

    Args:
      directory: where the shards are written; an existing directory.
      split: name of the split.
      examples_per_shard: records in a shard, at least 1.
    """

    def __init__(self, directory: Path, split: str, examples_per_shard: int):
        self._directory, self._split, self._per_shard = directory, split, examples_per_shard
        self._shards: list[dict[str, Any]] = []
        self._open: ShardWriter | None = None

    def write(self, serialized: bytes) -> None:
        """Appends one record."""
        if self._open is not None and self._open.num_examples == self._per_shard:
            self._close()
        if self._open is None:
            self._open = ShardWriter(self._directory / f"{self._split}-{len(self._shards):05d}")
        self._open.write(serialized)

    def _close(self) -> None:
        if self._open is not None:
            self._shards.append(self._open.close())
            self._open = None

    def finish(self) -> dict[str, Any]:
        """Closes the shards, gives them their final names and returns the manifest entry of the split."""
        self._close()
        shards = []
        for number, one in enumerate(self._shards):
            shard = renamed(one, shard_name(self._split, number, len(self._shards)))
            for old, new in ((one, shard), (one["index"], shard["index"])):
                os.replace(self._directory / old["file"], self._directory / new["file"])
            shards.append(shard)
        return {"num_examples": sum(shard["num_examples"] for shard in shards), "shards": shards}


def read_shard(path: StrPath) -> Iterator[bytes]:
    """Every record of one shard file, in order; one in a bucket is copied to this machine whole."""
    reader = open_records(local_copy(path))
    for index in range(reader.num_records()):
        yield reader.read([index])[0]


def read_manifest(directory: StrPath) -> dict[str, Any]:
    """The parsed corpus.json of a corpus directory.

    Raises:
      UserError: no such directory, no corpus.json in it, or one that cannot be read.
    """
    check_path("the corpus directory", directory)
    path = as_path(directory) / MANIFEST
    if not path.is_file():
        if not path.parent.is_dir():
            raise UserError(f"corpus directory {str(directory)!r} does not exist; build a corpus there first")
        raise UserError(
            f"{str(directory)!r} has no {MANIFEST}, so it holds no whole corpus "
            "(its build may have been interrupted); build it again"
        )
    try:
        manifest = read_json(path)
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); build the corpus again") from error
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if version != FORMAT_VERSION:
        raise UserError(f"{path} has format_version {version!r}; expected {FORMAT_VERSION}; build the corpus again")
    check_content(path, manifest, _MANIFEST_FORM, "build the corpus again")
    return manifest


class Corpus:
    """Random access to the records of a corpus directory.

    Args:
      directory: a corpus directory.

    Raises:
      UserError: not a corpus, or a shard is missing or cut short (the message names it).
    """

    def __init__(self, directory: StrPath):
        self.directory = as_path(directory)
        self.manifest: Mapping[str, Any] = read_manifest(directory)
        self._files = RecordFiles(_FIX)
        self._ends = {
            split: list(itertools.accumulate(shard["num_examples"] for shard in self._shards(split)))
            for split in self.splits
        }
        # One listing: a question a shard takes minutes where there are thousands of them in a bucket.
        sizes = files_under(self.directory)
        for shard in itertools.chain.from_iterable(self._shards(split) for split in self.splits):
            path, got = self.directory / shard["file"], sizes.get(shard["file"])
            if got is None:
                raise UserError(f"shard {path} is missing; {_FIX}")
            if got != shard["num_bytes"]:
                raise UserError(f"shard {path} is {got} bytes long; expected {shard['num_bytes']}; {_FIX}")

    @property
    def image_size(self) -> int:
        """Side of the square images, in pixels; of a corpus of sizes the nominal one (`data.sizes`)."""
        return self.manifest["image_size"]

    @property
    def keeps_originals(self) -> bool:
        """Tells if pictures may be JPEG files as they came: of any size, and turned."""
        return self.manifest.get("image_format") == "original"

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        return tuple(self.manifest["splits"])

    def _shards(self, split: str) -> Sequence[Mapping[str, Any]]:
        if split not in self.splits:
            raise UserError(
                f"split {split!r} is not in corpus {str(self.directory)!r}; choose one of {', '.join(self.splits)}"
            )
        return self.manifest["splits"][split]["shards"]

    def num_examples(self, split: str) -> int:
        """Number of records of a split.

        Raises:
          UserError: no such split.
        """
        return sum(shard["num_examples"] for shard in self._shards(split))

    def sizes(self, split: str) -> tuple[SizeRange, ...]:
        """Where the records of each size lie in a split; none of a corpus of squares.

        Raises:
          UserError: no such split, or the manifest counts other records of sizes than there are.
        """
        count, entry = self.num_examples(split), self.manifest["splits"][split]
        place = self.directory / MANIFEST
        check_content(place, entry.get("sizes", []), [SIZES_FORM], _FIX, f"sizes of split {split!r}")
        ranges = ranges_of(entry)
        if ranges and sum(one.count for one in ranges) != count:
            raise UserError(f"the sizes of split {split!r} in {place} do not count its {count} records; {_FIX}")
        return ranges

    def place_of(self, split: str, index: int) -> tuple[str, int]:
        """File of the shard that holds a record of a split, and the number of the record in it."""
        number = bisect.bisect_right(self._ends[split], index)
        shard = self._shards(split)[number]
        return shard["file"], index - self._ends[split][number] + shard["num_examples"]

    def read(self, split: str, indices: Sequence[int]) -> list[bytes]:
        """Serialised records by their indices in the split, in the order asked for.

        Args:
          split: name of a split.
          indices: each in [0, num_examples(split)); repeats allowed.

        Raises:
          UserError: no such split, or a shard that is damaged or cannot be opened (the message names it).
        """
        shards = self._shards(split)
        ends = self._ends[split]
        places: dict[int, list[int]] = {}
        for place, index in enumerate(indices):
            if not 0 <= index < ends[-1]:
                raise IndexError(f"record {index} of split {split!r} is outside [0, {ends[-1]})")
            places.setdefault(bisect.bisect_right(ends, index), []).append(place)
        records: list[bytes] = [b""] * len(indices)
        wanted = [
            Wanted(
                os.fspath(self.directory / shards[number]["file"]),
                shards[number]["num_examples"],
                [int(indices[place]) - ends[number] + shards[number]["num_examples"] for place in own],
            )
            for number, own in places.items()
        ]
        for own, found in zip(places.values(), self._files.read(wanted), strict=True):
            for place, record in zip(own, found, strict=True):
                records[place] = record
        return records

    def records(self, split: str) -> Iterator[Record]:
        """Every record of a split, in order."""
        count = self.num_examples(split)
        for start in range(0, count, _READ_AT_ONCE):
            yield from map(decode_record, self.read(split, range(start, min(start + _READ_AT_ONCE, count))))

    def captions(self) -> Iterator[tuple[bytes, str]]:
        """Key and caption of every record of every split, for the text encoder."""
        for split in self.splits:
            for record in self.records(split):
                yield record.key, record.caption

    @property
    def digest(self) -> str:
        """Names the contents: the SHA-256 of corpus.json, which holds that of every shard."""
        return sha256_of_file(self.directory / MANIFEST)

    def verify(self) -> None:
        """Reads every shard and compares its SHA-256 with the manifest.

        Raises:
          UserError: a shard differs (the message names it).
        """
        for shard in itertools.chain.from_iterable(self._shards(split) for split in self.splits):
            path = self.directory / shard["file"]
            if sha256_of_file(path) != shard["sha256"]:
                raise UserError(f"shard {path} differs from its SHA-256 in {MANIFEST}; {_FIX}")
