"""Corpora in a bucket are those of a folder, byte for byte, and are read as they are."""

import io
import itertools
import re
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from imagen_jax.data.builder import BuildConfig, build_corpus
from imagen_jax.data.config import DataConfig
from imagen_jax.data.pipeline import BatchIterator
from imagen_jax.data.raw import RawExample
from imagen_jax.data.records import Corpus
from imagen_jax.data.sources import folder_source, list_source
from imagen_jax.errors import UserError
from imagen_jax.files import write_bytes
from imagen_jax.main import main

URL = "gs://bucket-a/corpora/tiny"


@pytest.fixture
def built(bucket, tmp_path, source_of) -> Path:
    """One corpus in a folder, and the same at URL."""
    examples = [
        RawExample(key=f"example-{i:03d}", image=np.full((8, 8, 3), i, np.uint8), caption=f"a {i}", split="train")
        for i in range(10)
    ]
    config = BuildConfig(name="tiny", image_size=8, examples_per_shard=4)
    for out in (tmp_path / "corpus", URL):
        build_corpus(source_of(examples), out, config)
    return tmp_path / "corpus"


def test_a_corpus_in_a_bucket_has_the_same_bytes(bucket, built):
    here = {path.name: path.read_bytes() for path in built.iterdir()}
    there = {name.removeprefix("corpora/tiny/"): bucket.content(name) for name in bucket.names()}
    assert here == there


def test_records_are_read_from_it_in_any_order(built):
    order = [9, 0, 4, 4, 3]
    assert Corpus(URL).read("train", order) == Corpus(built).read("train", order)


def test_a_build_that_is_there_is_verified_and_kept_and_another_is_refused(bucket, built, source_of):
    examples = [RawExample(key="k", image=np.zeros((8, 8, 3), np.uint8), caption="c", split="train")]
    with pytest.raises(UserError, match="already holds a corpus of other settings"):
        build_corpus(source_of(examples), URL, BuildConfig(name="tiny", image_size=8, seed=3))
    report = build_corpus(
        source_of(examples), URL, BuildConfig(name="tiny", image_size=8, examples_per_shard=2), overwrite=True
    )
    assert report.num_examples == {"train": 1}
    assert [name for name in bucket.names() if "-of-00003" in name] == []
    assert Corpus(URL).num_examples("train") == 1


def test_batches_are_those_of_the_folder(built, numbered_store):
    store = numbered_store(10)

    def batches(corpus_dir: str) -> list[dict[str, np.ndarray]]:
        config = DataConfig(corpus_dir=corpus_dir, store_dir=store, image_size=8, max_text_length=3)
        return list(itertools.islice(BatchIterator(config, batch_size=4, seed=0, start_step=0), 6))

    for here, there in zip(batches(str(built)), batches(URL), strict=True):
        assert all(np.array_equal(here[name], there[name]) for name in here)


def test_a_flipped_byte_in_the_bucket_is_refused_by_name(bucket, built):
    (name,) = (name for name in bucket.names() if name.endswith("train-00001-of-00003.array_record"))
    content = bytearray(bucket.content(name))
    content[content.index(b"IHDR")] ^= 1
    bucket.replace(name, bytes(content))
    with pytest.raises(UserError, match=f"shard {re.escape('gs://bucket-a/' + name)} is damaged"):
        Corpus(URL).read("train", list(range(10)))
    with pytest.raises(UserError, match=f"shard {re.escape('gs://bucket-a/' + name)} differs from its SHA-256"):
        Corpus(URL).verify()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("gs://no-such-bucket/x", "corpus directory 'gs://no-such-bucket/x' does not exist"),
        ("gs://bucket-a/nothing", "corpus directory 'gs://bucket-a/nothing' does not exist"),
        ("gs:/bucket-a/x", "must name a bucket: gs://bucket/folder"),
        ("gss://bucket-a/x", "begins with gss:/, and only"),
    ],
)
def test_what_is_no_corpus_is_named(bucket, path, message):
    with pytest.raises(UserError, match=re.escape(message)):
        Corpus(path)


def test_a_bucket_that_is_not_there_is_not_made(bucket, source_of):
    examples = [RawExample(key="k", image=np.zeros((8, 8, 3), np.uint8), caption="c", split="train")]
    with pytest.raises(UserError, match="bucket gs://no-such-bucket does not exist"):
        build_corpus(source_of(examples), "gs://no-such-bucket/x", BuildConfig(name="tiny", image_size=8))
    assert "no-such-bucket" not in bucket.storage.buckets


def test_a_bucket_that_may_only_be_read_is_read_and_not_written(bucket, built, source_of, tmp_path, capsys):
    bucket.fault = lambda method, path: None if method == "GET" else 403
    assert Corpus(URL).read("train", [3]) == Corpus(built).read("train", [3])
    before = bucket.names()
    (tmp_path / "raw").mkdir()
    for name, content in (("a.png", _png(1)), ("a.txt", b"one")):
        (tmp_path / "raw" / name).write_bytes(content)
    flags = ["--images", str(tmp_path / "raw"), "--image_size=8"]
    assert main(["build_corpus", *flags, "--output=gs://bucket-a/corpora/more"]) == 2
    told = capsys.readouterr().err
    assert "Traceback" not in told
    assert "corpora/more' cannot be written (Forbidden" in told.strip().splitlines()[-1]
    assert bucket.names() == before


def test_a_half_written_corpus_is_none(bucket, built):
    bucket.remove("corpora/tiny/corpus.json")
    with pytest.raises(UserError, match="holds no whole corpus"):
        Corpus(URL)
    write_bytes(f"{URL}/corpus.json", b"{")
    with pytest.raises(UserError, match="is not valid JSON"):
        Corpus(URL)


def _png(level: int) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), level, np.uint8)).save(content, "PNG")
    return content.getvalue()


def test_a_folder_of_pictures_in_a_bucket_is_that_of_this_machine(bucket, tmp_path):
    files = {"a.png": _png(1), "a.txt": b"\xef\xbb\xbfone", "b/c.png": _png(2), "b/c.txt": b"two"}
    files |= {"alone.png": _png(3), "odd.png": _png(4), "odd.txt": b"\xff", "note.md": b"no picture"}
    for name, content in files.items():
        (tmp_path / "raw" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "raw" / name).write_bytes(content)
        write_bytes(f"gs://bucket-a/raw/{name}", content)
    config = BuildConfig(name="raw", image_size=8)
    for place, out in ((tmp_path / "raw", tmp_path / "here"), ("gs://bucket-a/raw", tmp_path / "there")):
        report = build_corpus(folder_source(place), out, config)
        assert report.num_examples == {"train": 2} and report.num_rejected == 2
    here, there = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("here", "there"))
    assert here == there


def test_a_list_in_a_bucket_names_pictures_beside_it(bucket, tmp_path):
    write_bytes("gs://bucket-a/raw/list.csv", b"image,caption\na.png,one\nnone.png,two\n")
    write_bytes("gs://bucket-a/raw/a.png", _png(1))
    report = build_corpus(list_source("gs://bucket-a/raw/list.csv"), URL, BuildConfig(name="raw", image_size=8))
    assert report.num_examples == {"train": 1} and report.num_rejected == 1
    write_bytes("gs://bucket-a/raw/bad.csv", b"picture,caption\na.png,one\n")
    with pytest.raises(UserError, match="list 'gs://bucket-a/raw/bad.csv' lacks column image"):
        list_source("gs://bucket-a/raw/bad.csv")


def test_a_parquet_list_in_a_bucket_holds_its_pictures(bucket, tmp_path):
    table = pyarrow.table({"image": [_png(1), _png(2)], "caption": ["one", "two"]})
    pyarrow.parquet.write_table(table, tmp_path / "list.parquet")
    write_bytes("gs://bucket-a/raw/list.parquet", (tmp_path / "list.parquet").read_bytes())
    build_corpus(list_source("gs://bucket-a/raw/list.parquet"), URL, BuildConfig(name="raw", image_size=8))
    levels = [np.asarray(Image.open(io.BytesIO(one.image)))[0, 0, 0] for one in Corpus(URL).records("train")]
    assert levels == [1, 2]
