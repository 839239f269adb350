"""A corpus is whole or absent, the same bytes every time, and names what it refused."""

import io
import json
import re
import signal
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagen_jax.data import draft
from imagen_jax.data.builder import BuildConfig, build_corpus
from imagen_jax.data.corpora import build_shapes
from imagen_jax.data.raw import RawExample, Rejection, Source
from imagen_jax.data.records import Corpus
from imagen_jax.data.shapes import HELDOUT
from imagen_jax.data.sources import shapes_source
from imagen_jax.errors import UserError
from imagen_jax.text.tokenizer import load_vocabulary


def _example(key: str, level: int = 0, **fields) -> RawExample:
    pixels = np.full((8, 8, 3), level, np.uint8)
    return RawExample(**{"key": key, "image": pixels, "caption": "a b", **fields})


def _config(**fields) -> BuildConfig:
    return BuildConfig(**{"name": "tiny", "image_size": 8, **fields})


def _files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_examples_come_back_in_order_by_split(tmp_path, source_of):
    examples = [_example(f"k{i}", i, split="val" if i % 3 == 0 else "train", meta={"i": i}) for i in range(7)]
    report = build_corpus(source_of(examples), tmp_path, _config(examples_per_shard=2), extra={"note": 1})
    assert report.num_examples == {"train": 4, "val": 3}
    assert str(report) == "examples: val 3, train 4; rejected: 0"
    corpus = Corpus(tmp_path)
    assert corpus.manifest["extra"] == {"note": 1}
    assert corpus.image_size == 8
    records = list(corpus.records("train"))
    assert [record.key for record in records] == [b"k1", b"k2", b"k4", b"k5"]
    assert [json.loads(record.meta)["i"] for record in records] == [1, 2, 4, 5]
    assert (records[0].height, records[0].width, records[0].caption) == (8, 8, "a b")
    assert (tmp_path / "rejects.jsonl").read_text() == ""


def test_refused_inputs_are_counted_and_named(tmp_path, source_of):
    examples = [
        _example("good"),
        Rejection(source="lonely.png", reason="no caption file"),
        _example("mute", caption=""),
        RawExample(key="broken", image=b"\x89PNG no", caption="c"),
        _example("good", 5),
        RawExample(key="small", image=np.zeros((7, 9, 3), np.uint8), caption="c"),
    ]
    report = build_corpus(source_of(examples), tmp_path, _config())
    assert report.num_examples == {"train": 1}
    assert report.num_rejected == Corpus(tmp_path).manifest["num_rejected"] == 5
    refused = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    assert [one["source"] for one in refused] == ["lonely.png", "mute", "broken", "good", "small"]
    patterns = (
        "no caption file",
        "empty caption",
        "cannot be decoded",
        "same key",
        "image is 9x7; the shorter side must be at least 8 pixels",
    )
    for pattern, one in zip(patterns, refused, strict=True):
        assert re.search(pattern, one["reason"])


def test_the_manifest_says_the_format_and_nothing_new_of_png_squares(tmp_path, source_of):
    photo = np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(photo).save(buffer, "JPEG")
    for image_format, quality in (("png", None), ("jpeg", 90), ("webp", None), ("original", None)):
        config = _config(image_format=image_format, quality=quality)
        build_corpus(source_of([_example("k", image=buffer.getvalue())]), tmp_path / image_format, config)
        corpus = Corpus(tmp_path / image_format)
        build = corpus.manifest["settings"]["build"]
        (record,) = corpus.records("train")
        if image_format == "png":
            assert "image_format" not in corpus.manifest and not {"image_format", "quality", "shard_size"} & {*build}
        else:
            assert corpus.manifest["image_format"] == build["image_format"] == image_format
        assert build.get("quality") == quality and corpus.keeps_originals == (image_format == "original")
        assert (record.height, record.width) == ((12, 20) if image_format == "original" else (8, 8))
    assert record.image == buffer.getvalue()


def test_shards_have_at_most_so_many_bytes_of_records(tmp_path, source_of):
    pictures = [np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8) for i in range(9)]
    examples = [_example(f"k{i}", image=pictures[i] if i % 2 else pictures[i] * 0) for i in range(9)]
    examples.append(_example("long", caption="word " * 300))
    build_corpus(source_of(examples), tmp_path, _config(shard_size=800, examples_per_shard=2))
    corpus, sizes = Corpus(tmp_path), []
    shards = corpus.manifest["splits"]["train"]["shards"]
    records = corpus.read("train", range(10))
    for count in (shard["num_examples"] for shard in shards):
        sizes.append(sum(len(record) for record in records[:count]))
        del records[:count]
        # The next one did not fit.
        assert not records or sizes[-1] + len(records[0]) > 800
    assert max(shard["num_examples"] for shard in shards) > 2
    assert all(size <= 800 for size in sizes[:-1]) and shards[-1]["num_examples"] == 1 and sizes[-1] > 800


def test_smaller_images_are_enlarged_when_min_size_allows(tmp_path, source_of):
    raw = RawExample(key="k", image=np.full((4, 4, 3), 9, np.uint8), caption="c")
    report = build_corpus(source_of([raw]), tmp_path, _config(min_size=4))
    assert report.num_examples == {"train": 1}


def test_nothing_usable_is_an_error_and_leaves_nothing(tmp_path, source_of):
    out = tmp_path / "out"
    with pytest.raises(UserError, match="no usable example among 1 .* k: empty caption"):
        build_corpus(source_of([_example("k", caption=" ")]), out, _config())
    with pytest.raises(UserError, match="the source is empty"):
        build_corpus(source_of([]), out, _config())
    assert not out.exists()


def test_an_interrupted_build_leaves_an_older_corpus_whole(tmp_path, source_of):
    build_corpus(source_of([_example("old")]), tmp_path, _config())
    before = _files(tmp_path)

    def fail():
        yield _example("new")
        raise RuntimeError("the disk is gone")

    source = Source(parts=[fail], num_examples=1, settings={})
    with pytest.raises(RuntimeError, match="the disk is gone"):
        build_corpus(source, tmp_path, _config(), overwrite=True)
    assert _files(tmp_path) == before


def test_other_settings_are_refused_unless_overwritten(tmp_path, source_of):
    examples = [_example(f"k{i}", split="train") for i in range(3)]
    build_corpus(source_of(examples), tmp_path, _config(examples_per_shard=1))
    with pytest.raises(UserError, match=r"different: build\.min_size, build\.seed\); .*--overwrite"):
        build_corpus(source_of(examples), tmp_path, _config(examples_per_shard=1, seed=3, min_size=2))
    (tmp_path / "notes.txt").write_text("mine")
    build_corpus(source_of(examples), tmp_path, _config(seed=3), overwrite=True)
    assert Corpus(tmp_path).manifest["seed"] == 3
    assert sorted(_files(tmp_path)) == [
        "corpus.json", "notes.txt", "rejects.jsonl", "repairs.jsonl", "train-00000-of-00001.array_record",
        "train-00000-of-00001.array_record.index",
    ]  # fmt: skip


def test_overwriting_deletes_nothing_outside_of_the_folder(tmp_path, source_of):
    """The names in an old corpus.json may come from anyone."""
    corpus, victim = tmp_path / "corpus", tmp_path / "victim.txt"
    build_corpus(source_of([_example("a")]), corpus, _config())
    victim.write_text("mine")
    manifest = json.loads((corpus / "corpus.json").read_text())
    shards = manifest["splits"]["train"]["shards"]
    shards += [{**shards[0], "file": name} for name in ("../victim.txt", str(victim), "..", "", None)]
    (corpus / "corpus.json").write_text(json.dumps(manifest))
    build_corpus(source_of([_example("b")]), corpus, _config(image_size=2), overwrite=True)
    assert victim.read_text() == "mine" and Corpus(corpus).num_examples("train") == 1


def test_of_two_builds_at_once_one_is_whole_and_the_other_refused(tmp_path):
    begun, goes_on = threading.Event(), threading.Event()

    def slow():
        begun.set()
        goes_on.wait(30)
        yield _example("a")

    source = Source(parts=[slow], num_examples=1, settings={"kind": "slow"})
    first = threading.Thread(target=build_corpus, args=(source, tmp_path / "corpus", _config()))
    first.start()
    assert begun.wait(30)
    for overwrite in (False, True):
        with pytest.raises(UserError, match="corpus' is being built by process [0-9]+ on host"):
            build_corpus(source, tmp_path / "corpus", _config(image_size=2), overwrite=overwrite)
    goes_on.set()
    first.join()
    Corpus(tmp_path / "corpus").verify()
    assert Corpus(tmp_path / "corpus").image_size == _config().image_size
    assert not [path for path in (tmp_path / "corpus").iterdir() if "building" in path.name or "lock" in path.name]


@pytest.mark.slow
def test_a_build_that_is_ended_leaves_nothing(tmp_path):
    """SIGTERM in the middle of it: no folder of half-written shards."""
    script = (
        "import sys, time\n"
        "from imagen_jax.data import sources\n"
        "from imagen_jax.main import main\n"
        "real = sources._rows_source\n"
        "def slow(*args):\n"
        "    source = real(*args)\n"
        "    def part():\n"
        "        yield from source.parts[0]()\n"
        "        print('begun', flush=True)\n"
        "        time.sleep(60)\n"
        "    return type(source)(parts=[part], num_examples=2, settings=source.settings)\n"
        "sources._rows_source = slow\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    images, corpus = tmp_path / "images", tmp_path / "corpus"
    images.mkdir()
    Image.new("RGB", (8, 8)).save(images / "a.png")
    (images / "a.txt").write_text("a cube")
    words = ["build_corpus", f"--images={images}", f"--output={corpus}", "--image_size=8"]
    child = subprocess.Popen(
        [sys.executable, "-c", script, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None and child.stdout.readline() == "begun\n"
    child.send_signal(signal.SIGTERM)
    _, told = child.communicate(timeout=30)
    assert child.returncode == 143 and "ended by SIGTERM" in told and "Traceback" not in told
    assert not corpus.exists()


def test_a_repaired_image_is_kept_counted_and_named(tmp_path, source_of):
    # Turned, and its XResolution a text.
    broken = b"Exif\0\0II*\0\x08\0\0\0\x02\0" + struct.pack("<HHIHHHHII", 0x0112, 3, 1, 6, 0, 0x011A, 2, 7, 38)
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "PNG", exif=broken + b"\0\0\0\0" + b"72 dpi\0")
    report = build_corpus(source_of([_example("a"), _example("b", image=buffer.getvalue())]), tmp_path, _config())
    assert (report.num_examples, report.num_rejected, report.num_repaired) == ({"train": 2}, 0, 1)
    (line,) = (tmp_path / "repairs.jsonl").read_text().splitlines()
    assert json.loads(line)["source"] == "b" and "EXIF data are broken" in json.loads(line)["reason"]
    assert "repaired: 1 (repairs.jsonl)" in str(report)
    again = build_corpus(source_of([_example("a"), _example("b", image=buffer.getvalue())]), tmp_path, _config())
    assert again.reused and again.num_repaired == 1


def test_an_unreadable_manifest_can_be_overwritten(tmp_path, source_of):
    (tmp_path / "corpus.json").write_text("{")
    with pytest.raises(UserError, match="is not valid JSON"):
        build_corpus(source_of([_example("k")]), tmp_path, _config())
    build_corpus(source_of([_example("k")]), tmp_path, _config(), overwrite=True)
    assert Corpus(tmp_path).num_examples("train") == 1


def test_the_same_build_is_reused_after_a_check(tmp_path, source_of):
    build_corpus(source_of([_example("k")]), tmp_path, _config())
    before = (tmp_path / "corpus.json").stat().st_mtime_ns
    report = build_corpus(source_of([_example("k")]), tmp_path, _config())
    assert report.reused and report.num_examples == {"train": 1}
    assert (tmp_path / "corpus.json").stat().st_mtime_ns == before
    shard = tmp_path / "train-00000-of-00001.array_record"
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match="differs from its SHA-256"):
        build_corpus(source_of([_example("k")]), tmp_path, _config())


def test_workers_change_no_byte(tmp_path, monkeypatch, capsys):
    source = shapes_source({"train": 120, "val": 5}, seed=7, image_size=32)
    config = _config(name="shapes", image_size=32, examples_per_shard=50)
    build_corpus(source, tmp_path / "alone", config)
    build_corpus(source, tmp_path / "again", config)
    build_corpus(source, tmp_path / "workers", config, num_workers=2)
    # One that was killed after its first shard, gone on with by workers.
    real, notes = draft.write_json, []

    def killed(path, *arguments, **named):
        if notes:
            raise KeyboardInterrupt
        notes.append(path)
        real(path, *arguments, **named)

    monkeypatch.setattr(draft, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        build_corpus(source, tmp_path / "killed", config)
    monkeypatch.setattr(draft, "write_json", real)
    assert "1 whole shards stay in" in capsys.readouterr().err
    build_corpus(source, tmp_path / "killed", config, num_workers=2)
    alone = _files(tmp_path / "alone")
    assert alone == _files(tmp_path / "killed") == _files(tmp_path / "again") == _files(tmp_path / "workers")
    assert Corpus(tmp_path / "alone").num_examples("train") == 120


def test_shapes_corpus_holds_vocabulary_heldout_pairs_and_scenes(tmp_path):
    build_shapes(tmp_path, {"train": 60, "val": 10}, seed=0, vocab_size=100)
    corpus = Corpus(tmp_path)
    assert {tuple(pair) for pair in corpus.manifest["extra"]["heldout"]} == HELDOUT
    vocabulary = load_vocabulary(str(tmp_path / "vocabulary.model"))
    for record in corpus.records("val"):
        tokens = vocabulary.encode(record.caption)
        assert vocabulary.unk_id not in tokens
        assert vocabulary.decode(tokens) == record.caption
        drawn = {(one["colour"], one["shape"]) for one in json.loads(record.meta)["objects"]}
        assert not drawn & HELDOUT


def test_vocabulary_needs_training_captions(tmp_path, source_of, capsys):
    source = source_of([_example("k", split="val")])
    with pytest.raises(UserError, match="no split 'train'"):
        build_corpus(source, tmp_path, _config(vocab_size=20))
    (draft,) = tmp_path.iterdir()
    assert f"1 whole shards stay in {draft}" in capsys.readouterr().err
    build_corpus(source, tmp_path, _config())
    assert not draft.exists() and Corpus(tmp_path).num_examples("val") == 1


def test_bad_settings_are_refused(tmp_path, source_of):
    for field, value in {"name": "a-b", "image_size": 0, "min_size": 0, "seed": -1, "vocab_size": 0, "shard_size": 0,
                         "examples_per_shard": True, "image_format": "gif", "quality": 90}.items():  # fmt: skip
        with pytest.raises(UserError, match=field):
            _config(**{field: value})
    with pytest.raises(UserError, match="jpeg has no quality"):
        _config(image_format="jpeg")
    with pytest.raises(UserError, match=r"quality \(101\)"):
        _config(image_format="webp", quality=101)
    with pytest.raises(UserError, match="split 'a/b'"):
        build_corpus(source_of([_example("k", split="a/b")]), tmp_path, _config())
    with pytest.raises(UserError, match=r"num_workers \(-1\) must be an integer >= 0"):
        build_corpus(source_of([_example("k")]), tmp_path, _config(), num_workers=-1)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        build_corpus(source_of([_example("k")]), tmp_path / "file", _config())
