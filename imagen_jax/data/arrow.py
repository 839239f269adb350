"""Pairs in a folder that the library `datasets` wrote by save_to_disk, read without that library.

A Dataset is a folder of Arrow streams with state.json, which names them; a DatasetDict is a folder of such folders with
dataset_dict.json. Each stream is one part of the source; one in a bucket is copied here first.
"""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from imagen_jax.checks import check_path
from imagen_jax.data.digests import md5_of
from imagen_jax.data.lists import Columns, arrow_damage, fact_columns, image_in, require_columns
from imagen_jax.data.metadata import captions_of, kept_facts
from imagen_jax.data.raw import RawExample, Rejection, Source, check_val_fraction, split_of
from imagen_jax.errors import UserError
from imagen_jax.files import AnyPath, StrPath, as_path, is_file_name, local_copy, read_json

_STATE, _DICT = "state.json", "dataset_dict.json"
# Marks that no more batches follow.
_END = b"\xff\xff\xff\xff\0\0\0\0"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Stream:
    """An Arrow file: where it is, the split of its rows, and what stands before their keys."""

    path: str
    split: str
    prefix: str


def holds_arrow(folder: StrPath) -> bool:
    """Tells if a folder is one of save_to_disk."""
    return any((as_path(folder) / name).is_file() for name in (_STATE, _DICT))


def arrow_source(
    folder: StrPath,
    *,
    image_column: str = "image",
    caption_column: str | None = None,
    val_fraction: float = 0.0,
    seed: int = 0,
) -> Source:
    """The rows of a Dataset, or of all splits of a DatasetDict under their names; see the module.

    Keys are STEM-NUMBER by the file and the row in it, after the split's name in a DatasetDict. A row with a list of
    captions (see `metadata.captions_of`) is as many examples. Numbers and texts in other columns are kept as meta.

    Args:
      folder: the one that save_to_disk was given.
      image_column: structs of bytes and path, or bytes, or paths from the folder on.
      caption_column: None takes "caption" if there is one, "text" otherwise.
      val_fraction: part of the images of split "train", in [0, 1), that goes to split "val", chosen by a hash of the
        image.
      seed: of that choice.

    Raises:
      UserError: no such folder, or one that lacks a file or a column. A row that cannot be used is a rejection.
    """
    check_path("the dataset", folder)
    check_val_fraction(val_fraction)
    root = as_path(folder)
    if (root / _DICT).is_file():
        splits = _json(root / _DICT).get("splits")
        if not isinstance(splits, list) or not splits or not all(is_file_name(split) for split in splits):
            raise UserError(f"{root / _DICT} names no splits; save the dataset again")
        streams = [one for split in splits for one in _streams(root / split, split, f"{split}/")]
    else:
        streams = _streams(root, "train", "")
    columns = _columns(streams[0], image_column, caption_column)
    digest = hashlib.sha256()
    for stream in streams:
        digest.update(repr((stream.prefix, os.path.basename(stream.path), md5_of(stream.path))).encode())
    named = dataclasses.asdict(columns)
    return Source(
        parts=[
            functools.partial(_stream_part, one.path, one.split, one.prefix, named, val_fraction, seed)
            for one in streams
        ],
        num_examples=0,  # only reading them tells
        settings={
            "kind": "arrow",
            "digest": digest.hexdigest(),
            "columns": named,
            "val_fraction": val_fraction,
            "seed": seed,
        },
    )


def _json(path: AnyPath) -> dict[str, Any]:
    try:
        found = read_json(path)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; save the dataset again") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); save the dataset again") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is not a JSON object; save the dataset again")
    return found


def _streams(folder: AnyPath, split: str, prefix: str) -> list[_Stream]:
    state = _json(folder / _STATE)
    files = state.get("_data_files")
    found = [one.get("filename") if isinstance(one, dict) else None for one in files or ()]
    names = [str(name) for name in found if is_file_name(name)]
    if not names or len(names) < len(found):
        raise UserError(f"{folder / _STATE} names no data files of the folder; save the dataset again")
    if state.get("_indices_data_files"):
        raise UserError(f"{folder} is a selection of rows that is not flattened; call flatten_indices(), then save it")
    streams = [_Stream(path=os.fspath(folder / name), split=split, prefix=prefix) for name in names]
    for stream in streams:
        if not as_path(stream.path).is_file():
            raise UserError(f"{stream.path} is missing, which {_STATE} names; copy or save the dataset again")
    return streams


def _columns(stream: _Stream, image: str, caption: str | None) -> Columns:
    """The columns to read, which the first stream is found to have."""
    try:
        with _opened(local_copy(stream.path)) as reader:
            names = reader.schema.names
            kind = reader.schema.field(image).type if image in names else None
            fits = _holds_images(kind)
    except arrow_damage() as error:
        raise UserError(f"{stream.path} is not an Arrow stream ({error}); copy or save the dataset again") from error
    if caption is None:
        caption = "text" if "text" in names and "caption" not in names else "caption"
    columns = Columns(image=image, caption=caption)
    require_columns(stream.path, columns, names)
    if not fits:
        raise UserError(
            f"column {image} of {stream.path} holds {kind}; expected images (structs of bytes and path), bytes or "
            "paths; name another by --image_column, or cast it to datasets.Image()"
        )
    return columns


def _holds_images(kind: Any) -> bool:
    import pyarrow

    kinds = pyarrow.types
    if kind is None or not kinds.is_struct(kind):
        simple = (kinds.is_binary, kinds.is_large_binary, kinds.is_string, kinds.is_large_string)
        return kind is not None and any(is_kind(kind) for is_kind in simple)
    return bool({"bytes", "path"} & {kind.field(i).name for i in range(kind.num_fields)})


def _opened(path: str) -> Any:
    import pyarrow

    # Read, not mapped: what a damaged file says to lie behind its end would end the process.
    return pyarrow.ipc.open_stream(pyarrow.OSFile(path))


def _stream_part(
    path: str, split: str, prefix: str, named: Mapping[str, str], val_fraction: float, seed: int
) -> Iterator[RawExample | Rejection]:
    copy, row, columns = local_copy(path), 0, Columns(**named)
    stem, folder = prefix + Path(path).stem, os.path.dirname(path)
    try:
        with _opened(copy) as reader:
            require_columns(path, columns, reader.schema.names)
            names = [columns.image, columns.caption, *fact_columns(reader.schema, columns)]
            for batch in reader:
                wanted = batch.select(names)
                for number in range(batch.num_rows):
                    row += 1
                    for one in _row_examples(wanted.slice(number, 1), f"{stem}-{row:08d}", columns, folder):
                        yield one if isinstance(one, Rejection) else in_split(one, split, val_fraction, seed)
    except arrow_damage() as error:
        reason = f"the file is damaged behind row {row} ({error}); copy it again"
        yield Rejection(source=stem, reason=reason)
        return
    with open(copy, "rb") as file:
        file.seek(-len(_END), os.SEEK_END)
        if file.read() != _END:
            yield Rejection(source=stem, reason=f"the file ends without its end mark, behind row {row}; copy it again")


def _row_examples(batch: Any, key: str, columns: Columns, folder: str) -> Iterator[RawExample | Rejection]:
    import pyarrow

    try:
        # Without it, a damaged offset would end the process.
        batch.validate(full=True)
        (row,) = batch.to_pylist()
        image = image_in(row.pop(columns.image), folder)
        if image is None:
            yield Rejection(source=key, reason="no image: neither bytes nor a path")
            return
        captions = captions_of(row.pop(columns.caption))
    except pyarrow.ArrowInvalid as error:
        yield Rejection(source=key, reason=f"the row is damaged ({error})")
        return
    except ValueError as error:
        yield Rejection(source=key, reason=str(error))
        return
    facts = kept_facts(row)
    yield from examples_of(key, image, captions, facts)


def examples_of(
    key: str, image: Any, captions: Sequence[tuple[str, Mapping[str, float | int]]], facts: Mapping[str, Any]
) -> Iterator[RawExample]:
    """An example a caption of one picture; captions are as `metadata.captions_of` gives them."""
    for number, (caption, weight) in enumerate(captions):
        name = f"{key}#{number}" if number else key
        yield RawExample(key=name, image=image, caption=caption, meta={**facts, **weight} or None)


def in_split(one: RawExample, split: str, val_fraction: float, seed: int) -> RawExample:
    """The example in its split; equal images, which have rows of their own, go to the same one."""
    if split == "train" and val_fraction:
        image = one.image if isinstance(one.image, bytes) else str(one.image).encode(errors="surrogatepass")
        split = split_of(f"{seed}/{hashlib.sha256(image).hexdigest()}", val_fraction)
    return dataclasses.replace(one, split=split)
