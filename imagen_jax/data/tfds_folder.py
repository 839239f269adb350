"""Pairs of a dataset that TensorFlow Datasets has prepared: DATA_DIR/name/version, here or in a bucket.

Its shards are read one by one, each a part of the source; one in a bucket is copied here first, so TensorFlow's own way
to buckets is not taken. A record is a tf.train.Example, in which images stand as they were encoded.
"""

import functools
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from imagen_jax.array_records import open_records
from imagen_jax.checks import check_path
from imagen_jax.data.arrow import examples_of, in_split
from imagen_jax.data.digests import md5_of
from imagen_jax.data.metadata import captions_of, kept_facts
from imagen_jax.data.raw import RawExample, Rejection, Source, check_val_fraction
from imagen_jax.errors import UserError
from imagen_jax.files import StrPath, as_path, files_under, local_copy, local_folder

_INFO, _FEATURES = "dataset_info.json", "features.json"
_ARRAY_RECORD, _FORMATS = "array_record", ("array_record", "tfrecord")
_READ_AT_ONCE = 64


def holds_tfds(folder: StrPath) -> bool:
    """Tells if a folder is one version of a prepared dataset."""
    return all((as_path(folder) / name).is_file() for name in (_INFO, _FEATURES))


def tfds_source(
    folder: StrPath,
    *,
    image_column: str = "image",
    caption_column: str | None = None,
    val_fraction: float = 0.0,
    seed: int = 0,
) -> Source:
    """The examples of all splits of a prepared dataset, under the names of the splits.

    Keys are SPLIT-SHARD-NUMBER. An example with several captions is as many. Numbers and texts of other features are
    kept as meta, labels by their names.

    Args:
      folder: the one of a version, which holds dataset_info.json.
      image_column: a feature of images.
      caption_column: a feature of text, or of a sequence of texts; features in others by a path, as "captions/text".
        None takes "caption" if there is one, "text" otherwise.
      val_fraction: part of the images of split "train", in [0, 1), that goes to split "val", chosen by a hash of the
        image.
      seed: of that choice.

    Raises:
      UserError: no such folder, a file or feature is missing, or the files are of another format than ArrayRecord and
        TFRecord. An example that cannot be used is a rejection.
    """
    check_val_fraction(val_fraction)
    info, kind = _opened(folder)
    image, caption = _columns(folder, info.features, image_column, caption_column)
    labels = {name: feature.names for name, feature in info.features.items() if hasattr(feature, "int2str")}
    digest, parts, total = hashlib.sha256(), [], 0
    for split, shard, path, count in _shards(folder, info, info.splits):
        digest.update(repr((split, os.path.basename(path), md5_of(path))).encode())
        place = (split, f"{split}-{shard:05d}", count)
        parts.append(functools.partial(_shard_part, path, kind, place, (image, caption), labels, val_fraction, seed))
        total += count
    return Source(
        parts=parts,
        num_examples=total,
        settings={
            "kind": "tfds",
            "digest": digest.hexdigest(),
            "columns": {"image": image, "caption": caption},
            "val_fraction": val_fraction,
            "seed": seed,
        },
    )


def tfds_examples(folder: StrPath, splits: Sequence[str]) -> Iterator[dict[str, list[Any]]]:
    """Examples of some splits of a prepared dataset as they are stored, one shard here at a time.

    Args:
      folder: the one of a version, which holds dataset_info.json.
      splits: their names, all of them examples in this order.

    Returns:
      Values of each feature by its name, of features in others by a path, as "captions/text": ints, floats or bytes,
      images encoded.

    Raises:
      UserError: no such folder or split, or a file is missing, damaged or of another format.
    """
    import tensorflow as tf
    from google.protobuf.message import DecodeError

    info, kind = _opened(folder)
    absent = [split for split in splits if split not in info.splits]
    if absent:
        raise UserError(f"dataset {folder} has no split {absent[0]!r}; it has {', '.join(info.splits)}")
    for _, _, path, count in _shards(folder, info, splits):
        number = 0
        try:
            for record in _records(local_copy(path), kind):
                yield _values(record)
                number += 1
            what = f"{number} examples can be read, of {count}"
        except (tf.errors.OpError, RuntimeError, DecodeError) as error:
            what = str(error).partition("\n")[0]
            number = -1
        if number != count:
            raise UserError(f"{path} is damaged ({what}); copy it again")


def _opened(folder: StrPath) -> tuple[Any, str]:
    """TFDS's description of a dataset, and the format of its files."""
    check_path("the dataset", folder)
    info = _info(folder, [name for name in files_under(folder) if name.endswith((".json", ".txt"))])
    kind = info.file_format.value if info.file_format is not None else "unknown"
    if kind not in _FORMATS:
        raise UserError(f"dataset {folder} is in files of {kind}; expected {' or '.join(_FORMATS)}: prepare it again")
    return info, kind


def _shards(folder: StrPath, info: Any, splits: Iterable[str]) -> Iterator[tuple[str, int, str, int]]:
    """Split, number in it, path and examples of each shard."""
    there = files_under(folder)
    for split in splits:
        found = info.splits[split]
        for shard, (name, count) in enumerate(zip(found.filenames, found.shard_lengths, strict=True)):
            if name not in there:
                raise UserError(f"dataset {folder} lacks {name}, which {_INFO} names; copy or prepare it again")
            yield split, shard, f"{os.fspath(folder).rstrip('/')}/{name}", count


def _info(folder: StrPath, names: list[str]) -> Any:
    import tensorflow_datasets as tfds
    from google.protobuf import json_format

    try:
        return tfds.builder_from_directory(local_folder(folder, names)).info
    except (json_format.Error, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        what = str(error).partition("\n")[0][:200]
        raise UserError(f"{folder} is no dataset that TFDS can open ({what}); prepare it again") from error


def _columns(folder: StrPath, features: Any, image: str, caption: str | None) -> tuple[str, str]:
    import tensorflow_datasets as tfds

    if caption is None:
        caption = "text" if "text" in features and "caption" not in features else "caption"
    for role, name, fits in (
        ("image", image, lambda one: isinstance(one, tfds.features.Image)),
        ("caption", caption, lambda one: isinstance(one, tfds.features.Text)),
    ):
        found = features
        for part in name.split("/"):
            found = getattr(found, "feature", found)  # What is in a sequence.
            found = found[part] if isinstance(found, tfds.features.FeaturesDict) and part in found else None
        if found is None or not fits(getattr(found, "feature", found)):
            raise UserError(
                f"dataset {folder} has no {'images' if role == 'image' else 'texts'} in feature {name!r}; it has "
                f"{', '.join(sorted(features))}; name another by --{role}_column, one in others as captions/text"
            )
    return image, caption


def _records(path: str, kind: str) -> Iterator[bytes]:
    if kind == _ARRAY_RECORD:
        reader = open_records(path)
        for start in range(0, reader.num_records(), _READ_AT_ONCE):
            yield from reader.read(list(range(start, min(start + _READ_AT_ONCE, reader.num_records()))))
        return
    import tensorflow as tf

    yield from tf.data.TFRecordDataset(path).as_numpy_iterator()


def _values(record: bytes) -> dict[str, list[Any]]:
    """The features of a record; DecodeError where it is no tf.train.Example."""
    import tensorflow as tf

    return {
        name: list(getattr(value, value.WhichOneof("kind")).value)
        for name, value in tf.train.Example.FromString(record).features.feature.items()
        if value.WhichOneof("kind")
    }


def _shard_part(
    path: str,
    kind: str,
    place: tuple[str, str, int],
    columns: tuple[str, str],
    labels: Mapping[str, list[str]],
    val_fraction: float,
    seed: int,
) -> Iterator[RawExample | Rejection]:
    import tensorflow as tf

    split, prefix, count = place
    number = -1
    try:
        for number, record in enumerate(_records(local_copy(path), kind)):
            for one in _record_examples(record, f"{prefix}-{number:08d}", columns, labels):
                yield one if isinstance(one, Rejection) else in_split(one, split, val_fraction, seed)
        if number + 1 == count:
            return
        what = f"{number + 1} examples can be read, of {count}"
    except (tf.errors.OpError, RuntimeError) as error:
        what = str(error).partition("\n")[0]
    reason = f"the file is damaged behind {number + 1} examples ({what}); copy it again"
    yield Rejection(source=Path(path).name, reason=reason)


def _record_examples(
    record: bytes, key: str, columns: tuple[str, str], labels: Mapping[str, list[str]]
) -> Iterator[RawExample | Rejection]:
    from google.protobuf.message import DecodeError

    try:
        found = _values(record)
        image, texts = (found.pop(name, []) for name in columns)
        captions = captions_of([text.decode() for text in texts])
    except (DecodeError, ValueError, AttributeError) as error:
        yield Rejection(source=key, reason=f"the example cannot be used: {error}")
        return
    if len(image) != 1:
        yield Rejection(source=key, reason=f"{len(image)} images; expected one")
        return
    facts = {name: _fact(values[0], labels.get(name)) for name, values in found.items() if len(values) == 1}
    yield from examples_of(key, image[0], captions, kept_facts(facts))


def _fact(value: Any, names: list[str] | None) -> Any:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return names[value] if names is not None and 0 <= value < len(names) else value
