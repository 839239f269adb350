"""Where raw image-caption pairs come from: drawn shapes, a folder, a list file, or any seqio task."""

import csv
import dataclasses
import functools
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax.data.raw import RawExample, Rejection, Source
from imagen_jax.errors import UserError
from imagen_jax.files import sha256_of_file

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
LIST_SUFFIXES = (".csv", ".jsonl", ".parquet")
_COLUMNS = ("image", "caption")
_EXAMPLES_PER_PART = 100


def shapes_source(
    num_examples: Mapping[str, int], seed: int, image_size: int = 64, brightness: str = "light_or_dark"
) -> Source:
    """The drawn shapes corpus.

    Args:
      num_examples: examples by split, such as {"train": 20000, "val": 1000}.
      seed: fixes every pixel and caption.
      image_size: side of the drawings, in pixels.
      brightness: of the backgrounds, one of `shapes.BRIGHTNESSES`.

    Raises:
      UserError: there is no such brightness.
    """
    parts = [
        functools.partial(_shapes_part, seed, split, number, start, image_size, brightness)
        for split, number in num_examples.items()
        for start in range(0, number, _EXAMPLES_PER_PART)
    ]
    # The first drawings tell apart corpora of two releases that draw differently.
    digest = hashlib.sha256()
    for split, number in num_examples.items():
        for one in _shapes_part(seed, split, min(number, 8), 0, image_size, brightness):
            digest.update(np.asarray(one.image).tobytes() + one.caption.encode())
    settings = {
        "kind": "shapes",
        "seed": seed,
        "num_examples": dict(num_examples),
        "digest": digest.hexdigest(),
    }
    return Source(parts=parts, num_examples=sum(num_examples.values()), settings=settings)


def _shapes_part(
    seed: int, split: str, number: int, start: int, image_size: int, brightness: str
) -> Iterator[RawExample]:
    from imagen_jax.data import shapes

    stop = min(start + _EXAMPLES_PER_PART, number)
    drawn = shapes.examples(seed, split, number, start=start, stop=stop, image_size=image_size, brightness=brightness)
    for key, image, caption, scene in drawn:
        yield RawExample(key=key, image=image, caption=caption, split=split, meta=scene.to_dict())


@dataclasses.dataclass(frozen=True)
class _Row:
    """One line of a list: the image as written there, where that is, and its caption."""

    name: str
    path: str
    caption: str


def folder_source(folder: str | os.PathLike[str], *, val_fraction: float = 0.0, seed: int = 0) -> Source:
    """The user's own folder, read recursively.

    Either it holds captions.csv, captions.jsonl or captions.parquet (see `list_source`), or every image has a
    text file of the same stem beside it. Keys are paths relative to the folder.

    Args:
      folder: the directory.
      val_fraction: part of the images, in [0, 1), that goes to split "val", chosen by a hash of the path.
      seed: of that choice.

    Raises:
      UserError: the folder is missing, unreadable or holds no images, or the list is unusable.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"image folder {str(folder)!r} does not exist or is not a directory; check the path")
    lists = [root / f"captions{suffix}" for suffix in LIST_SUFFIXES if (root / f"captions{suffix}").exists()]
    if len(lists) > 1:
        raise UserError(f"{str(folder)!r} holds {' and '.join(p.name for p in lists)}; keep one of them")
    if lists:
        return list_source(lists[0], val_fraction=val_fraction, seed=seed)
    rows: list[_Row | Rejection] = []
    for path in _images_below(root):
        name = path.relative_to(root).as_posix()
        try:
            rows.append(_Row(name, str(path), path.with_suffix(".txt").read_text(encoding="utf-8-sig")))
        except FileNotFoundError:
            rows.append(Rejection(source=name, reason=f"no caption file {path.with_suffix('.txt').name} beside it"))
        except (OSError, UnicodeDecodeError) as error:
            rows.append(Rejection(source=name, reason=f"caption file cannot be read: {error}"))
    if not rows:
        raise UserError(f"image folder {str(folder)!r} holds no images ({', '.join(IMAGE_SUFFIXES)}); check the path")
    return _rows_source(rows, "folder", val_fraction, seed)


def _images_below(root: Path) -> list[Path]:
    def refuse(error: OSError) -> None:
        raise UserError(f"image folder {error.filename!r} cannot be read ({error.strerror}); check its permissions")

    found = []
    for directory, _, names in os.walk(root, onerror=refuse):
        found += [Path(directory, name) for name in names if name.lower().endswith(IMAGE_SUFFIXES)]
    return sorted(found)


def list_source(path: str | os.PathLike[str], *, val_fraction: float = 0.0, seed: int = 0) -> Source:
    """A list of images with columns `image` (path, relative to the list's directory) and `caption`.

    Several captions of one image may stand in several rows; the later ones get the keys image#1, image#2, ….

    Args:
      path: a .csv file with a header, a .jsonl file of one object a line, or a .parquet file.
      val_fraction, seed: as for `folder_source`; all captions of an image go to the same split.

    Raises:
      UserError: the list is missing, unreadable or empty, or lacks a column.
    """
    file = Path(path)
    readers = {".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
    if file.suffix not in readers:
        raise UserError(f"list {str(path)!r} must end in one of {', '.join(readers)}")
    if not file.is_file():
        raise UserError(f"list {str(path)!r} does not exist; check the path")
    try:
        pairs = readers[file.suffix](file)
    except OSError as error:
        raise UserError(f"list {str(path)!r} cannot be read ({error})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"list {str(path)!r} is not UTF-8 ({error}); save it as UTF-8") from error
    if not pairs:
        raise UserError(f"list {str(path)!r} has no rows; expected columns {', '.join(_COLUMNS)}")
    rows: list[_Row | Rejection] = []
    for number, (image, caption) in enumerate(pairs, start=1):
        where = f"{file.name} row {number}"
        if not isinstance(image, str) or not image:
            rows.append(Rejection(source=where, reason="no image path"))
        elif not isinstance(caption, str):
            rows.append(Rejection(source=where, reason=f"caption of {image} is not text ({caption!r})"))
        else:
            name = Path(os.path.normpath(image)).as_posix()
            rows.append(_Row(name, str(file.parent / image), caption))
    return _rows_source(rows, "list", val_fraction, seed)


def _require_columns(path: Path, columns: Sequence[str]) -> None:
    missing = [column for column in _COLUMNS if column not in columns]
    if missing:
        raise UserError(
            f"list {str(path)!r} lacks column {' and '.join(missing)}; "
            f"it has {', '.join(map(str, columns)) or 'none'}; name the columns {' and '.join(_COLUMNS)}"
        )


def _read_csv(path: Path) -> list[tuple[Any, Any]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        _require_columns(path, reader.fieldnames or ())
        try:
            return [(row["image"], row["caption"]) for row in reader]
        except csv.Error as error:
            raise UserError(f"list {str(path)!r}, line {reader.line_num}: {error}; mend that line") from error


def _read_jsonl(path: Path) -> list[tuple[Any, Any]]:
    pairs = []
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(f"list {str(path)!r}, line {number} is not JSON ({error}); mend that line") from error
            if not isinstance(row, dict):
                raise UserError(f"list {str(path)!r}, line {number} is not a JSON object; mend that line")
            _require_columns(path, tuple(row))
            pairs.append((row["image"], row["caption"]))
    return pairs


def _read_parquet(path: Path) -> list[tuple[Any, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        _require_columns(path, pyarrow.parquet.read_schema(path).names)
        table = pyarrow.parquet.read_table(path, columns=list(_COLUMNS))
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"list {str(path)!r} is not a Parquet file ({error})") from error
    return list(zip(*(table.column(name).to_pylist() for name in _COLUMNS), strict=True))


def _rows_source(rows: Sequence[_Row | Rejection], kind: str, val_fraction: float, seed: int) -> Source:
    if not 0 <= val_fraction < 1:
        raise UserError(f"val_fraction ({val_fraction}) must be in [0, 1)")
    digest = hashlib.sha256()
    seen: Counter[str] = Counter()
    examples: list[RawExample | Rejection] = []
    for row in rows:
        digest.update(repr(row.source if isinstance(row, Rejection) else (row.name, row.caption)).encode())
        if isinstance(row, Rejection):
            examples.append(row)
            continue
        if os.path.isfile(row.path) and os.access(row.path, os.R_OK):
            digest.update(sha256_of_file(row.path).encode())
        key = f"{row.name}#{seen[row.name]}" if seen[row.name] else row.name
        seen[row.name] += 1
        split = "val" if _unit_hash(f"{seed}/{row.name}") < val_fraction else "train"
        examples.append(RawExample(key=key, image=row.path, caption=row.caption, split=split))
    parts = [
        functools.partial(iter, examples[start : start + _EXAMPLES_PER_PART])
        for start in range(0, len(examples), _EXAMPLES_PER_PART)
    ]
    settings = {"kind": kind, "digest": digest.hexdigest(), "val_fraction": val_fraction, "seed": seed}
    return Source(parts=parts, num_examples=len(examples), settings=settings)


def _unit_hash(text: str) -> float:
    """A fixed number in [0, 1) for a text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def task_source(task_name: str, splits: Sequence[str]) -> Source:
    """A seqio task whose examples hold key, image (uint8 pixels or encoded bytes) and caption.

    To be built without worker processes, which would not know the task.

    Args:
      task_name: a registered task, or one of `imagen_jax.data.tasks.RAW_TASKS`.
      splits: the splits of the task to take, under their own names.

    Raises:
      UserError: no such task or split, or the task lacks one of the three features.
    """
    from imagen_jax.data import tasks

    task = tasks.get_raw_task(task_name)
    for split in splits:
        if split not in task.splits:
            raise UserError(f"split {split!r} is not in task {task_name!r}; choose from {', '.join(task.splits)}")
    missing = {"key", "image", "caption"} - set(task.output_features)
    if missing:
        raise UserError(f"task {task_name!r} lacks {', '.join(sorted(missing))}; it must give key, image and caption")
    return Source(
        parts=[functools.partial(_task_part, task, split) for split in splits],
        num_examples=0,  # a task knows its inputs at best, and a picture may have several captions
        settings={"kind": "task", "task": task_name, "splits": list(splits)},
    )


def _task_part(task: Any, split: str) -> Iterator[RawExample]:
    for example in task.get_dataset(split=split, shuffle=False, try_in_mem_cache=False).as_numpy_iterator():
        yield RawExample(
            key=example["key"].decode(),
            image=example["image"],
            caption=example["caption"].decode(),
            split=split,
        )
