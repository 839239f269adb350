"""Folders, lists and tasks give stable keys and name what is wrong with them."""

import csv
import json
import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from imagen_jax.data import raw_tasks, shapes
from imagen_jax.data.builder import BuildConfig, build_corpus
from imagen_jax.data.raw import RawExample, Rejection, Source
from imagen_jax.data.records import Corpus
from imagen_jax.data.sources import folder_source, list_source, shapes_source, task_source
from imagen_jax.errors import UserError
from imagen_jax.image_files import decode_image


def _image(path: Path, level: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (level,) * 3).save(path)


def _all(source: Source) -> list[RawExample | Rejection]:
    found = [one for part in source.parts for one in part()]
    assert len(found) == source.num_examples
    return found


def _write_list(path: Path, rows: list[dict]) -> Path:
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def test_folder_with_text_files(tmp_path):
    for name in ("b/two.JPG", "a.png", "b/one.png", "lonely.png", "latin.png"):
        _image(tmp_path / name)
        if name != "lonely.png":
            (tmp_path / name).with_suffix(".txt").write_text(f"caption of {name}\n")
    (tmp_path / "latin.txt").write_bytes(b"\xe9t\xe9")
    (tmp_path / "notes.md").write_text("no image")
    found = _all(folder_source(tmp_path))
    good = [one for one in found if isinstance(one, RawExample)]
    assert [(one.key, one.caption, one.split) for one in good] == [
        (name, f"caption of {name}\n", "train") for name in ("a.png", "b/one.png", "b/two.JPG")
    ]
    bad = {one.source: one.reason for one in found if isinstance(one, Rejection)}
    assert bad["lonely.png"] == "no caption file lonely.txt beside it"
    assert "cannot be read" in bad["latin.png"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_lists_of_each_kind_build_the_same_corpus(tmp_path, suffix):
    for i in range(3):
        _image(tmp_path / "images" / f"{i}.png", i)
    rows = [{"image": f"images/{i}.png", "caption": f'number "{i}", é', "id": i} for i in (2, 0, 1, 0)]
    rows[3]["image"] = "./images//0.png"
    listed = _write_list(tmp_path / f"captions{suffix}", rows)
    by_list, by_folder = list_source(listed), folder_source(tmp_path)
    expected = [("images/2.png", 2), ("images/0.png", 0), ("images/1.png", 1), ("images/0.png#1", 0)]
    for source in (by_list, by_folder):
        assert [(one.key, one.caption) for one in _all(source)] == [(key, f'number "{i}", é') for key, i in expected]
    report = build_corpus(by_list, tmp_path / "corpus", BuildConfig(name="mine", image_size=8))
    assert report.num_examples == {"train": 4}


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_missing_column_is_named_with_those_there_are(tmp_path, suffix):
    listed = _write_list(tmp_path / f"list{suffix}", [{"image": "a.png", "text": "a"}])
    with pytest.raises(UserError, match="lacks column caption; it has image, text; name the columns image and caption"):
        list_source(listed)


def test_list_rows_without_image_or_caption_are_refused(tmp_path):
    rows = [
        {"image": None, "caption": "c"},
        {"image": "a.png", "caption": None},
        {"image": "a.png", "caption": "c"},
    ]
    found = _all(list_source(_write_list(tmp_path / "list.parquet", rows)))
    assert [type(one) for one in found] == [Rejection, Rejection, RawExample]
    assert [one.source for one in found[:2]] == ["list.parquet row 1", "list.parquet row 2"]


def _pairs(source: Source) -> list[tuple[str, str]]:
    """(key, caption) of what is accepted, (where, reason) of what is not."""
    return [(one.source, one.reason) if isinstance(one, Rejection) else (one.key, one.caption) for one in _all(source)]


def test_csv_rows_of_another_length_are_refused_and_counted(tmp_path):
    (tmp_path / "list.csv").write_text(
        'image,caption\na.png,a red cube, on a table\n\nb.png\nc.png,"a ring, a cube"\n'
        'd.png,"of\ntwo lines"\ne.png,x,\n'
    )
    found = _pairs(list_source(tmp_path / "list.csv"))
    assert found[2:4] == [("c.png", "a ring, a cube"), ("d.png", "of\ntwo lines")]
    assert [where for where, _ in (*found[:2], found[4])] == [f"list.csv line {line}" for line in (2, 4, 8)]
    assert "3 fields, the header has 2; put a text with commas in quotes" in found[0][1]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('image,caption\na.png,x\nb.png,"a red cube\nc.png,y\nd.png,z\n', 3),
        ('image,caption\nb.png,"a red cube\nc.png,y\nd.png,"z"\n', 2),
        ('image,caption\na.png,"x"y\n', 2),
        # Longer than csv's own limit, which is no mistake, and far longer.
        (f"image,caption\na.png,x\nb.png,{'x' * (1 << 24)}y\n", 3),
    ],
    ids=["never closed", "closed in another row", "text after a quotation mark", "too long"],
)
def test_csv_that_cannot_be_read_on_names_the_row_it_began_in(tmp_path, text, line):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(UserError, match=f"in the row that begins at line {line}: "):
        list_source(tmp_path / "list.csv")
    assert csv.field_size_limit() == 131072


def test_a_long_caption_is_whole(tmp_path):
    long = "x" * 200_000
    (tmp_path / "list.csv").write_text(f"image,caption\na.png,{long}\n")
    assert _pairs(list_source(tmp_path / "list.csv")) == [("a.png", long)]


def test_a_json_row_without_a_caption_is_refused_by_its_line(tmp_path):
    (tmp_path / "list.jsonl").write_text(
        '{"image": "a.png", "caption": "a"}\n\n{"image": "b.png"}\n{"image": 3, "caption": "c"}\n'
    )
    found = _pairs(list_source(tmp_path / "list.jsonl"))
    assert found == [("a.png", "a"), ("list.jsonl line 3", "no caption"), ("list.jsonl line 4", "no image path")]
    (tmp_path / "deep.jsonl").write_text("[" * 100_000 + "\n")
    with pytest.raises(UserError, match="line 1 is not JSON"):
        list_source(tmp_path / "deep.jsonl")


@pytest.mark.parametrize("kind", ["bytes", "struct", "struct of bytes alone"])
def test_parquet_may_hold_the_images_themselves(tmp_path, kind):
    files = []
    for level in (10, 20, 30, 40):
        _image(tmp_path / "image.png", level)
        files.append((tmp_path / "image.png").read_bytes())
    _image(tmp_path / "beside.png", 50)
    rows: list[dict] = [{"image": file, "caption": f"number {i}"} for i, file in enumerate(files)]
    keys = [f"list-{number:08d}" for number in range(1, 5)]
    if kind != "bytes":
        rows = [{**row, "image": {"bytes": row["image"]}} for row in rows]
    if kind == "struct":
        keys = ["a.png", "b.png", "b.png#1", "beside.png"]
        rows[3]["image"]["bytes"] = None
        for row, name in zip(rows, ("a.png", "b.png", "b.png", "beside.png"), strict=True):
            row["image"]["path"] = name
    rows.append({"image": None, "caption": "nothing"})
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "list.parquet", row_group_size=2)
    found = _all(list_source(tmp_path / "list.parquet"))
    assert [one.key for one in found[:4]] == keys and [one.caption for one in found[:4]] == [
        f"number {i}" for i in range(4)
    ]
    assert isinstance(found[4], Rejection) and "neither bytes nor a path" in found[4].reason
    report = build_corpus(
        list_source(tmp_path / "list.parquet"),
        tmp_path / "corpus",
        BuildConfig(name="mine", image_size=8),
        num_workers=2,
    )
    assert report.num_examples == {"train": 4} and report.num_rejected == 1
    levels = [decode_image(record.image).getpixel((0, 0))[0] for record in Corpus(tmp_path / "corpus").records("train")]
    assert levels == [10, 20, 30, 50 if kind == "struct" else 40]


def test_folders_behind_links_are_read_and_circles_end(tmp_path):
    _image(tmp_path / "elsewhere" / "far.png")
    (tmp_path / "elsewhere" / "far.txt").write_text("far")
    (tmp_path / "root" / "inner").mkdir(parents=True)
    (tmp_path / "root" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "inner" / "up").symlink_to(tmp_path / "root")
    # Two folders that link to each other.
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "root")
    found = _pairs(folder_source(tmp_path / "root"))
    assert ("link/far.png", "far") in found
    assert {where for where, reason in found if "a link to a folder that it lies in" in reason} == {
        "inner/up",
        "link/back",
    }


def test_every_kind_of_image_is_read_or_counted(tmp_path):
    for suffix in (".jfif", ".jpe", ".jp2", ".avif", ".webp", ".ppm"):
        _image(tmp_path / f"image{suffix}")
    for suffix in (".heic", ".svg"):
        (tmp_path / f"other{suffix}").write_bytes(b"unknown")
    for name in ("image", "other"):
        (tmp_path / f"{name}.txt").write_text("a cube")
    found = _all(folder_source(tmp_path))
    assert len(found) == 8
    report = build_corpus(folder_source(tmp_path), tmp_path / "corpus", BuildConfig(name="mine", image_size=8))
    assert (report.num_examples, report.num_rejected) == ({"train": 6}, 2)


def test_a_name_that_is_no_text_is_refused_and_counted(tmp_path):
    _image(tmp_path / "good.png")
    (tmp_path / "good.txt").write_text("a cube")
    os.rename(tmp_path / "good.png", os.path.join(os.fsencode(tmp_path), b"bad\xff.png"))
    _image(tmp_path / "good.png")
    report = build_corpus(folder_source(tmp_path), tmp_path / "corpus", BuildConfig(name="mine", image_size=8))
    assert (report.num_examples, report.num_rejected) == ({"train": 1}, 1)
    assert "not UTF-8" in (tmp_path / "corpus" / "rejects.jsonl").read_text()


def test_addresses_are_no_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for make in (folder_source, list_source, Corpus):
        with pytest.raises(UserError, match="begins with http:/, and only paths of this machine"):
            make("http://host/x")
    assert list(tmp_path.iterdir()) == []


def test_unusable_lists(tmp_path):
    def refused(name: str, content: bytes, message: str) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=message):
            list_source(tmp_path / name)

    refused("a.jsonl", b'{"image": "a", "caption": "b"}\n{no\n', "line 2 is not JSON")
    refused("b.jsonl", b"[1]\n", "line 1 is not a JSON object")
    refused("c.jsonl", b"", "has no rows")
    refused("d.csv", b"", "lacks column image and caption; it has none")
    refused(
        "e.csv", b"image,caption\n" + b"a,b\n" * 5000 + b"c,\xff\n", r"is not UTF-8 \(byte 0xff in line 5002\); save it"
    )
    refused("h.jsonl", b'{"image": "a", "caption": "\xe9"}', r"is not UTF-8 \(byte 0xe9 in line 1\)")
    refused("i.csv", b"image,caption,caption\na,b,c\n", "has column caption more than once; rename all but one")
    refused("f.parquet", b"PAR1 no", "is not a Parquet file")
    refused("g.txt", b"", r"must end in one of \.csv, \.jsonl, \.parquet")
    with pytest.raises(UserError, match="does not exist"):
        list_source(tmp_path / "absent.csv")


def test_unusable_folders(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="absent' does not exist"):
        folder_source(tmp_path / "absent")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is not a directory"):
        folder_source(tmp_path / "file")
    with pytest.raises(UserError, match="holds no images"):
        folder_source(tmp_path)
    for suffix in (".csv", ".jsonl"):
        (tmp_path / f"captions{suffix}").write_text("")
    with pytest.raises(UserError, match=r"holds captions\.csv and captions\.jsonl; keep one"):
        folder_source(tmp_path)

    def deny(path):  # root reads whatever its permissions are, so the refusal is acted
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "locked").mkdir()
    monkeypatch.setattr(os, "scandir", deny)
    with pytest.raises(UserError, match=r"locked' cannot be read \(Permission denied\)"):
        folder_source(tmp_path / "locked")


def test_validation_split_is_stable_and_keeps_captions_of_an_image_together(tmp_path):
    rows = [{"image": f"{i}.png", "caption": str(j)} for i in range(400) for j in range(2)]
    found = _all(list_source(_write_list(tmp_path / "list.csv", rows), val_fraction=0.25, seed=1))
    split = {one.key: one.split for one in found}
    assert all(split[f"{i}.png"] == split[f"{i}.png#1"] for i in range(400))
    # 400 draws at 1/4: 100 expected, standard deviation below 9.
    assert 65 <= sum(split[f"{i}.png"] == "val" for i in range(400)) <= 135
    fewer = _all(list_source(_write_list(tmp_path / "list.csv", rows[100:]), val_fraction=0.25, seed=1))
    assert all(split[one.key] == one.split for one in fewer)
    other = _all(list_source(_write_list(tmp_path / "list.csv", rows), val_fraction=0.25, seed=2))
    assert any(split[one.key] != one.split for one in other)
    for fraction in (-0.1, 1.0):
        with pytest.raises(UserError, match="val_fraction"):
            list_source(tmp_path / "list.csv", val_fraction=fraction)


def test_settings_tell_changed_folders_apart(tmp_path):
    _image(tmp_path / "a.png")
    caption = tmp_path / "a.txt"
    caption.write_text("one")
    first = folder_source(tmp_path).settings
    assert first == folder_source(tmp_path).settings
    caption.write_text("two")
    assert folder_source(tmp_path).settings != first
    caption.write_text("one")
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    assert folder_source(tmp_path).settings != first


def test_shapes_are_cut_into_parts_and_know_when_the_drawing_changes(monkeypatch):
    source = shapes_source({"train": 130, "val": 7}, seed=3, image_size=32)
    assert [(one.key, one.split) for one in _all(source)] == [
        (f"shapes-3-{split}-{i:07d}", split) for split, count in (("train", 130), ("val", 7)) for i in range(count)
    ]
    assert shapes_source({"train": 130, "val": 7}, seed=3, image_size=32).settings == source.settings
    draw = shapes.draw
    monkeypatch.setattr(shapes, "draw", lambda *arguments: 255 - draw(*arguments))
    assert shapes_source({"train": 130, "val": 7}, seed=3, image_size=32).settings != source.settings


def test_coco_captions_gives_one_example_per_caption(tmp_path):
    def coco(builder, split=None, **_):
        def examples():
            for image_id, captions in ((7, ["a dog", "the dog"]), (9, ["a cat"])):
                yield {
                    "image": tf.fill((10, 12, 3), tf.cast(image_id, tf.uint8)),
                    "image/id": tf.constant(image_id, tf.int64),
                    "captions": {"id": tf.range(len(captions), dtype=tf.int64), "text": tf.constant(captions)},
                }

        full = builder.info.features.get_tensor_spec()
        spec = {name: full[name] for name in ("image", "image/id", "captions")}
        return tf.data.Dataset.from_generator(examples, output_signature=spec)

    with tfds.testing.mock_data(as_dataset_fn=coco):
        source = task_source("coco_captions", ["val"])
        assert "coco_captions" in seqio.TaskRegistry.names()
        report = build_corpus(source, tmp_path, BuildConfig(name="coco", image_size=8))
    assert report.num_examples == {"val": 3}
    records = list(Corpus(tmp_path).records("val"))
    assert [(record.key, record.caption) for record in records] == [
        (b"7-0", "a dog"), (b"7-1", "the dog"), (b"9-0", "a cat")
    ]  # fmt: skip


def test_coco_captions_on_mock_data_of_tfds():
    with tfds.testing.mock_data(num_examples=3):
        task = raw_tasks.get_raw_task("coco_captions")
        examples = list(task.get_dataset(split="train", shuffle=False).as_numpy_iterator())
    assert examples
    for example in examples:
        image_id, number = example["key"].decode().rsplit("-", 1)
        assert int(image_id) >= 0 and int(number) >= 0
        assert example["image"].ndim == 3 and example["image"].dtype == "uint8"
        assert isinstance(example["caption"], bytes)


def test_unusable_tasks():
    with pytest.raises(UserError, match="no seqio task 'absent'; choose one of .*coco_captions"):
        task_source("absent", ["train"])
    with (
        tfds.testing.mock_data(),
        pytest.raises(UserError, match="split 'dev' is not in task 'coco_captions'"),
    ):
        task_source("coco_captions", ["dev"])


@pytest.mark.parametrize(
    ("declared", "given", "message"),
    [
        ({"caption": tf.string}, {}, "lacks image, key"),
        ({"key": tf.int64, "image": tf.string, "caption": tf.string}, {}, "feature key of task 'odd' is int64"),
        (
            {"key": tf.string, "image": tf.float32, "caption": tf.string}, {},
            "feature image of task 'odd' is float32; expected uint8 or string: convert it",
        ),
        (
            {"key": tf.string, "image": tf.string, "caption": tf.string},
            {"key": ["a"], "image": ["x"], "caption": [3]},
            "task 'odd' does not give what its output_features say .*caption",
        ),
    ],
)  # fmt: skip
def test_tasks_of_other_features_are_refused(declared, given, message):
    """By what they declare, and by what they give."""
    vocabulary = seqio.PassThroughVocabulary(0)
    seqio.TaskRegistry.add(
        "odd",
        source=seqio.FunctionDataSource(
            lambda split, shuffle_files: tf.data.Dataset.from_tensor_slices(given), ["train"]
        ),
        output_features={
            name: seqio.Feature(vocabulary, add_eos=False, dtype=dtype, rank=0) for name, dtype in declared.items()
        },
    )
    try:
        with pytest.raises(UserError, match=message):
            _all(task_source("odd", ["train"]))
    finally:
        seqio.TaskRegistry.remove("odd")


def test_coco_captions_that_are_not_prepared_say_how(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match="tfds build coco_captions"):
        _all(task_source("coco_captions", ["val"]))
