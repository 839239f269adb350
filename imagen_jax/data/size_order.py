"""The order of a run over a corpus of several sizes: every batch of one size, as arithmetic of (seed, step).

    C_k(e) = floor(e * N_k / B)                 batches of size k before epoch e;  N_k its records, B rows of a batch
    e      : sum_k C_k(e) <= step < sum_k C_k(e + 1)
    place  = shuffled(step - sum_k C_k(e); seed, e)     a permutation of the epoch's batches
    size   = the one whose part of them holds place; parts are as long as C_k(e + 1) - C_k(e)
    batch j = C_k(e) + place in that part       of size k, has its examples m = j * B + row
    record = shuffled(m mod N_k; seed, m // N_k, k)     within the records of the size

So every size is drawn as often as its records are many; each record once before any of its size a second time, and rows
that fill no batch at the end of an epoch are in the first of the next. Memory is a few numbers a size, whatever the
corpus.
"""

import bisect
import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from imagen_jax.data.mixture import permuted, shuffled
from imagen_jax.data.sizes import SizeRange

# Of the permutation of an epoch's batches; those of records and sources have numbers from 0 on.
_BATCHES = -1


@dataclasses.dataclass(frozen=True)
class SizeOrder:
    """The order of a run.

    Args:
      ranges: where the records of each size lie; at least one record in all.
      batch_size: rows of the global batch.
      seed: in [0, 2**31).
    """

    ranges: Sequence[SizeRange]
    batch_size: int
    seed: int

    def _before(self, epoch: int) -> list[int]:
        """Batches of each size before an epoch."""
        return [epoch * one.count // self.batch_size for one in self.ranges]

    def epoch(self, step: int) -> int:
        """The epoch that a step lies in."""
        total = sum(one.count for one in self.ranges)
        # floor(x) > x - 1, so every size is behind by less than a batch.
        last = (step + len(self.ranges)) * self.batch_size // total + 1
        return bisect.bisect_right(range(last + 1), step, key=lambda epoch: sum(self._before(epoch))) - 1

    def batch(self, step: int) -> tuple[int, int]:
        """The number of the size of a step's batch, and which of the size's examples is its first."""
        epoch = self.epoch(step)
        before, after = self._before(epoch), self._before(epoch + 1)
        count = sum(after) - sum(before)
        key = (_BATCHES, self.seed, tf.constant([epoch], tf.int64))
        place = int(permuted(tf.constant([step - sum(before)], tf.int64), count, key)[0])
        for size, (begin, end) in enumerate(zip(before, after, strict=True)):
            if place < end - begin:
                return size, (begin + place) * self.batch_size
            place -= end - begin
        raise AssertionError(f"step {step} lies in no size")

    def records(self, step: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        """Record numbers, in the split, of some rows of a step's batch.

        Args:
          step: int64.
          rows: int64 [k], numbers of the rows.

        Returns:
          int64 [k].
        """

        def found(step: np.ndarray) -> tuple[np.int64, np.int64]:
            size, first = self.batch(int(step))
            return np.int64(size), np.int64(first)

        size, first = tf.numpy_function(found, [step], (tf.int64, tf.int64), stateful=False)
        size, own = tf.reshape(size, ()), tf.reshape(first, ()) + rows
        count = tf.gather(np.array([one.count for one in self.ranges], np.int64), size)
        start = tf.gather(np.array([one.first for one in self.ranges], np.int64), size)
        return start + shuffled(own % count, count, self.seed, own // count, size)
