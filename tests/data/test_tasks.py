"""The registered tasks work through seqio's own doors, and the shuffle is a permutation."""

import re

import numpy as np
import pytest
import seqio
import tensorflow as tf

from imagen_jax.data import tasks
from imagen_jax.data.preprocessors import FailureBox
from imagen_jax.data.records import Corpus
from imagen_jax.errors import UserError
from imagen_jax.text.store.reader import EmbeddingStore


def _register(corpus_dir: str, store_dir: str, low_res_size: int | None) -> seqio.Task:
    return tasks.register_task(
        [tasks.OpenSource(name="one", corpus=Corpus(corpus_dir), split="train", text=EmbeddingStore.open(store_dir))],
        image_size=8,
        low_res_size=low_res_size,
        max_text_length=3,
        crop="none",
        failures=FailureBox(),
    )


def _epoch(num_examples: int, seed: int, epoch: int) -> list[int]:
    position = tf.range(num_examples, dtype=tf.int64)
    return (
        tasks.shuffled(position, num_examples, seed, tf.fill(position.shape, tf.constant(epoch, tf.int64)))
        .numpy()
        .tolist()
    )


@pytest.mark.parametrize("num_examples", [1, 2, 7, 64, 1000])
def test_each_epoch_is_a_permutation(num_examples):
    for epoch in range(3):
        assert sorted(_epoch(num_examples, 5, epoch)) == list(range(num_examples))


def test_epochs_and_seeds_differ_and_positions_may_mix_epochs():
    first, second = _epoch(50, 5, 0), _epoch(50, 5, 1)
    assert first != second and first != _epoch(50, 6, 0) and first != list(range(50))
    position = tf.constant([48, 49, 0, 1], tf.int64)
    mixed = tasks.shuffled(position, 50, 5, tf.constant([0, 0, 1, 1], tf.int64))
    assert mixed.numpy().tolist() == first[48:] + second[:2]


def test_shuffle_leaves_no_runs_of_neighbours():
    # In a true permutation of 2000 about 2 neighbours stay together; with the op's default of 4 rounds one
    # epoch in twenty keeps tens of them.
    kept = [int((np.abs(np.diff(_epoch(2000, 1, epoch))) == 1).sum()) for epoch in range(60)]
    assert max(kept) < 15
    assert 1 < np.mean(kept) < 3


@pytest.mark.parametrize(("low_res_size", "name"), [(None, "imagen_base"), (4, "imagen_sr")])
def test_task_is_registered_and_reads_through_seqio(numbered_corpus, numbered_store, low_res_size, name):
    _register(numbered_corpus(7), numbered_store(9), low_res_size)
    task = seqio.TaskRegistry.get(name)
    assert task.splits == ("train", "val")
    assert task.num_input_examples("train") == 7
    examples = list(task.get_dataset(split="train", shuffle=False).as_numpy_iterator())
    assert [example["key"] for example in examples] == [f"example-{i:03d}".encode() for i in range(7)]
    assert [example["caption"] for example in examples] == [f"number {i}".encode() for i in range(7)]
    for i, example in enumerate(examples):
        np.testing.assert_allclose(example["x0"], np.full((8, 8, 3), i / 127.5 - 1), atol=1e-6)
        assert np.array_equal(example["text"], np.full((1 + i % 3, 4), i))
        assert ("low_res" in example) == (low_res_size is not None)


def test_shards_of_a_task_cover_it_once(numbered_corpus, numbered_store):
    task = _register(numbered_corpus(8), numbered_store(10), None)
    assert len(task.source.list_shards("train")) == 3
    keys = []
    for index in range(3):
        shard = seqio.ShardInfo(index=index, num_shards=3)
        dataset = task.source.get_dataset("train", shuffle=True, seed=4, shard_info=shard)
        keys += [example["key"] for example in dataset.as_numpy_iterator()]
    assert keys != sorted(keys)
    assert sorted(keys) == [f"example-{i:03d}".encode() for i in range(8)]


def test_a_later_registration_replaces_an_earlier_one(numbered_corpus, numbered_store):
    store = numbered_store(9)
    first = _register(numbered_corpus(3, name="first"), store, None)
    second = _register(numbered_corpus(5, name="second"), store, None)
    assert seqio.TaskRegistry.get("imagen_base") is second
    assert first.num_input_examples("train") == 3


def _source(store_dir: str, corpus_dir: str) -> tasks.OpenSource:
    return tasks.OpenSource(name="one", corpus=Corpus(corpus_dir), split="train", text=EmbeddingStore.open(store_dir))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_text_of_keys(numbered_corpus, numbered_store, dtype):
    source = _source(numbered_store(5, dtype=dtype), numbered_corpus(5))
    first, second = source.embed([b"example-004", b"example-000"], [b"", b""], 3)
    assert first.dtype.name == dtype
    assert np.array_equal(first, np.full((2, 4), 4))
    assert np.array_equal(second, np.full((1, 4), 0))


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (b"example-002", "'example-002' has 3 token embeddings; max_text_length is 2"),
        (b"stranger", "key b'stranger' is not in the embedding store"),
    ],
)
def test_text_that_is_too_long_or_missing_is_refused(numbered_corpus, numbered_store, key, message):
    with pytest.raises(UserError, match=re.escape(message)):
        _source(numbered_store(5), numbered_corpus(5)).embed([key], [b""], 2)
