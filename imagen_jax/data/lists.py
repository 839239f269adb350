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

from imagen_jax.data.metadata import captions_of, kept_facts, numbers_in
from imagen_jax.errors import UserError
from imagen_jax.files import AnyPath, StrPath, local_copy

LIST_SUFFIXES = (".csv", ".jsonl", ".parquet")
# Python's own is 131 072 characters: a caption may be longer, a column that swallowed its neighbours is longer still.
_MAX_FIELD = 1 << 24


@dataclasses.dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of the columns with the image and with what it shows."""

    image: str = "image"
    caption: str = "caption"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ListRow:
    """One row of a list, or one of the captions in it.

    Attributes:
      where: where it stands, for messages.
      image: path, relative to the list's directory; or a name, where the list holds the image's bytes itself.
      caption: what the image shows.
      problem: why the row cannot be used; empty if it can.
      held: the list holds the bytes of the image.
      number: of the row, from 0, in a list that may hold images.
      facts: what else the row tells of the image or the caption.
    """

    where: str
    image: str = ""
    caption: str = ""
    problem: str = ""
    held: bool = False
    number: int = 0
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def read_list(path: AnyPath, columns: Columns) -> list[ListRow]:
    """The rows of a list; one with several captions is as many rows.

    Raises:
      UserError: the list is missing, unreadable or empty, or lacks a column.
    """
    readers: Mapping[str, Callable[[Path, Columns], Iterator[ListRow]]] = {
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
        rows = list(readers[path.suffix](here, columns))
    except UserError as error:
        raise UserError(str(error).replace(str(here), os.fspath(path))) from error
    except OSError as error:
        raise UserError(f"list {str(path)!r} cannot be read ({error})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"list {str(path)!r} is not UTF-8 ({_place(here, error)}); save it as UTF-8") from error
    if not rows:
        raise UserError(f"list {str(path)!r} has no rows; expected columns {columns.image}, {columns.caption}")
    return rows


def _place(path: Path, error: UnicodeDecodeError) -> str:
    """Where the first bytes stand that are no UTF-8; the error counts from the piece of the file that was decoded."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as found:
                return f"byte {line[found.start]:#04x} in line {number}"
    return str(error)


def _rows(where: str, image: Any, caption: Any, found: Mapping[str, Any]) -> Iterator[ListRow]:
    if not isinstance(image, str) or not image:
        yield ListRow(where=where, problem="no image path")
        return
    try:
        captions = captions_of(caption)
    except ValueError as error:
        yield ListRow(where=where, problem=f"{error}, of {image}")
        return
    facts = kept_facts(found)
    for text, weight in captions:
        yield ListRow(where=where, image=image, caption=text, facts={**facts, **weight})


def require_columns(path: StrPath, columns: Columns, there: Sequence[str]) -> None:
    """Refuses a list, or a file of rows, that lacks a column.

    Raises:
      UserError: names the columns that it has.
    """
    wanted = (columns.image, columns.caption)
    missing = [column for column in wanted if column not in there]
    if missing:
        raise UserError(
            f"list {str(path)!r} lacks column {' and '.join(missing)}; "
            f"it has {', '.join(map(str, there)) or 'none'}; name the columns {' and '.join(wanted)}, "
            "or say by --image_column and --caption_column how they are named"
        )
    twice = [column for column in wanted if there.count(column) > 1]
    if twice:
        raise UserError(f"list {str(path)!r} has column {' and '.join(twice)} more than once; rename all but one")


def _others(row: Mapping[str, Any], columns: Columns) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in (columns.image, columns.caption)}


def _read_csv(path: Path, columns: Columns) -> Iterator[ListRow]:
    before = csv.field_size_limit(_MAX_FIELD)
    line = 1
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            require_columns(path, columns, header)
            while True:
                line = reader.line_num + 1
                fields = next(reader, None)
                if fields is None:
                    return
                if not fields:
                    continue
                where = f"{path.name} line {line}"
                if len(fields) == len(header):
                    row: dict[str, str] = {}
                    for name, field in zip(header, fields, strict=True):
                        row.setdefault(name, field)
                    facts = numbers_in(_others(row, columns))
                    yield from _rows(where, row[columns.image], row[columns.caption], facts)
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


def _read_jsonl(path: Path, columns: Columns) -> Iterator[ListRow]:
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
                require_columns(path, columns, tuple(row))
                first = False
            missing = [column for column in (columns.image, columns.caption) if column not in row]
            if missing:
                yield ListRow(where=where, problem=f"no {' and no '.join(missing)}")
            else:
                yield from _rows(where, row[columns.image], row[columns.caption], _others(row, columns))


def _read_parquet(path: Path, columns: Columns) -> Iterator[ListRow]:
    import pyarrow.parquet

    try:
        schema = pyarrow.parquet.read_schema(path)
        require_columns(path, columns, schema.names)
        held = holds_bytes(schema.field(columns.image).type)
        # Bytes are read where they are needed, a row group at a time; of a column that is all bytes there is no path.
        image = f"{columns.image}.path" if held else columns.image
        with pyarrow.parquet.ParquetFile(path) as file:
            rows = file.read(columns=[columns.caption, image, *fact_columns(schema, columns)]).to_pylist()
    except UserError:
        raise
    except arrow_damage() as error:
        raise UserError(f"list {str(path)!r} is not a Parquet file ({error}); copy it again") from error
    for number, row in enumerate(rows):
        where = f"{path.name} row {number + 1}"
        name = row.get(columns.image)
        if held:
            name = (name or {}).get("path") or f"{path.stem}-{number + 1:08d}"
        for one in _rows(where, name, row[columns.caption], _others(row, columns)):
            yield dataclasses.replace(one, held=held, number=number)


def fact_columns(schema: Any, columns: Columns) -> list[str]:
    """Names of the other columns of an Arrow schema that hold numbers, texts or truth values."""
    import pyarrow

    kinds = pyarrow.types
    simple = (kinds.is_integer, kinds.is_floating, kinds.is_boolean, kinds.is_string, kinds.is_large_string)
    return [
        field.name
        for field in schema
        if field.name not in (columns.image, columns.caption) and any(is_kind(field.type) for is_kind in simple)
    ]


def holds_bytes(kind: Any) -> bool:
    """Tells if a column holds images themselves: bytes, or structs of bytes and path as `datasets` writes."""
    import pyarrow

    if pyarrow.types.is_struct(kind):
        return "bytes" in [kind.field(i).name for i in range(kind.num_fields)]
    return pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)


def arrow_damage() -> tuple[type[Exception], ...]:
    """The errors that reading a damaged Arrow or Parquet file raises; its columns' names may be no text, or recur."""
    import pyarrow

    return pyarrow.ArrowException, OSError, ValueError, LookupError


@functools.lru_cache(maxsize=1)
def _group_of(path: str, group: int, column: str) -> list[Any]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(local_copy(path)) as file:
        return file.read_row_group(group, columns=[column]).column(column).to_pylist()


def row_groups(path: AnyPath) -> list[tuple[int, int]]:
    """First row and row after the last of each row group of a Parquet file."""
    import pyarrow.parquet

    metadata = pyarrow.parquet.read_metadata(local_copy(path))
    ends = [0]
    for group in range(metadata.num_row_groups):
        ends.append(ends[-1] + metadata.row_group(group).num_rows)
    return list(zip(ends[:-1], ends[1:], strict=True))


def held_image(path: str, group: int, row: int, column: str) -> bytes | str | None:
    """The image of a row of a row group: its bytes, or the path of a file where the row has no bytes; None: neither."""
    return image_in(_group_of(path, group, column)[row], os.path.dirname(path))


def image_in(value: Any, folder: str) -> bytes | str | None:
    """The image that a cell holds: its bytes, or the path of a file in `folder`; None: neither."""
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str) and value:
        return os.path.join(folder, value)
    return value or None
