"""The embedding store: what goes in comes out, and damage or strangers are refused."""

import json
import os
import time
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from imagen_jax.errors import UserError
from imagen_jax.text import store as store_module
from imagen_jax.text.store import EmbeddingStore, StoreWriter
from tests.full_disk import files_up_to

DIM = 16
FINGERPRINT = {
    "encoder": "ab" * 32,
    "encoder_config": {"num_layers": 2, "activations": ["gelu", "linear"]},
    "vocabulary": "cd" * 32,
    "max_length": 12,
    "dtype": "float32",
}


def embeddings(count: int, dim: int = DIM, most: int = 12) -> list[np.ndarray]:
    rng = np.random.default_rng(count)
    return [rng.normal(size=(rng.integers(1, most + 1), dim)).astype(np.float32) for _ in range(count)]


def write(directory: str, values: list[np.ndarray], keys, rows, dtype: str = "float32", **plan) -> None:
    fingerprint = {**FINGERPRINT, "dtype": dtype}
    plan = {"shard_size": 7, "corpus_id": "cats", **plan}
    writer = StoreWriter(
        directory,
        fingerprint=fingerprint,
        embed_dim=values[0].shape[1],
        num_embeddings=len(values),
        **plan,
    )
    for shard in writer.missing_shards():
        writer.write_shard(shard, (values[row] for row in writer.rows(shard)))
    writer.finish(keys, rows)


KEYS = [f"key-{i}".encode() for i in range(30)]


@pytest.mark.parametrize("memory_bytes", [10**9, 0])  # from memory, and record by record
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_round_trip_in_any_order_with_shared_rows(tmp_path, monkeypatch, memory_bytes: int, dtype: str) -> None:
    monkeypatch.setattr(store_module, "MEMORY_BYTES", memory_bytes)
    values = embeddings(20)
    rows = [i % 20 for i in range(30)]
    write(str(tmp_path), values, KEYS, rows, dtype)
    store = EmbeddingStore.open(str(tmp_path))
    assert (store.num_keys, store.num_embeddings, store.embed_dim) == (30, 20, DIM)
    assert store.num_tokens == sum(len(v) for v in values)
    order = np.random.default_rng(0).permutation(30).tolist() + [3, 3]
    for _ in range(2):
        got = store.lookup([KEYS[i] for i in order])
        for i, embedding in zip(order, got, strict=True):
            expected = values[rows[i]]
            if dtype == "bfloat16":
                expected = expected.astype(ml_dtypes.bfloat16).astype(np.float32)
            assert embedding.dtype == np.float32
            np.testing.assert_array_equal(embedding, expected)
    store.verify()
    assert store.lookup([]) == []


@pytest.mark.parametrize("key", [b"key-99", b"zzz", b"", b"key-1\0", b"key-1" + b"x" * 50])
def test_missing_key_names_key_and_store(tmp_path, key: bytes) -> None:
    write(str(tmp_path), embeddings(30), KEYS, range(30))
    with pytest.raises(UserError) as error:
        EmbeddingStore.open(str(tmp_path)).lookup([KEYS[0], key])
    assert repr(key) in str(error.value) and str(tmp_path) in str(error.value) and "'cats'" in str(error.value)


@pytest.mark.parametrize("bad", [KEYS[3], b"", b"a\0", b"x" * 257])
def test_writer_refuses_keys(tmp_path, bad: bytes) -> None:
    with pytest.raises(UserError, match="key"):
        write(str(tmp_path), embeddings(30), [*KEYS[:29], bad], range(30))
    assert not (tmp_path / "store.json").exists()
    with pytest.raises(UserError, match="not finished"):
        EmbeddingStore.open(str(tmp_path))


def test_damage_is_found_and_named(tmp_path) -> None:
    write(str(tmp_path), embeddings(30), KEYS, range(30))
    name = "text-00002-of-00005.array_record"
    data = bytearray((tmp_path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / name).write_bytes(data)
    store = EmbeddingStore.open(str(tmp_path))
    with pytest.raises(UserError) as error:
        store.verify()
    assert name in str(error.value) and "text-00001" not in str(error.value)
    (tmp_path / name).write_bytes(data[:-1])
    with pytest.raises(UserError, match=f"damaged: {name}: got {len(data) - 1} bytes, expected {len(data)}"):
        EmbeddingStore.open(str(tmp_path))
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match="no such file"):
        EmbeddingStore.open(str(tmp_path))


def test_check_names_every_part_that_differs_and_the_fix(tmp_path) -> None:
    write(str(tmp_path), embeddings(30), KEYS, range(30))
    store = EmbeddingStore.open(str(tmp_path))
    store.check(FINGERPRINT)
    other = {**FINGERPRINT, "max_length": 16, "encoder_config": {"num_layers": 3, "activations": ["relu"]}}
    with pytest.raises(UserError) as error:
        store.check(other)
    message = str(error.value)
    for part in (
        "max_length: got 12, expected 16",
        "encoder_config.num_layers: got 2, expected 3",
        "['relu']",
    ):
        assert part in message
    assert "vocabulary" not in message and "cache_text" in message and "STORE_DIR" in message


def test_resumed_writer_keeps_whole_shards_and_replaces_damaged_ones(tmp_path) -> None:
    values = embeddings(30)
    once, twice = tmp_path / "once", tmp_path / "twice"
    write(str(once), values, KEYS, range(30))
    plan: dict[str, Any] = {
        "fingerprint": FINGERPRINT,
        "embed_dim": DIM,
        "num_embeddings": 30,
        "shard_size": 7,
        "corpus_id": "cats",
    }
    first = StoreWriter(str(twice), **plan)
    for shard in (0, 1, 3):
        first.write_shard(shard, (values[row] for row in first.rows(shard)))
    damaged = twice / "text-00001-of-00005.array_record"
    damaged.write_bytes(damaged.read_bytes()[::-1])
    (twice / "text-00002-of-00005.array_record.tmp").write_bytes(b"half a shard")
    with pytest.raises(UserError, match="shard_size: got 7, expected 8"):
        StoreWriter(str(twice), **{**plan, "shard_size": 8})
    second = StoreWriter(str(twice), **plan)
    assert second.missing_shards() == [1, 2, 4]
    write(str(twice), values, KEYS, range(30))
    assert sorted(os.listdir(once)) == sorted(os.listdir(twice))
    for name in os.listdir(once):
        assert (once / name).read_bytes() == (twice / name).read_bytes(), name


def test_a_full_disk_is_an_os_error_and_the_same_work_then_succeeds(tmp_path) -> None:
    values = embeddings(20, dim=2000)
    keys, rows = KEYS[:20], list(range(20))
    with files_up_to(100_000), pytest.raises(OSError, match="File too large"):
        write(str(tmp_path), values, keys, rows)
    with pytest.raises(UserError, match="does not exist|is not finished"):
        EmbeddingStore.open(str(tmp_path))
    write(str(tmp_path), values, keys, rows)
    np.testing.assert_array_equal(EmbeddingStore.open(str(tmp_path)).lookup([keys[9]])[0], values[9])


def test_overwrite_removes_only_the_stores_files(tmp_path) -> None:
    write(str(tmp_path), embeddings(30), KEYS, range(30))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="finished embedding store"):
        write(str(tmp_path), embeddings(5), KEYS[:5], range(5))
    write(str(tmp_path), embeddings(5), KEYS[:5], range(5), overwrite=True)
    assert EmbeddingStore.open(str(tmp_path)).num_keys == 5
    names = {"notes.txt", "store.json", "index.npz", "text-00000-of-00001.array_record"}
    assert set(os.listdir(tmp_path)) == names


def test_other_format_version_is_refused(tmp_path) -> None:
    write(str(tmp_path), embeddings(30), KEYS, range(30))
    header = json.loads((tmp_path / "store.json").read_text())
    (tmp_path / "store.json").write_text(json.dumps({**header, "format_version": 9}))
    with pytest.raises(UserError, match="format_version 9; expected 1"):
        EmbeddingStore.open(str(tmp_path))


@pytest.mark.parametrize("memory_bytes", [10**9, 0])
def test_lookup_is_fast(tmp_path, monkeypatch, memory_bytes: int) -> None:
    monkeypatch.setattr(store_module, "MEMORY_BYTES", memory_bytes)
    values = [np.ones((15, 128), np.float32)] * 5000
    keys = [f"{i:08d}".encode() for i in range(5000)]
    write(str(tmp_path), values, keys, range(5000), shard_size=2000)
    store = EmbeddingStore.open(str(tmp_path))
    order = np.random.default_rng(0).permutation(5000)
    batches = [[keys[i] for i in order[start : start + 100]] for start in range(0, 5000, 100)]
    # Processor time, as other work may share the machine.
    start = time.process_time()
    for batch in batches:
        store.lookup(batch)
    rate = 5000 / (time.process_time() - start)
    assert rate >= 5000, f"{rate:.0f} embeddings/s"
