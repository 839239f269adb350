"""Folders of the library `datasets` become examples without it; the files are written here as it writes them."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from imagen_jax.data.arrow import arrow_source, holds_arrow
from imagen_jax.data.filters import filtered
from imagen_jax.data.raw import RawExample, Rejection, Source
from imagen_jax.data.records import Corpus
from imagen_jax.data.sources import list_source
from imagen_jax.data.webdataset import tar_source
from imagen_jax.errors import UserError
from imagen_jax.files import as_path, files_under, write_bytes
from imagen_jax.image_files import decode_image
from imagen_jax.main import main

PICTURES = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])


def _picture(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (level,) * 3).save(buffer, "PNG")
    return buffer.getvalue()


def _rows(levels, caption: str = "caption") -> list[dict[str, Any]]:
    return [{"image": {"bytes": _picture(i), "path": None}, caption: f"number {i}"} for i in levels]


def _save(folder: Path, shards: list[list[dict[str, Any]]], schema: pyarrow.Schema | None = None) -> Path:
    """Writes a Dataset as `save_to_disk` does: streams of batches, and state.json, which names them."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"data-{i:05d}-of-{len(shards):05d}.arrow" for i in range(len(shards))]
    for name, rows in zip(names, shards, strict=True):
        table = pyarrow.Table.from_pylist(rows, schema=schema)
        with pyarrow.ipc.new_stream(folder / name, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def _all(source: Source) -> list[RawExample | Rejection]:
    return [one for part in source.parts for one in part()]


def _told(source: Source) -> list[tuple[str, str]]:
    """(key, caption) of what is accepted, (where, reason) of what is not."""
    return [(one.source, one.reason) if isinstance(one, Rejection) else (one.key, one.caption) for one in _all(source)]


def test_rows_are_examples_with_their_facts(tmp_path):
    rows = _rows(range(3))
    rows[1] |= {"width": 640, "LICENSE": "CC0", "tags": ["x"], "similarity": float("nan")}
    rows[2]["image"] = {"bytes": None, "path": "beside.png"}
    (tmp_path / "beside.png").write_bytes(_picture(99))
    schema = pyarrow.schema(
        [
            ("image", PICTURES), ("caption", pyarrow.string()), ("width", pyarrow.int32()),
            ("LICENSE", pyarrow.string()), ("tags", pyarrow.list_(pyarrow.string())), ("similarity", pyarrow.float64()),
        ]
    )  # fmt: skip
    found = _all(arrow_source(_save(tmp_path, [rows[:2], rows[2:]], schema)))
    assert [(one.key, one.caption, one.meta) for one in found] == [
        ("data-00000-of-00002-00000001", "number 0", None),
        ("data-00000-of-00002-00000002", "number 1", {"licence": "CC0", "width": 640}),
        ("data-00001-of-00002-00000001", "number 2", None),
    ]
    assert [decode_image(one.image).getpixel((0, 0))[0] for one in found] == [0, 1, 99]


@pytest.mark.parametrize("kind", [PICTURES, pyarrow.binary(), pyarrow.large_binary(), pyarrow.string()], ids=str)
def test_images_may_be_structs_bytes_and_paths(tmp_path, kind):
    content: Any = _picture(7)
    if kind == PICTURES:
        content = {"bytes": content, "path": "of no file"}
    elif kind == pyarrow.string():
        (tmp_path / "seven.png").write_bytes(content)
        content = "seven.png"
    schema = pyarrow.schema([("picture", kind), ("text", pyarrow.string())])
    folder = _save(tmp_path, [[{"picture": content, "text": "seven"}]], schema)
    (found,) = _all(arrow_source(folder, image_column="picture"))
    assert found.caption == "seven" and decode_image(found.image).getpixel((0, 0))[0] == 7


def test_the_caption_column_is_caption_else_text_else_the_named_one(tmp_path):
    rows = [{**row, "text": "t", "alt": "a"} for row in _rows([1])]
    _save(tmp_path / "both", [rows])
    _save(tmp_path / "text", [_rows([1], caption="text")])
    assert _told(arrow_source(tmp_path / "both"))[0][1] == "number 1"
    assert _told(arrow_source(tmp_path / "text"))[0][1] == "number 1"
    assert _told(arrow_source(tmp_path / "both", caption_column="alt"))[0][1] == "a"
    with pytest.raises(UserError, match="lacks column title; it has image, caption, text, alt; .* --caption_column"):
        arrow_source(tmp_path / "both", caption_column="title")
    with pytest.raises(UserError, match="lacks column pixels"):
        arrow_source(tmp_path / "both", image_column="pixels")
    with pytest.raises(UserError, match="column alt of .* holds int64; expected images"):
        arrow_source(_save(tmp_path / "number", [[{"alt": 3, "caption": "c"}]]), image_column="alt")


def test_several_captions_of_a_row_are_examples_with_their_weights(tmp_path):
    weighted = pyarrow.list_(pyarrow.struct([("caption", pyarrow.string()), ("weight", pyarrow.float64())]))
    schema = pyarrow.schema([("image", PICTURES), ("caption", weighted)])
    rows: list[dict[str, Any]] = _rows([1, 2])
    rows[0]["caption"] = [{"caption": "a", "weight": 0.75}, {"caption": "b", "weight": None}, {"caption": "a"}]
    rows[1]["caption"] = []
    found = _all(arrow_source(_save(tmp_path, [rows], schema)))
    key = "data-00000-of-00001-0000000"
    assert [(one.key, one.caption, one.meta) for one in found[:2]] == [
        (f"{key}1", "a", {"weight": 0.75}),
        (f"{key}1#1", "b", None),
    ]
    assert found[2:] == [Rejection(source=f"{key}2", reason="an empty list of captions")]


def _build(place, out: Path, *flags: str) -> dict[str, bytes]:
    assert main(["build_corpus", f"--images={place}", f"--output={out}", "--image_size=8", *flags]) == 0
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_a_dict_keeps_its_splits_and_a_bucket_and_workers_give_the_same_bytes(bucket, tmp_path):
    folder = tmp_path / "dict"
    # Each picture stands in two rows.
    _save(folder / "train", [_rows([*range(20), *range(20)]), _rows([20])])
    _save(folder / "test", [_rows([30])])
    (folder / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    for name in files_under(folder):
        write_bytes(as_path("gs://bucket-a/dict") / name, (folder / name).read_bytes())
    here = _build(folder, tmp_path / "here", "--val_fraction=0.3")
    assert here == _build("gs://bucket-a/dict", tmp_path / "there", "--val_fraction=0.3", "--num_workers=2")
    corpus = Corpus(tmp_path / "here")
    assert set(corpus.splits) == {"train", "val", "test"} and corpus.num_examples("test") == 1
    assert next(corpus.records("test")).key == b"test/data-00000-of-00001-00000001"
    levels = {
        split: [decode_image(one.image).getpixel((0, 0))[0] for one in corpus.records(split)] for split in corpus.splits
    }
    # Equal pictures are in one split.
    assert not set(levels["train"]) & set(levels["val"])
    assert sorted(levels["train"] + levels["val"]) == sorted([*range(20), *range(21)])


def test_parts_are_functions_with_plain_data(tmp_path):
    """So that workers of any kind can be sent them; a filter leaves it so."""
    (tmp_path / "a.tar").write_bytes(b"no tar")
    for source in (arrow_source(_save(tmp_path / "rows", [_rows([1])])), tar_source(tmp_path / "a.tar")):
        for one in (source, filtered(source, ["width > 3"]), filtered(filtered(source, ["width > 3"]), ["height > 3"])):
            (part,) = one.parts
            arguments = json.loads(json.dumps([part.args, part.keywords]))
            again = part.func(*arguments[0], **arguments[1])
            assert [type(found) for found in again] == [type(found) for found in part()]
            assert hash(part.func)


def test_rows_that_cannot_be_used_are_counted(tmp_path):
    rows: list[dict[str, Any]] = _rows(range(4))
    rows[0]["image"] = None
    rows[1]["image"] = {"bytes": None, "path": None}
    rows[2]["caption"] = None
    schema = pyarrow.schema([("image", PICTURES), ("caption", pyarrow.string())])
    found = _told(arrow_source(_save(tmp_path, [rows], schema)))
    assert [one[1] for one in found] == [
        "no image: neither bytes nor a path", "no image: neither bytes nor a path", "caption is not text (None)",
        "number 3",
    ]  # fmt: skip


@pytest.mark.parametrize(("cut", "kept"), [(8, 6), (30, 4)], ids=["end mark", "last batch"])
def test_a_file_that_is_cut_keeps_its_whole_batches(tmp_path, cut, kept):
    _save(tmp_path, [_rows(range(6))])
    (path,) = tmp_path.glob("*.arrow")
    path.write_bytes(path.read_bytes()[:-cut])
    found = _told(arrow_source(tmp_path))
    assert [one[1] for one in found[:-1]] == [f"number {i}" for i in range(kept)]
    assert found[-1][0] == "data-00000-of-00001" and f"behind row {kept}" in found[-1][1]


def test_a_text_that_is_not_utf_8_is_counted(tmp_path):
    _save(tmp_path, [_rows(range(2))])
    (path,) = tmp_path.glob("*.arrow")
    path.write_bytes(path.read_bytes().replace(b"number 1", b"\xffumber 1"))
    found = _told(arrow_source(tmp_path))
    assert found[0][1] == "number 0" and "the row is damaged" in found[1][1] and "UTF8" in found[1][1]


def test_damage_ends_neither_the_process_nor_the_build(tmp_path):
    """Bytes turned at random: rows are counted or the folder is refused; some of these files crashed pyarrow."""
    _save(tmp_path, [_rows(range(6))])
    (path,) = tmp_path.glob("*.arrow")
    whole, draw = path.read_bytes(), np.random.default_rng(0)
    kept = 0
    for _ in range(300):
        damaged = bytearray(whole)
        for place in draw.integers(0, len(whole), draw.integers(1, 12)):
            damaged[place] = draw.integers(256)
        path.write_bytes(damaged)
        try:
            found = _all(arrow_source(tmp_path))
        except UserError:
            continue
        kept += sum(isinstance(one, RawExample) for one in found)
    assert kept > 100


def test_damaged_images_of_a_parquet_list_are_counted_row_by_row(tmp_path):
    path = tmp_path / "list.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(_rows(range(6))), path, row_group_size=2)
    group = pyarrow.parquet.read_metadata(path).row_group(1)
    (column,) = (group.column(i) for i in range(group.num_columns) if group.column(i).path_in_schema == "image.bytes")
    content = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    content[start : start + 20] = b"\xff" * 20
    path.write_bytes(content)
    found = _told(list_source(path))
    assert [caption for _, caption in (*found[:2], *found[4:])] == [f"number {i}" for i in (0, 1, 4, 5)]
    assert [where for where, reason in found if "row group 1 of the file is damaged" in reason] == [
        "list-00000003", "list-00000004"
    ]  # fmt: skip


def test_folders_that_are_not_whole_are_refused(tmp_path):
    folder = _save(tmp_path / "one", [_rows([1])])
    assert holds_arrow(folder) and not holds_arrow(tmp_path)

    def refused(state: str, message: str) -> None:
        (folder / "state.json").write_text(state)
        with pytest.raises(UserError, match=message):
            arrow_source(folder)

    refused("{", "state.json is not JSON")
    refused("[]", "state.json is not a JSON object")
    refused('{"_data_files": []}', "names no data files")
    refused('{"_data_files": [{"filename": "../../x.arrow"}]}', "names no data files of the folder")
    refused('{"_data_files": [{"filename": "absent.arrow"}]}', "absent.arrow is missing, which state.json names")
    good = '"_data_files": [{"filename": "data-00000-of-00001.arrow"}]'
    refused(f'{{{good}, "_indices_data_files": [{{}}]}}', "flatten_indices")
    (folder / "data-00000-of-00001.arrow").write_bytes(b"no arrow")
    refused(f"{{{good}}}", "is not an Arrow stream")
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["one", "two"]}')
    _save(folder, [_rows([1])])
    with pytest.raises(UserError, match="state.json is missing"):
        arrow_source(tmp_path)


def test_lists_take_the_names_of_columns(tmp_path, capsys):
    (tmp_path / "one.png").write_bytes(_picture(1))
    (tmp_path / "captions.csv").write_text("file,alt,pwatermark,page\none.png,a cube,0.25,007\n")
    _build(tmp_path, tmp_path / "corpus", "--image_column=file", "--caption_column=alt")
    (record,) = Corpus(tmp_path / "corpus").records("train")
    assert (record.caption, json.loads(record.meta)) == ("a cube", {"page": "007", "pwatermark": 0.25})
    words = ["build_corpus", f"--output={tmp_path / 'no'}", "--image_size=8"]
    assert main([*words, f"--images={tmp_path}", "--caption_column=alt"]) == 2
    assert "lacks column image; it has file, alt, pwatermark, page; name the columns image and alt, or say" in (
        capsys.readouterr().err
    )
    (tmp_path / "captions.csv").unlink()
    assert main([*words, f"--images={tmp_path}", "--caption_column=alt"]) == 2
    assert "columns are named, but" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
