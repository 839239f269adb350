"""Records survive the round trip, random access finds them, and damage is named."""

import json
import re
from pathlib import Path

import pytest
import tensorflow as tf

from imagen_jax.data.records import (
    FORMAT_VERSION,
    PARSE_SPEC,
    Corpus,
    Record,
    SplitWriter,
    decode_record,
    encode_record,
)
from imagen_jax.errors import UserError


def _record(number: int) -> bytes:
    return encode_record(
        Record(key=f"k{number}".encode(), image=b"\x89" * (number + 1), caption="é", height=3, width=4)
    )


def write_corpus(directory: Path, count: int, per_shard: int) -> dict:
    writer = SplitWriter(directory, "train", per_shard)
    for number in range(count):
        writer.write(_record(number))
    splits = {"train": writer.finish()}
    manifest = {"format_version": FORMAT_VERSION, "image_size": 4, "num_rejected": 0, "splits": splits}
    (directory / "corpus.json").write_text(json.dumps(manifest))
    return manifest


def test_record_round_trip():
    record = Record(
        key="naïve/ключ.png".encode(),
        image=bytes(range(256)),
        caption="ein Bär",
        height=3,
        width=5,
        meta='{"a": 1}',
    )
    assert decode_record(encode_record(record)) == record


def test_tensorflow_reads_what_is_written():
    parsed = tf.io.parse_single_example(_record(2), PARSE_SPEC)
    assert parsed["key"].numpy() == b"k2"
    assert parsed["image"].numpy() == b"\x89\x89\x89"
    assert parsed["caption"].numpy().decode() == "é"


def test_shards_are_named_counted_and_read_in_any_order(tmp_path):
    manifest = write_corpus(tmp_path, count=10, per_shard=4)
    shards = manifest["splits"]["train"]["shards"]
    assert [shard["file"] for shard in shards] == [f"train-0000{i}-of-00003.array_record" for i in range(3)]
    assert [shard["num_examples"] for shard in shards] == [4, 4, 2]
    files = [name for shard in shards for name in (shard["file"], shard["index"]["file"])]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.json", *files]
    corpus = Corpus(tmp_path)
    order = [9, 0, 4, 4, 3, 8, 7, 0]
    assert corpus.read("train", order) == [_record(number) for number in order]
    assert corpus.num_examples("train") == 10
    assert [record.key for record in corpus.records("train")] == [f"k{i}".encode() for i in range(10)]
    assert list(corpus.captions()) == [(f"k{i}".encode(), "é") for i in range(10)]
    for outside in (-1, 10):
        with pytest.raises(IndexError, match=r"outside \[0, 10\)"):
            corpus.read("train", [outside])


def test_unknown_split_names_those_there_are(tmp_path):
    write_corpus(tmp_path, count=1, per_shard=1)
    with pytest.raises(UserError, match="split 'test' is not in corpus .*; choose one of train"):
        Corpus(tmp_path).num_examples("test")


def test_a_directory_that_is_no_corpus(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        Corpus(tmp_path / "absent")
    with pytest.raises(UserError, match=r"has no corpus\.json"):
        Corpus(tmp_path)
    (tmp_path / "corpus.json").write_text("{")
    with pytest.raises(UserError, match="is not valid JSON"):
        Corpus(tmp_path)
    (tmp_path / "corpus.json").write_text('{"format_version": 99}')
    with pytest.raises(UserError, match="format_version 99; expected 1"):
        Corpus(tmp_path)


def test_missing_and_truncated_shards_are_named_on_opening(tmp_path):
    manifest = write_corpus(tmp_path, count=5, per_shard=3)
    path = tmp_path / manifest["splits"]["train"]["shards"][1]["file"]
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=f"{re.escape(str(path))} is {len(whole) // 2} bytes long; expected"):
        Corpus(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=f"{re.escape(str(path))} is missing"):
        Corpus(tmp_path)


def test_a_shard_with_fewer_records_than_stated_is_named(tmp_path):
    manifest = write_corpus(tmp_path, count=5, per_shard=3)
    shard = manifest["splits"]["train"]["shards"][0]
    path = tmp_path / shard["file"]
    path.write_bytes(path.read_bytes()[: shard["num_bytes"] // 2].ljust(shard["num_bytes"], b"\0"))
    with pytest.raises(UserError, match=f"{re.escape(str(path))} holds .* readable records; expected 3"):
        Corpus(tmp_path).read("train", [0])


def test_a_flipped_bit_is_found_by_reading_and_by_verify(tmp_path):
    manifest = write_corpus(tmp_path, count=2, per_shard=2)
    path = tmp_path / manifest["splits"]["train"]["shards"][0]["file"]
    content = bytearray(path.read_bytes())
    content[content.index(b"\x89\x89")] ^= 1
    Corpus(tmp_path).verify()
    path.write_bytes(content)
    corpus = Corpus(tmp_path)
    with pytest.raises(UserError, match=f"{re.escape(str(path))} is damaged"):
        corpus.read("train", [0, 1])
    with pytest.raises(UserError, match=f"{re.escape(str(path))} differs from its SHA-256"):
        corpus.verify()


def test_digest_follows_the_contents(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "c").mkdir()
    for name, count in (("a", 3), ("b", 3), ("c", 4)):
        write_corpus(tmp_path / name, count=count, per_shard=3)
    a, b, c = (Corpus(tmp_path / name).digest for name in "abc")
    assert a == b != c
