"""Records that cannot be decoded, found while a run reads them: each is named, and stops the run or is passed over.

In the place of one that is passed over stands the next record, by number, that can be decoded. So the order stays a
function of (seed, step) and of what the corpus holds, on every restart and every layout of hosts. Nothing is checked
until a batch fails: then its records are tried one by one.
"""

import sys
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from imagen_jax.data.config import BAD_RECORDS
from imagen_jax.data.records import Corpus, decode_record
from imagen_jax.errors import UserError, one_line

STOP, SKIP = BAD_RECORDS
# What a dataset raises: TensorFlow quotes bytes that are no record, and its message then is no text for Python.
ERRORS = (tf.errors.OpError, UnicodeDecodeError)


class BadRecords:
    """The bad records of one split of a corpus, as far as they are known.

    Args:
      corpus: where they lie.
      split: its split.
    """

    def __init__(self, corpus: Corpus, split: str):
        self._corpus, self._split = corpus, split
        self._size = corpus.num_examples(split)
        self._known: set[int] = set()

    @property
    def known(self) -> frozenset[int]:
        """Their numbers in the split."""
        return frozenset(self._known)

    def replaced(self, record: int) -> int:
        """The record that is read in place of one: itself, or the next one that is not known to be bad."""
        while record in self._known:
            record = (record + 1) % self._size
        return record

    def add(self, record: int, problem: str, policy: str) -> None:
        """Takes note of a record that cannot be decoded, and says so.

        Args:
          record: its number in the split.
          problem: what was said of it.
          policy: "stop" or "skip".

        Raises:
          UserError: the policy is to stop, or no record of the split is left.
        """
        self._known.add(record)
        shard, number = self._corpus.place_of(self._split, record)
        place = f"record {number} of shard {self._corpus.directory / shard}"
        told = f"{place} (split {self._split!r}, key {self._key(record)}) cannot be decoded ({one_line(problem)})"
        if policy == STOP:
            raise UserError(f"{told}; rebuild the corpus, or pass such records over: DataConfig.bad_records = {SKIP!r}")
        if len(self._known) == self._size:
            raise UserError(f"{told}, and neither can any other of the split; rebuild the corpus")
        print(f"{told}; the next record stands in its place", file=sys.stderr, flush=True)

    def _key(self, record: int) -> str:
        try:
            return repr(decode_record(self._corpus.read(self._split, [record])[0]).key.decode(errors="replace"))
        except Exception:  # Whatever a parser of arbitrary bytes raises.
            return "unreadable"


def failures(examples: tf.data.Dataset, count: int) -> Iterator[tuple[int, str]]:
    """Number and problem of each of `count` examples that a dataset fails to give, one record each."""
    iterator = iter(examples)
    for number in range(count):
        try:
            next(iterator)
        except ERRORS as error:
            yield number, error.message if isinstance(error, tf.errors.OpError) else "it is no tf.train.Example"


def single(batch: tuple[np.ndarray, ...]) -> tf.data.Dataset:
    """The rows of a batch, as batches of one."""
    return tf.data.Dataset.from_tensor_slices(batch).batch(1, drop_remainder=True)
