"""The source that each example of a run comes from and its number there, as arithmetic of (seed, example).

    block, place = divmod(g, BLOCK)              g = number of the example in the run
    p      = shuffled(place; seed, block)        a permutation of the block
    source = the one whose part of [0, BLOCK) holds p; parts are as long as the rates say
    m      = block * length of the part + p's place in it

So every block holds the sources in exactly their rates, and example m of a source is known without a look at the
others. From a change of rates on, g and m are counted from there.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from imagen_jax.errors import UserError

# Rates are rounded to parts of this many.
BLOCK = 1024
# Few rounds leave long runs of neighbouring records in some epochs; 16 are as even as true permutations.
_SHUFFLE_ROUNDS = 16
_RECORDS, _SOURCES = 0, 1


def shuffled(
    position: tf.Tensor, num_examples: tf.Tensor | int, seed: int, epoch: tf.Tensor, source: tf.Tensor | int = 0
) -> tf.Tensor:
    """The record at each position of an epoch: a stateless permutation of range(num_examples).

    Args:
      position: int64 [k], each in [0, num_examples).
      num_examples: records in the split; a number, or int64 [k].
      seed: in [0, 2**31).
      epoch: int64 [k], the epoch of each position.
      source: number of the source; a number, or int64 [k].
    """
    return permuted(position, num_examples, (source * 2 + _RECORDS, seed, epoch))


def permuted(position: tf.Tensor, size: tf.Tensor | int, key: Sequence[tf.Tensor | int]) -> tf.Tensor:
    """Where a permutation of range(size) puts each position: int64 [k].

    Args:
      position: int64 [k], each in [0, size).
      size: a number, or int64 [k].
      key: three numbers, or int64 [k], that choose the permutation.
    """
    seeds = tf.stack([tf.broadcast_to(tf.cast(part, tf.int64), tf.shape(position)) for part in key], axis=1)
    last = tf.cast(size, tf.int64) - 1
    return tf.raw_ops.RandomIndexShuffle(index=position, seed=seeds, max_index=last, rounds=_SHUFFLE_ROUNDS)


@dataclasses.dataclass(frozen=True)
class Order:
    """The order of a run over its sources.

    Args:
      sizes: records of each source.
      rates: of each source, from the first example on.
      changes: pairs of the number of an example and the rates from it on, rising.

    Raises:
      UserError: there are not as many rates as sources, or they sum to 0.
    """

    sizes: Sequence[int]
    rates: Sequence[float]
    changes: Sequence[tuple[int, Sequence[float]]] = ()

    def __post_init__(self) -> None:
        for start, rates in self._phases:
            if len(rates) != len(self.sizes):
                raise UserError(
                    f"{len(self.sizes)} sources have {len(rates)} rates {tuple(rates)}; give each of them one"
                )

            if not sum(rates) > 0:
                raise UserError(f"the rates of the mixture sum to 0 from example {start} on; raise one of them")

    @property
    def _phases(self) -> list[tuple[int, Sequence[float]]]:
        return [(0, self.rates), *self.changes]

    def _tables(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each phase: its first example; length of each source's part; examples of each source before it."""
        starts = np.array([start for start, _ in self._phases], np.int64)
        parts = np.stack([part_lengths(rates) for _, rates in self._phases])
        before = np.zeros_like(parts)
        for phase in range(1, len(starts)):
            # Whole blocks: what is left of the last one is passed over.
            blocks = -(-(starts[phase] - starts[phase - 1]) // BLOCK)
            before[phase] = before[phase - 1] + blocks * parts[phase - 1]
        return starts, parts, before

    def sources(self, number: tf.Tensor, seed: int) -> tuple[tf.Tensor, tf.Tensor]:
        """The source of each example, and which of the source's examples it is.

        Args:
          number: int64 [k], numbers of examples in the run.
          seed: in [0, 2**31).

        Returns:
          int64 [k] each.
        """
        if len(self.sizes) == 1:
            return tf.zeros_like(number), number
        starts, parts, before = self._tables()
        phase = tf.searchsorted(starts, number, side="right", out_type=tf.int64) - 1
        since = number - tf.gather(starts, phase)
        block, place = since // BLOCK, since % BLOCK
        place = permuted(place, BLOCK, (phase * 2 + _SOURCES, seed, block))
        ends = tf.gather(np.cumsum(parts, axis=1), phase)
        source = tf.reduce_sum(tf.cast(place[:, None] >= ends, tf.int64), axis=1)
        own = tf.stack((phase, source), axis=1)
        length, first = tf.gather_nd(parts, own), tf.gather_nd(np.cumsum(parts, axis=1) - parts, own)
        return source, tf.gather_nd(before, own) + block * length + place - first

    def records(self, number: tf.Tensor, seed: int) -> tuple[tf.Tensor, tf.Tensor]:
        """The source and the record in it of each example; arguments and results as of `sources`."""
        source, own = self.sources(number, seed)
        size = tf.gather(np.asarray(self.sizes, np.int64), source)
        return source, shuffled(own % size, size, seed, own // size, source)

    def drawn(self, number: int) -> np.ndarray:
        """Counts the examples of each source that lie before example `number`, to within a block: int64 [sources]."""
        if len(self.sizes) == 1:
            return np.array([number], np.int64)
        starts, parts, _ = self._tables()
        ends = np.minimum([*starts[1:], number], number)
        return (np.maximum(ends - starts, 0)[:, None] * parts // BLOCK).sum(axis=0)


def part_lengths(rates: Sequence[float]) -> np.ndarray:
    """Parts of a block as long as the rates say, to within one; at least 1 of a rate above 0: int64 [sources]."""
    shares = np.asarray(rates, np.float64) / np.sum(rates) * BLOCK
    lengths = np.where(shares > 0, np.maximum(np.floor(shares), 1), 0).astype(np.int64)
    while lengths.sum() != BLOCK:
        missing = 1 if lengths.sum() < BLOCK else -1
        # The one that is furthest from its share, and stays at least 1.
        error = np.where((shares > 0) & (lengths + missing >= 1), (shares - lengths) * missing, -np.inf)
        lengths[np.argmax(error)] += missing
    return lengths
