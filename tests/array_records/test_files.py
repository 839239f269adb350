"""Many record files are read with few handles, and a lack of them is not called damage."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from imagen_jax.array_records import RecordFiles, Wanted
from imagen_jax.array_records.files import max_open
from imagen_jax.data.records import Corpus, decode_record
from imagen_jax.errors import UserError
from imagen_jax.text.store import reader
from imagen_jax.text.store.reader import EmbeddingStore, StoreWriter
from tests.data.test_records import write_corpus
from tests.few_handles import free_handles

NUM_FILES = 60


def write_files(directory: Path, count: int = NUM_FILES) -> list[Path]:
    """Files of two records each."""
    paths = [directory / f"{number}.array_record" for number in range(count)]
    for number, path in enumerate(paths):
        writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
        for word in (b"first", b"second"):
            writer.write(word + b" %d" % number)
        writer.close()
    return paths


def read(files: RecordFiles, path: Path, indices: Sequence[int] = (0, 1)) -> list[bytes]:
    """Records of one file of two."""
    return files.read([Wanted(str(path), 2, indices)])[0]


def test_more_files_than_handles_are_read(tmp_path):
    files = RecordFiles("rebuild it")
    paths = write_files(tmp_path)
    with free_handles(20):
        for _ in range(2):
            got = [read(files, path, [1, 0]) for path in paths]
    assert got == [[b"second %d" % number, b"first %d" % number] for number in range(NUM_FILES)]


def test_few_files_stay_open_and_close_frees_them(tmp_path, monkeypatch):
    monkeypatch.setattr("resource.getrlimit", lambda which: (40, 40))
    assert max_open() == 10
    before = len(os.listdir("/proc/self/fd"))
    files = RecordFiles("rebuild it")
    for path in write_files(tmp_path):
        read(files, path)
    assert len(os.listdir("/proc/self/fd")) == before + 10
    files.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_no_handle_at_all_is_said_as_such(tmp_path):
    (path,) = write_files(tmp_path, 1)
    with free_handles(0), pytest.raises(UserError) as caught:
        read(RecordFiles("rebuild it"), path)
    assert re.search(r"cannot be opened \(Too many open files\); the file is sound.*ulimit -n", str(caught.value))
    assert "rebuild" not in str(caught.value)
    assert read(RecordFiles("rebuild it"), path) == [b"first 0", b"second 0"]


def test_a_damaged_file_is_named_and_what_to_do(tmp_path):
    (path,) = write_files(tmp_path, 1)
    with pytest.raises(UserError, match=r"0\.array_record holds 2 readable records; expected 3; rebuild it"):
        RecordFiles("rebuild it").read([Wanted(str(path), 3, [0])])
    content = bytearray(path.read_bytes())
    content[content.index(b"first")] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"0\.array_record is damaged \(.*\); rebuild it"):
        RecordFiles("rebuild it").read([Wanted(str(path), 2, [0])])
    path.unlink()
    with pytest.raises(UserError, match=r"0\.array_record cannot be opened \(No such file"):
        read(RecordFiles("rebuild it"), path)


def test_a_corpus_of_more_shards_than_handles_is_read(tmp_path):
    write_corpus(tmp_path, count=NUM_FILES, per_shard=1)
    with free_handles(20):
        keys = [record.key for record in Corpus(tmp_path).records("train")]
    assert keys == [f"k{number}".encode() for number in range(NUM_FILES)]


def test_a_thousand_shards_are_opened_as_they_are_read_with_256_handles(tmp_path):
    write_corpus(tmp_path, count=1000, per_shard=1)
    with free_handles(256):
        corpus = Corpus(tmp_path)
        order = np.random.default_rng(0).permutation(1000).tolist()
        got = [decode_record(record).key for record in corpus.read("train", order)]
    assert got == [b"k%d" % number for number in order]


@pytest.mark.parametrize("memory_bytes", [10**9, 0])
def test_a_store_of_more_shards_than_handles_is_read(tmp_path, monkeypatch, memory_bytes):
    monkeypatch.setattr(reader, "MEMORY_BYTES", memory_bytes)
    writer = StoreWriter(str(tmp_path), fingerprint={"dtype": "float32"}, embed_dim=2, num_shards=NUM_FILES)
    for shard in range(NUM_FILES):
        writer.write_shard(shard, [np.full((1, 2), shard, np.float32)], [b"k%d" % shard], [0])
    writer.finish(np.zeros((1, 2), np.float32))
    with free_handles(20):
        found = EmbeddingStore.open(str(tmp_path)).lookup([b"k%d" % shard for shard in range(NUM_FILES)])
    assert [one[0, 0] for one in found] == list(range(NUM_FILES))
