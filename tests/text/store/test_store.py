"""The embedding store: what goes in comes out, and damage or strangers are refused."""

import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from imagen_jax.errors import UserError
from imagen_jax.text.store import reader as store_module
from imagen_jax.text.store import writer as store_writer
from imagen_jax.text.store.reader import EmbeddingStore, StoreWriter
from imagen_jax.text.store.writer import reopen
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


def write_shards(writer: StoreWriter, shards, values: list[np.ndarray], keys, rows) -> None:
    """Shards are slices of the values; their own rows count from 0."""
    size = -(-len(values) // writer.num_shards)
    for shard in shards:
        first = shard * size
        mine = [i for i, row in enumerate(rows) if first <= row < first + size]
        chosen = values[first : first + size]
        writer.write_shard(shard, chosen, [keys[i] for i in mine], [rows[i] - first for i in mine], num_truncated=1)


def write(directory: str, values: list[np.ndarray], keys, rows, dtype: str = "float32", **plan) -> None:
    plan = {"num_shards": 5, "corpus_id": "cats", **plan}
    fingerprint = {**FINGERPRINT, "dtype": dtype}
    writer = StoreWriter(directory, fingerprint=fingerprint, embed_dim=values[0].shape[1], **plan)
    write_shards(writer, writer.missing_shards(), values, keys, rows)
    writer.finish(NULL)


NULL = np.full((1, DIM), 0.25, np.float32)
KEYS = [f"key-{i}".encode() for i in range(30)]


@pytest.mark.parametrize("memory_bytes", [10**9, 0])  # from memory, and record by record
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
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
            if dtype == "int8":
                scale = np.maximum(np.abs(expected).max(axis=1, keepdims=True), np.finfo(np.float32).tiny) / 127
                expected = np.rint(expected / scale).astype(np.int8) * scale
            if dtype != "float32":
                expected = expected.astype(ml_dtypes.bfloat16)
            assert embedding.dtype == expected.dtype == store.dtype and not embedding.flags.writeable
            assert embedding.tobytes() == expected.tobytes()
    np.testing.assert_array_equal(store.null_text, NULL)
    store.verify()
    assert store.lookup([]) == []


def test_a_batch_is_one_read_and_batches_are_read_beside_each_other(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(store_module, "MEMORY_BYTES", 0)
    values = embeddings(30)
    write(str(tmp_path), values, KEYS, range(30))
    store = EmbeddingStore.open(str(tmp_path))
    both, read = threading.Barrier(2, timeout=20), store._files.read
    # Each read waits until the other has begun.
    monkeypatch.setattr(store._files, "read", lambda wanted: (both.wait(), read(wanted))[1])
    with ThreadPoolExecutor(2) as threads:
        halves = list(threads.map(store.lookup, (KEYS[:15], KEYS[15:])))
    for got, expected in zip(halves[0] + halves[1], values, strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("key", [b"key-99", b"zzz", b"", b"key-1\0", b"key-1" + b"x" * 50])
def test_missing_key_names_key_and_store(tmp_path, key: bytes) -> None:
    write(str(tmp_path), embeddings(30), KEYS, range(30))
    with pytest.raises(UserError) as error:
        EmbeddingStore.open(str(tmp_path)).lookup([KEYS[0], key])
    assert repr(key) in str(error.value) and str(tmp_path) in str(error.value) and "'cats'" in str(error.value)


@pytest.mark.parametrize(
    ("bad", "recurs"), [(KEYS[3], 4), (KEYS[3], 29), (b"", 0), (b"a\0", 0), (b"x" * 257, 0)]
)  # twice in one shard, in two shards
def test_writer_refuses_keys(tmp_path, bad: bytes, recurs: int) -> None:
    with pytest.raises(UserError, match="key"):
        write(str(tmp_path), embeddings(30), [bad if i == recurs else key for i, key in enumerate(KEYS)], range(30))
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


def plan_of(num_shards: int = 5) -> dict[str, Any]:
    return {"fingerprint": FINGERPRINT, "embed_dim": DIM, "num_shards": num_shards, "corpus_id": "cats"}


def same_files(one, other) -> bool:
    assert sorted(os.listdir(one)) == sorted(os.listdir(other))
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in os.listdir(one))


def test_resumed_writer_keeps_whole_shards_and_replaces_damaged_ones(tmp_path) -> None:
    values = embeddings(30)
    once, twice = tmp_path / "once", tmp_path / "twice"
    write(str(once), values, KEYS, range(30))
    first = StoreWriter(str(twice), **plan_of())
    write_shards(first, (0, 1, 3), values, KEYS, range(30))
    del first
    damaged = twice / "text-00001-of-00005.array_record"
    damaged.write_bytes(damaged.read_bytes()[::-1])
    (twice / ".writing-x").mkdir()
    (twice / ".writing-x" / "text-00002-of-00005.array_record").write_bytes(b"half a shard")
    with pytest.raises(UserError, match="num_shards: got 5, expected 6"):
        StoreWriter(str(twice), **plan_of(6))
    second = StoreWriter(str(twice), **plan_of())
    assert second.missing_shards() == [1, 2, 4]
    write(str(twice), values, KEYS, range(30))
    assert same_files(once, twice)


@pytest.mark.parametrize("member", ["keys.npy", "rows.npy"])
def test_a_shard_whose_keys_are_no_array_is_made_again(tmp_path, member) -> None:
    """numpy gives the bytes of a member that does not begin as an array does."""
    values = embeddings(30)
    first = StoreWriter(str(tmp_path), **plan_of())
    write_shards(first, (0, 1), values, KEYS, range(30))
    del first
    path = tmp_path / "text-00001-of-00005.npz"
    with zipfile.ZipFile(path) as whole:
        members = {name: whole.read(name) for name in whole.namelist()}
    with zipfile.ZipFile(path, "w") as damaged:
        for name, content in members.items():
            damaged.writestr(name, b"no array" if name == member else content)
    assert StoreWriter(str(tmp_path), **plan_of()).missing_shards() == [1, 2, 3, 4]


def test_two_writers_share_the_shards_and_one_of_other_settings_is_refused(tmp_path) -> None:
    values = embeddings(30)
    write(str(tmp_path / "alone"), values, KEYS, range(30))
    together = tmp_path / "together"
    one, two = StoreWriter(str(together), **plan_of()), StoreWriter(str(together), **plan_of())
    with one.claim(2) as ones, two.claim(2) as twos, two.claim(3) as threes:
        assert (ones, twos, threes) == (True, False, True)
        write_shards(one, [2], values, KEYS, range(30))
    with two.claim(2) as again:
        assert not again
    with pytest.raises(UserError, match="another process is writing"):
        StoreWriter(str(together), **plan_of(6), overwrite=True)
    assert two.missing_shards() == [0, 1, 3, 4]
    write_shards(two, [0, 1], values, KEYS, range(30))
    write_shards(one, [3, 4], values, KEYS, range(30))
    one.finish(NULL)
    two.finish(NULL)
    with two.claim(0) as late:
        assert not late
    assert same_files(tmp_path / "alone", together)


@pytest.mark.parametrize("num_shards", [8, 32])
def test_work_on_files_grows_with_the_shards_not_with_their_square(tmp_path, monkeypatch, num_shards: int) -> None:
    looked: list[str] = []
    listed: list[str] = []
    size_of, files_under = store_writer.size_of, store_writer.files_under
    monkeypatch.setattr(store_writer, "size_of", lambda path: (looked.append(path), size_of(path))[1])
    monkeypatch.setattr(store_writer, "files_under", lambda path: (listed.append(path), files_under(path))[1])
    values, keys = embeddings(num_shards), [f"{i:03d}".encode() for i in range(num_shards)]
    writer = StoreWriter(str(tmp_path), **plan_of(num_shards))
    for shard in writer.missing_shards():
        with writer.claim(shard) as mine:
            assert mine
            writer.write_shard(shard, values[shard : shard + 1], keys[shard : shard + 1], [0])
    assert writer.missing_shards() == []
    writer.finish(NULL)
    assert num_shards < len(looked) < 10 * num_shards
    assert 0 < len(listed) < 8


def test_whole_shards_are_hashed_once_while_others_join_and_none_finishes_before(tmp_path, monkeypatch) -> None:
    values = embeddings(30)
    first = StoreWriter(str(tmp_path / "store"), **plan_of())
    write_shards(first, range(5), values, KEYS, range(30))
    del first
    damaged = tmp_path / "store" / "text-00001-of-00005.array_record"
    damaged.write_bytes(damaged.read_bytes()[::-1])
    hashed, joined, begun, goes_on = [], [], threading.Event(), threading.Event()
    is_whole = store_writer.is_whole

    def slowly(directory, entry):
        begun.set()
        assert goes_on.wait(60)
        hashed.append(entry["file"])
        return is_whole(directory, entry)

    monkeypatch.setattr(store_writer, "is_whole", slowly)

    def join() -> None:
        joined.append(StoreWriter(str(tmp_path / "store"), **plan_of()))

    def wait_for_missing() -> None:
        found.append(joined[0].missing_shards())

    found: list[list[int]] = []
    verifying = threading.Thread(target=join)
    verifying.start()
    assert begun.wait(60)
    join()  # Needs not wait for the hashing.
    waiting = threading.Thread(target=wait_for_missing)
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive() and not hashed
    goes_on.set()
    for thread in (verifying, waiting):
        thread.join(60)
    assert found == [[1]] and len(hashed) == len(set(hashed)) == 5


def test_locks_of_a_killed_writer_are_free(tmp_path) -> None:
    program = (
        "import sys, time\nfrom imagen_jax.text.store.reader import StoreWriter\n"
        f"writer = StoreWriter({str(tmp_path)!r}, **{plan_of()!r})\n"
        "with writer.claim(1) as mine:\n  print(mine, flush=True)\n  time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout and other.stdout.readline() == "True\n"
        writer = StoreWriter(str(tmp_path), **plan_of())
        with writer.claim(1) as mine:
            assert not mine
        other.kill()
    with writer.claim(1) as mine:
        assert mine


@pytest.mark.parametrize("damaged", ["text-00002-of-00005.array_record", "index_keys.npy", "index_rows.npy"])
def test_reopened_store_lacks_its_damaged_shards_alone(tmp_path, damaged: str) -> None:
    values, rows = embeddings(30), [i % 20 for i in range(30)]
    write(str(tmp_path / "whole"), values, KEYS, rows)
    shutil.copytree(tmp_path / "whole", tmp_path / "store")
    path = tmp_path / "store" / damaged
    path.write_bytes(path.read_bytes()[:-3])
    reopen(str(tmp_path / "store"), [damaged])
    reopen(str(tmp_path / "store"), [damaged])  # As another process that found the same would.
    with pytest.raises(UserError, match="is not finished"):
        EmbeddingStore.open(str(tmp_path / "store"))
    writer = StoreWriter(str(tmp_path / "store"), **plan_of())
    missing = writer.missing_shards()
    # Without the index nobody knows the keys of the other shards.
    assert missing == ([2] if damaged.startswith("text") else [0, 1, 2, 3, 4])
    write_shards(writer, missing, values, KEYS, rows)
    writer.finish(NULL)
    assert same_files(tmp_path / "whole", tmp_path / "store")


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
    write(str(tmp_path), embeddings(5), KEYS[:5], range(5), overwrite=True, num_shards=1)
    assert EmbeddingStore.open(str(tmp_path)).num_keys == 5
    names = {
        "notes.txt",
        "store.json",
        "null_text.npy",
        "index_keys.npy",
        "index_rows.npy",
        "text-00000-of-00001.array_record",
        "text-00000-of-00001.array_record.index",
    }
    assert set(os.listdir(tmp_path)) == names


def test_other_format_version_is_refused(tmp_path) -> None:
    write(str(tmp_path), embeddings(30), KEYS, range(30))
    header = json.loads((tmp_path / "store.json").read_text())
    (tmp_path / "store.json").write_text(json.dumps({**header, "format_version": 9}))
    with pytest.raises(UserError, match="format_version 9; expected 2"):
        EmbeddingStore.open(str(tmp_path))
