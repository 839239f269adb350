"""The order over sizes: every record once an epoch of its size, every size by its share, arithmetic of the step."""

import collections
import time

import numpy as np
import pytest
import tensorflow as tf

from imagen_jax.data.size_order import SizeOrder
from imagen_jax.data.sizes import SizeRange


def _order(counts: list[int], batch_size: int, seed: int = 3) -> SizeOrder:
    firsts = np.cumsum([0, *counts[:-1]]).tolist()
    ranges = [SizeRange(size=(i + 1, 1), first=f, count=c) for i, (f, c) in enumerate(zip(firsts, counts, strict=True))]
    return SizeOrder(ranges, batch_size, seed)


def _records(order: SizeOrder, step: int) -> list[int]:
    return order.records(tf.constant(step, tf.int64), tf.range(order.batch_size, dtype=tf.int64)).numpy().tolist()


@pytest.mark.parametrize(
    "counts, batch_size", [([40, 13, 27], 4), ([5, 3, 2], 4), ([7], 3), ([1, 30], 8), ([2, 1], 7), ([64, 32], 8)]
)
def test_each_batch_is_of_one_size_and_each_epoch_of_a_size_a_permutation(counts: list[int], batch_size: int) -> None:
    order = _order(counts, batch_size)
    size_of = np.repeat(np.arange(len(counts)), counts)
    # To the end of an epoch, where every batch of every size so far has been drawn.
    epochs = 6
    steps = sum(epochs * count // batch_size for count in counts)
    drawn: dict[int, dict[int, list[int]]] = collections.defaultdict(dict)
    for step in range(steps):
        number, first = order.batch(step)
        records = _records(order, step)
        assert {size_of[record] for record in records} == {number}
        assert first not in drawn[number]
        drawn[number][first] = records
    for number, count in enumerate(counts):
        batches = drawn[number]
        assert sorted(batches) == [batch_size * j for j in range(epochs * count // batch_size)]
        whole = [record for first in sorted(batches) for record in batches[first]]
        mine = np.flatnonzero(size_of == number).tolist()
        passes = [whole[begin : begin + count] for begin in range(0, len(whole) - count + 1, count)]
        assert all(sorted(one) == mine for one in passes)
        if count > 20:
            assert len({tuple(one) for one in passes}) == len(passes)


def test_sizes_take_turns_in_another_order_each_epoch() -> None:
    order = _order([40, 40, 40], 4)
    turns = [tuple(order.batch(step)[0] for step in range(30 * epoch, 30 * epoch + 30)) for epoch in range(4)]
    assert all(collections.Counter(one) == {0: 10, 1: 10, 2: 10} for one in turns)
    assert len(set(turns)) == 4
    assert turns[0] != tuple(_order([40, 40, 40], 4, seed=4).batch(step)[0] for step in range(30))
    # Neighbours are of one size no more often than by chance.
    repeats = np.mean([a == b for one in turns for a, b in zip(one, one[1:], strict=False)])
    assert 0.1 < repeats < 0.6


def test_the_epoch_of_a_step_is_that_of_a_count_from_the_start() -> None:
    for counts, batch_size in (([5, 3, 2], 4), ([1, 2], 50), ([100, 7], 3)):
        order, epoch = _order(counts, batch_size), 0
        for step in range(60):
            while sum((epoch + 1) * count // batch_size for count in counts) <= step:
                epoch += 1
            assert order.epoch(step) == epoch


def test_a_corpus_of_the_papers_size_costs_no_memory_and_no_time() -> None:
    order = _order([400_000_000, 300_000_000, 160_000_000], 2048)
    order.batch(0)
    begin = time.perf_counter()
    for step in (10**6, 10**7, 2 * 10**7, 10**7 + 1):
        records = _records(order, step)
        assert len(set(records)) == 2048 and 0 <= min(records) and max(records) < 860_000_000
    assert time.perf_counter() - begin < 1
