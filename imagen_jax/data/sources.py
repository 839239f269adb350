"""Where raw image-caption pairs come from: drawn shapes, a folder, a list file, or any seqio task."""

import bisect
import dataclasses
import functools
import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imagen_jax.checks import check_path
from imagen_jax.data.lists import LIST_SUFFIXES, Columns, arrow_damage, held_image, read_list, row_groups
from imagen_jax.data.raw import RawExample, Rejection, Source, check_val_fraction, split_of
from imagen_jax.errors import UserError
from imagen_jax.files import (
    AnyPath,
    StrPath,
    absolute,
    as_path,
    files_under,
    is_remote,
    is_unicode,
    local_copy,
    read_files,
    sha256_of_file,
)

UNREADABLE_SUFFIXES = frozenset((".heic", ".heif", ".jxl", ".svg"))
_EXAMPLES_PER_PART = 100
_FETCHED_AT_ONCE = 32
_TASK_DTYPES = {"key": ("string",), "image": ("uint8", "string"), "caption": ("string",)}


def shapes_source(
    num_examples: Mapping[str, int],
    seed: int,
    image_size: int = 64,
    brightness: str = "light_or_dark",
    wide_and_tall: bool = False,
) -> Source:
    """The drawn shapes corpus.

    Args:
      num_examples: examples by split, such as {"train": 20000, "val": 1000}.
      seed: fixes every pixel and caption.
      image_size: side of the square drawings, in pixels.
      brightness: of the backgrounds, one of `shapes.BRIGHTNESSES`.
      wide_and_tall: some drawings are wide or tall.

    Raises:
      UserError: there is no such brightness.
    """
    parts = [
        functools.partial(_shapes_part, seed, split, number, start, image_size, brightness, wide_and_tall)
        for split, number in num_examples.items()
        for start in range(0, number, _EXAMPLES_PER_PART)
    ]
    # The first drawings tell apart corpora of two releases that draw differently.
    digest = hashlib.sha256()
    for split, number in num_examples.items():
        for one in _shapes_part(seed, split, min(number, 8), 0, image_size, brightness, wide_and_tall):
            digest.update(np.asarray(one.image).tobytes() + one.caption.encode())
    settings = {
        "kind": "shapes",
        "seed": seed,
        "num_examples": dict(num_examples),
        "digest": digest.hexdigest(),
        **({"wide_and_tall": True} if wide_and_tall else {}),
    }
    return Source(parts=parts, num_examples=sum(num_examples.values()), settings=settings)


def _shapes_part(
    seed: int, split: str, number: int, start: int, image_size: int, brightness: str, wide_and_tall: bool
) -> Iterator[RawExample]:
    from imagen_jax.data import shapes

    stop = min(start + _EXAMPLES_PER_PART, number)
    drawn = shapes.examples(
        seed,
        split,
        number,
        start=start,
        stop=stop,
        image_size=image_size,
        brightness=brightness,
        wide_and_tall=wide_and_tall,
    )
    for key, image, caption, scene in drawn:
        yield RawExample(key=key, image=image, caption=caption, split=split, meta=scene.to_dict())


@dataclasses.dataclass(frozen=True)
class _Row:
    """One line of a list: the image as written there, where that is, its caption, and what else it says."""

    name: str
    path: str
    caption: str
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def folder_source(
    folder: str | os.PathLike[str], *, val_fraction: float = 0.0, seed: int = 0, columns: Columns | None = None
) -> Source:
    """The user's own folder, read recursively.

    Either it holds captions.csv, captions.jsonl or captions.parquet (see `list_source`), or every image has a
    text file of the same stem beside it. Keys are paths relative to the folder.

    Args:
      folder: the directory.
      val_fraction: part of the images, in [0, 1), that goes to split "val", chosen by a hash of the path.
      seed: of that choice.
      columns: of a list in the folder, if they are named otherwise.

    Raises:
      UserError: the folder is missing, unreadable or holds no images, or the list is unusable.
    """
    check_path("the image folder", folder)
    root = as_path(folder)
    if not root.is_dir():
        raise UserError(f"image folder {str(folder)!r} does not exist or is not a directory; check the path")
    lists = [root / f"captions{suffix}" for suffix in LIST_SUFFIXES if (root / f"captions{suffix}").exists()]
    if len(lists) > 1:
        raise UserError(f"{str(folder)!r} holds {' and '.join(p.name for p in lists)}; keep one of them")
    if lists:
        return list_source(lists[0], val_fraction=val_fraction, seed=seed, columns=columns)
    if columns is not None:
        raise UserError(f"columns are named, but {str(folder)!r} holds no list; leave out the names")
    rows = _rows_in_bucket(folder) if is_remote(folder) else _rows_below(Path(folder))
    if not rows:
        raise UserError(f"image folder {str(folder)!r} holds no images (.png, .jpg, .webp, …); check the path")
    return _rows_source(rows, "folder", val_fraction, seed)


def _rows_in_bucket(folder: StrPath) -> list[_Row | Rejection]:
    names, base = files_under(folder), os.fspath(folder).rstrip("/")
    images = {name: f"{os.path.splitext(name)[0]}.txt" for name in names}
    images = {name: beside for name, beside in images.items() if _suffix(name) in image_suffixes()}
    texts = read_files([f"{base}/{beside}" for beside in images.values() if beside in names])
    rows: list[_Row | Rejection] = []
    for name, beside in images.items():
        if beside not in names:
            rows.append(Rejection(source=name, reason=f"no caption file {os.path.basename(beside)} beside it"))
            continue
        try:
            rows.append(_Row(name, f"{base}/{name}", texts[f"{base}/{beside}"].decode("utf-8-sig")))
        except UnicodeDecodeError as error:
            rows.append(Rejection(source=name, reason=f"caption file cannot be read: {error}"))
    return rows


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _rows_below(root: Path) -> list[_Row | Rejection]:
    rows: list[_Row | Rejection] = []
    for path in _images_below(root):
        name = path.relative_to(root).as_posix()
        if path.is_dir():
            rows.append(Rejection(source=name, reason="a link to a folder that it lies in"))
            continue
        if not is_unicode(name):
            rows.append(Rejection(source=ascii(name), reason="the name of the file is not UTF-8; rename it"))
            continue
        try:
            rows.append(_Row(name, str(path), path.with_suffix(".txt").read_text(encoding="utf-8-sig")))
        except FileNotFoundError:
            rows.append(Rejection(source=name, reason=f"no caption file {path.with_suffix('.txt').name} beside it"))
        except (OSError, UnicodeDecodeError) as error:
            rows.append(Rejection(source=name, reason=f"caption file cannot be read: {error}"))
    return rows


@functools.lru_cache(maxsize=1)
def image_suffixes() -> frozenset[str]:
    """Endings of the files that a folder's images are looked for among, in lower case.

    All that Pillow opens, and those of common images that it does not: they are counted as refused, not passed over.
    """
    Image.init()
    return frozenset(end for end, kind in Image.EXTENSION.items() if kind in Image.OPEN) | UNREADABLE_SUFFIXES


def _images_below(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Images below a folder by name, also behind links; a link to a folder `above` is given itself: it has no end."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(
            f"image folder {str(folder)!r} cannot be read ({error.strerror}); check its permissions"
        ) from error
    here = (*above, folder.resolve())
    for entry in entries:
        path = Path(entry.path)
        if not entry.is_dir():
            if path.suffix.lower() in image_suffixes():
                yield path
        elif path.resolve() in here:
            yield path
        else:
            yield from _images_below(path, here)


def list_source(
    path: str | os.PathLike[str], *, val_fraction: float = 0.0, seed: int = 0, columns: Columns | None = None
) -> Source:
    """A list of images with columns `image` and `caption`; numbers and texts in other columns are kept as meta.

    `image` is a path, relative to the list's directory. In a Parquet file it may be the image itself: its bytes, or a
    struct of bytes and path as the library `datasets` writes it; examples without a path are called STEM-NUMBER.
    Several captions of one image may stand in several rows, or as a list in one (see `metadata.captions_of`); the later
    ones get the keys image#1, image#2, ….

    Args:
      path: a .csv file with a header, a .jsonl file of one object a line, or a .parquet file.
      val_fraction, seed: as for `folder_source`; all captions of an image go to the same split.
      columns: their names, if they are others.

    Raises:
      UserError: the list is missing, unreadable or empty, or lacks a column. A row that cannot be used is a rejection.
    """
    check_path("the list", path)
    file = as_path(path)
    columns = columns or Columns()
    found = read_list(file, columns)
    rows: list[_Row | Rejection] = []
    for row in found:
        if row.problem:
            rows.append(Rejection(source=row.where, reason=row.problem))
        else:
            name = Path(os.path.normpath(row.image)).as_posix()
            rows.append(_Row(name, "" if row.held else os.fspath(file.parent / row.image), row.caption, row.facts))
    source = _rows_source(rows, "list", val_fraction, seed)
    if not any(row.held for row in found):
        return source
    return _with_held_images(source, file, columns.image, [row.number for row in found])


def _with_held_images(source: Source, file: AnyPath, column: str, numbers: Sequence[int]) -> Source:
    """The same, its images taken from the Parquet file itself, a row group a part; `numbers` are the examples' rows."""
    examples = list(zip(numbers, (example for part in source.parts for example in part()), strict=True))
    parts = []
    for group, (start, stop) in enumerate(row_groups(file)):
        first, last = (bisect.bisect_left(numbers, row) for row in (start, stop))
        mine = [(number - start, example) for number, example in examples[first:last]]
        parts.append(functools.partial(_held_part, absolute(file), group, column, mine))
    settings = {**source.settings, "sha256": sha256_of_file(file)}
    return dataclasses.replace(source, parts=parts, settings=settings)


def _held_part(
    path: str, group: int, column: str, examples: Sequence[tuple[int, RawExample | Rejection]]
) -> Iterator[RawExample | Rejection]:
    for row, one in examples:
        if isinstance(one, Rejection):
            yield one
            continue
        try:
            image = held_image(path, group, row, column)
        except arrow_damage() as error:
            yield Rejection(source=one.key, reason=f"row group {group} of the file is damaged ({error})")
            continue
        if image is None:
            yield Rejection(source=one.key, reason="no image: neither bytes nor a path")
        else:
            yield dataclasses.replace(one, image=image)


def _rows_source(rows: Sequence[_Row | Rejection], kind: str, val_fraction: float, seed: int) -> Source:
    check_val_fraction(val_fraction)
    digest = hashlib.sha256()
    seen: Counter[str] = Counter()
    examples: list[RawExample | Rejection] = []
    # Copies of those in a bucket, many at once; each is read again when its example is made.
    remote = [row.path for row in rows if isinstance(row, _Row) and is_remote(row.path)]
    with ThreadPoolExecutor(_FETCHED_AT_ONCE) as threads:
        copies = dict(zip(remote, threads.map(_copy_or_none, remote), strict=True))
    for row in rows:
        digest.update(repr(row.source if isinstance(row, Rejection) else (row.name, row.caption)).encode())
        if isinstance(row, Rejection):
            examples.append(row)
            continue
        if row.facts:
            digest.update(repr(row.facts).encode())
        place = copies.get(row.path, row.path)
        if place is not None and os.path.isfile(place) and os.access(place, os.R_OK):
            digest.update(sha256_of_file(place).encode())
        key = f"{row.name}#{seen[row.name]}" if seen[row.name] else row.name
        seen[row.name] += 1
        split = split_of(f"{seed}/{row.name}", val_fraction)
        meta = row.facts or None
        examples.append(RawExample(key=key, image=row.path, caption=row.caption, split=split, meta=meta))
    parts = [
        functools.partial(iter, examples[start : start + _EXAMPLES_PER_PART])
        for start in range(0, len(examples), _EXAMPLES_PER_PART)
    ]
    settings = {"kind": kind, "digest": digest.hexdigest(), "val_fraction": val_fraction, "seed": seed}
    return Source(parts=parts, num_examples=len(examples), settings=settings)


def _copy_or_none(path: str) -> str | None:
    try:
        return local_copy(path)
    except FileNotFoundError:
        return None


def task_source(task_name: str, splits: Sequence[str]) -> Source:
    """A seqio task whose examples hold key, image (uint8 pixels or encoded bytes) and caption.

    To be built without worker processes, which would not know the task.

    Args:
      task_name: a registered task, or one of `imagen_jax.data.raw_tasks.RAW_TASKS`.
      splits: the splits of the task to take, under their own names.

    Raises:
      UserError: no such task or split, or the task lacks one of the three features or gives another type.
    """
    from imagen_jax.data import raw_tasks

    task = raw_tasks.get_raw_task(task_name)
    for split in splits:
        if split not in task.splits:
            raise UserError(f"split {split!r} is not in task {task_name!r}; choose from {', '.join(task.splits)}")
    missing = {"key", "image", "caption"} - set(task.output_features)
    if missing:
        raise UserError(f"task {task_name!r} lacks {', '.join(sorted(missing))}; it must give key, image and caption")
    for feature, allowed in _TASK_DTYPES.items():
        dtype = task.output_features[feature].dtype.name
        if dtype not in allowed:
            raise UserError(
                f"feature {feature} of task {task_name!r} is {dtype}; expected {' or '.join(allowed)}: convert it in a "
                "preprocessor of the task"
            )
    return Source(
        parts=[functools.partial(_task_part, task, split) for split in splits],
        num_examples=0,  # a task knows its inputs at best, and a picture may have several captions
        settings={"kind": "task", "task": task_name, "splits": list(splits)},
    )


def _task_part(task: Any, split: str) -> Iterator[RawExample]:
    from imagen_jax.data import raw_tasks

    for example in raw_tasks.examples_of(task, split=split, shuffle=False).as_numpy_iterator():
        yield RawExample(
            # What is no UTF-8 becomes what no text may hold, and is counted as such.
            key=example["key"].decode(errors="surrogateescape"),
            image=example["image"],
            caption=example["caption"].decode(errors="surrogateescape"),
            split=split,
        )
