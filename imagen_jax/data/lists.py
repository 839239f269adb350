"""Lists of images and captions, .csv, .jsonl or .parquet: their rows, each with where it stands.

A row that cannot be used is a row with a problem, which the build counts and names; only a list that cannot be read on,
because nothing tells where the next row begins, ends it.
"""

import csv
import dataclasses
import functools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from imagen_jax.errors import UserError
from imagen_jax.files import AnyPath, local_copy

LIST_SUFFIXES = (".csv", ".jsonl", ".parquet")
COLUMNS = ("image", "caption")
# Python's own is 131 072 characters: a caption may be longer, a column that swallowed its neighbours is longer still.
_MAX_FIELD = 1 << 24


@dataclasses.dataclass(frozen=True, kw_only=True)
class ListRow:
    """One row of a list.

    Attributes:
      where: where it stands, for messages.
      image: path, relative to the list's directory; or a name, where the list holds the image's bytes itself.
      caption: what the image shows.
      problem: why the row cannot be used; empty if it can.
      held: the list holds the bytes of the image.
    """

    where: str
    image: str = ""
    caption: str = ""
    problem: str = ""
    held: bool = False


def read_list(path: AnyPath) -> list[ListRow]:
    """The rows of a list.

    Raises:
      UserError: the list is missing, unreadable or empty, or lacks a column.
    """
    readers: Mapping[str, Callable[[Path], Iterator[ListRow]]] = {
        ".csv": _read_csv,
        ".jsonl": _read_jsonl,
        ".parquet": _read_parquet,
    }
    if path.suffix not in readers:
        raise UserError(f"list {str(path)!r} must end in one of {', '.join(readers)}")
    if not path.is_file():
        raise UserError(f"list {str(path)!r} does not exist; check the path")
    try:
        here = Path(local_copy(path))
        rows = list(readers[path.suffix](here))
    except UserError as error:
        raise UserError(str(error).replace(str(here), os.fspath(path))) from error
    except OSError as error:
        raise UserError(f"list {str(path)!r} cannot be read ({error})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"list {str(path)!r} is not UTF-8 ({error}); save it as UTF-8") from error
    if not rows:
        raise UserError(f"list {str(path)!r} has no rows; expected columns {', '.join(COLUMNS)}")
    return rows


def _row(where: str, image: Any, caption: Any) -> ListRow:
    if not isinstance(image, str) or not image:
        return ListRow(where=where, problem="no image path")
    if not isinstance(caption, str):
        return ListRow(where=where, problem=f"caption of {image} is not text ({caption!r})")
    return ListRow(where=where, image=image, caption=caption)


def _require_columns(path: Path, columns: Sequence[str]) -> None:
    missing = [column for column in COLUMNS if column not in columns]
    if missing:
        raise UserError(
            f"list {str(path)!r} lacks column {' and '.join(missing)}; "
            f"it has {', '.join(map(str, columns)) or 'none'}; name the columns {' and '.join(COLUMNS)}"
        )


def _read_csv(path: Path) -> Iterator[ListRow]:
    before = csv.field_size_limit(_MAX_FIELD)
    line = 1
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            _require_columns(path, header)
            image, caption = (header.index(column) for column in COLUMNS)
            while True:
                line = reader.line_num + 1
                fields = next(reader, None)
                if fields is None:
                    return
                if not fields:
                    continue
                where = f"{path.name} line {line}"
                if len(fields) == len(header):
                    yield _row(where, fields[image], fields[caption])
                else:
                    problem = f"{len(fields)} fields, the header has {len(header)}; put a text with commas in quotes"
                    yield ListRow(where=where, problem=problem)
    except csv.Error as error:
        raise UserError(
            f"list {str(path)!r}, in the row that begins at line {line}: {error}; "
            "mend its quotation marks (one inside of a text is written twice)"
        ) from error
    finally:
        csv.field_size_limit(before)


def _read_jsonl(path: Path) -> Iterator[ListRow]:
    first = True
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path.name} line {number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"list {str(path)!r}, line {number} is not JSON ({error}); mend that line") from error
            if not isinstance(row, dict):
                raise UserError(f"list {str(path)!r}, line {number} is not a JSON object; mend that line")
            # The first row stands for a header: where it lacks a column, all will.
            if first:
                _require_columns(path, tuple(row))
                first = False
            missing = [column for column in COLUMNS if column not in row]
            if missing:
                yield ListRow(where=where, problem=f"no {' and no '.join(missing)}")
            else:
                yield _row(where, row["image"], row["caption"])


def _read_parquet(path: Path) -> Iterator[ListRow]:
    import pyarrow
    import pyarrow.parquet

    try:
        schema = pyarrow.parquet.read_schema(path)
        _require_columns(path, schema.names)
        kind = schema.field("image").type
        held = _holds_bytes(kind)
        # Bytes are read where they are needed, a row group at a time; of a column that is all bytes there is no path.
        columns = ["caption", "image.path" if held else "image"]
        with pyarrow.parquet.ParquetFile(path) as file:
            table = file.read(columns=columns)
    except pyarrow.ArrowException as error:
        raise UserError(f"list {str(path)!r} is not a Parquet file ({error})") from error
    captions = table.column("caption").to_pylist()
    images = table.column("image").to_pylist() if "image" in table.column_names else [None] * len(captions)
    for number, (image, caption) in enumerate(zip(images, captions, strict=True), start=1):
        where = f"{path.name} row {number}"
        if not held:
            yield _row(where, image, caption)
            continue
        name = (image or {}).get("path") or f"{path.stem}-{number:08d}"
        yield dataclasses.replace(_row(where, name, caption), held=True)


def _holds_bytes(kind: Any) -> bool:
    """Tells if a Parquet column holds images themselves: bytes, or structs of bytes and path as `datasets` writes."""
    import pyarrow

    if pyarrow.types.is_struct(kind):
        return "bytes" in [kind.field(i).name for i in range(kind.num_fields)]
    return pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)


@functools.lru_cache(maxsize=1)
def _group_of(path: str, group: int) -> list[Any]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(local_copy(path)) as file:
        return file.read_row_group(group, columns=["image"]).column("image").to_pylist()


def row_groups(path: AnyPath) -> list[tuple[int, int]]:
    """First row and row after the last of each row group of a Parquet file."""
    import pyarrow.parquet

    metadata = pyarrow.parquet.read_metadata(local_copy(path))
    ends = [0]
    for group in range(metadata.num_row_groups):
        ends.append(ends[-1] + metadata.row_group(group).num_rows)
    return list(zip(ends[:-1], ends[1:], strict=True))


def held_image(path: str, group: int, row: int) -> bytes | str | None:
    """The image of a row of a row group: its bytes, or the path of a file where the row has no bytes; None: neither."""
    value = _group_of(path, group)[row]
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str):
        return os.path.join(os.path.dirname(path), value)
    return value or None
