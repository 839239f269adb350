"""Stores in a bucket: the bytes of those in a folder, several writers, killed writers, single embeddings read."""

import subprocess
import sys

import numpy as np
import pytest

from imagen_jax.errors import UserError
from imagen_jax.text.store import reader
from imagen_jax.text.store.reader import EmbeddingStore, StoreWriter
from tests.text.store.test_store import KEYS, embeddings, plan_of, write, write_shards

URL = "gs://bucket-a/stores/cats"


@pytest.fixture
def values() -> list[np.ndarray]:
    """30 embeddings."""
    return embeddings(30)


def test_a_store_in_a_bucket_has_the_same_bytes_and_no_locks_are_left(bucket, tmp_path, values):
    write(str(tmp_path / "store"), values, KEYS, range(30))
    write(URL, values, KEYS, range(30))
    here = {path.name: path.read_bytes() for path in (tmp_path / "store").iterdir()}
    assert here == {name.removeprefix("stores/cats/"): bucket.content(name) for name in bucket.names()}


@pytest.mark.parametrize("memory", [0, reader.MEMORY_BYTES])
def test_embeddings_are_looked_up_in_it(bucket, values, monkeypatch, memory):
    monkeypatch.setattr(reader, "MEMORY_BYTES", memory)
    write(URL, values, KEYS, range(30))
    store = EmbeddingStore.open(URL)
    for number, found in zip((9, 0, 29, 9), store.lookup([KEYS[i] for i in (9, 0, 29, 9)]), strict=True):
        np.testing.assert_array_equal(found, values[number])
    store.verify()


def test_writers_share_the_shards_and_the_next_one_goes_on(bucket, values):
    one, two = StoreWriter(URL, **plan_of()), StoreWriter(URL, **plan_of())
    with one.claim(2) as ones, two.claim(2) as twos, two.claim(3) as threes:
        assert (ones, twos, threes) == (True, False, True)
        write_shards(one, [2], values, KEYS, range(30))
    assert two.missing_shards() == [0, 1, 3, 4]
    with pytest.raises(UserError, match="num_shards: got 5, expected 6"):
        StoreWriter(URL, **plan_of(6))
    write(URL, values, KEYS, range(30))
    assert EmbeddingStore.open(URL).num_keys == 30


def test_a_writer_of_this_machine_that_was_killed_is_in_nobodys_way(bucket, values):
    killed = (
        "import os, sys\n"
        "from tests.text.store.test_store import plan_of\n"
        "from imagen_jax.text.store.reader import StoreWriter\n"
        "writer = StoreWriter(sys.argv[1], **plan_of(6))\n"
        "with writer.claim(0) as mine:\n"
        "    assert mine\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", killed, URL], check=False)
    assert any("writers.lock" in name for name in bucket.names())
    write(URL, values, KEYS, range(30), overwrite=True)
    assert EmbeddingStore.open(URL).num_keys == 30
    assert not any("lock" in name for name in bucket.names())


def test_a_damaged_object_is_told(bucket, values):
    write(URL, values, KEYS, range(30))
    name = next(name for name in bucket.names() if name.endswith("00001-of-00005.array_record"))
    content = bytearray(bucket.content(name))
    content[200] ^= 1
    bucket.replace(name, bytes(content))
    with pytest.raises(UserError, match="text-00001-of-00005.array_record differ"):
        EmbeddingStore.open(URL).verify()
