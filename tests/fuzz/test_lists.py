"""Lists of images and captions, and captions beside their images."""

import csv
import io
import json
import random
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from imagen_jax.data.raw import PictureForm, Prepared, Rejection, Source, prepare_part
from imagen_jax.data.sources import folder_source, list_source
from tests.fuzz.mutate import damaged, json_file, odd_text, odd_value
from tests.fuzz.running import fuzz

_ROWS = [{"image": f"{i % 3}.png", "caption": f'number "{i}", é', "id": i} for i in range(5)]


def _images(folder: Path) -> None:
    for i in range(3):
        Image.new("RGB", (8, 8), (i,) * 3).save(folder / f"{i}.png")


def _use(source: Source) -> None:
    """Every row is an example or a refusal that names itself."""
    for part in source.parts:
        for one in prepare_part(part, PictureForm(image_size=8, min_size=4)):
            assert isinstance(one, Prepared | Rejection)
            if isinstance(one, Rejection):
                assert one.reason
                json.dumps([one.source, one.reason]).encode()


def _csv(chance: random.Random) -> bytes:
    if chance.random() < 0.4:
        rows = [[row["image"], row["caption"]] for row in _ROWS]
        row = chance.choice(rows)
        row[chance.randrange(2)] = odd_text(chance)
        text = io.StringIO()
        csv.writer(text).writerows([["image", "caption"], *rows])
        return text.getvalue().encode(errors="surrogatepass")
    whole = b"image,caption\n" + b"".join(f'{r["image"]},"a ""{r["id"]}"""\n'.encode() for r in _ROWS)
    return damaged(chance, whole, [b'"', b",", b"\n", b"\r", b"\0", "é".encode("latin-1")])


def _jsonl(chance: random.Random) -> bytes:
    lines = [json.dumps(row).encode() for row in _ROWS]
    lines[chance.randrange(len(lines))] = json_file(chance, chance.choice(_ROWS))
    return b"\n".join(lines)


def _parquet(chance: random.Random) -> bytes:
    kind = chance.randrange(3)
    rows: list[dict[str, Any]] = [dict(row) for row in _ROWS]
    png = io.BytesIO()
    Image.new("RGB", (8, 8)).save(png, "PNG")
    for row in rows:
        if kind:
            row["image"] = png.getvalue() if kind == 1 else {"bytes": png.getvalue(), "path": row["image"]}
    if chance.random() < 0.5:
        row = chance.choice(rows)
        row[chance.choice(("image", "caption"))] = chance.choice((None, b"", {"bytes": None, "path": None}, "x", 3))
        if chance.random() < 0.5:
            rows = [{"image": row["image"], "caption": odd_value(chance)} for row in rows[:1]]
    file = io.BytesIO()
    try:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    except (pyarrow.ArrowException, TypeError, ValueError, OverflowError):
        return b"PAR1"  # No table of such rows.
    return file.getvalue() if chance.random() < 0.5 else damaged(chance, file.getvalue())


@pytest.mark.parametrize("make", [_csv, _jsonl, _parquet], ids=lambda make: make.__name__[1:])
def test_lists(pytestconfig, tmp_path, make):
    _images(tmp_path)
    path = tmp_path / f"captions.{make.__name__[1:]}"

    def write(chance: random.Random) -> bytes:
        path.write_bytes(content := make(chance))
        return content

    fuzz(pytestconfig, path.suffix, write, lambda content: _use(list_source(path)))


def test_captions_beside_images(pytestconfig, tmp_path):
    _images(tmp_path)

    def write(chance: random.Random) -> bytes:
        content = damaged(chance, "a red cube, é\n".encode(), ["\ufeff漢".encode(), "é".encode("utf-16")])
        if chance.random() < 0.5:
            content = odd_text(chance).encode(errors="surrogatepass")
        (tmp_path / "1.txt").write_bytes(content)
        return content

    fuzz(pytestconfig, ".txt", write, lambda content: _use(folder_source(tmp_path)))
