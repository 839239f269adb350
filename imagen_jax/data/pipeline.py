"""Host batches in an order that is arithmetic of (seed, step), so that a position is a handful of numbers.

    g         = step * batch_size + row          number of the example in the run
    source, m = of a mixture, see `data.mixture`; of one corpus m = g
    epoch     = m // N                           N = examples in the source
    record    = shuffled(m mod N; seed, epoch)   each epoch is a permutation
    a host reads the rows that its devices hold

A corpus of sizes has an order of its own: `data.size_order`. Nothing depends on the number of hosts, shards or threads,
and resuming at a step skips nothing and reads nothing twice.
"""

import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from imagen_jax.checks import check_count
from imagen_jax.data.bad_records import ERRORS, failures, single
from imagen_jax.data.config import CorpusShare, DataConfig
from imagen_jax.data.mixture import Order
from imagen_jax.data.preprocessors import FailureBox
from imagen_jax.data.records import Corpus
from imagen_jax.data.size_order import SizeOrder
from imagen_jax.data.sized_pictures import check_corpus_sizes
from imagen_jax.data.tasks import (
    OpenSource,
    feature_converter,
    feature_lengths,
    num_threads,
    register_task,
    shares_of,
    text_dtype,
)
from imagen_jax.errors import UserError
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.text.store.reader import EmbeddingStore

_PREFETCH_BATCHES = 2
# Batches whose records and embeddings are read at once.
_NUM_READ = 2
# A stopped stream holds fewer batches than this.
_MAX_LEFT = 20


def checked_rows(rows: Sequence[int] | None, *, batch_size: int, seed: int, start_step: int) -> np.ndarray:
    """Numbers of the rows that a host reads of every global batch, int64 [b], checked with what else says where it is.

    Raises:
      UserError: rows do not rise or are outside the batch, the seed is outside [0, 2**31), a count is too small.
    """
    check_count("batch_size", batch_size, 1)
    check_count("seed", seed, 0)
    check_count("start_step", start_step, 0)
    if seed >= 2**31:
        raise UserError(f"seed ({seed}) must be below 2**31")
    own = np.arange(batch_size) if rows is None else np.asarray(rows, np.int64)
    if not own.size or own[0] < 0 or own[-1] >= batch_size or (np.diff(own) <= 0).any():
        raise UserError(f"rows ({rows}) must be rising numbers in [0, {batch_size}), at least one")
    return own


class BatchIterator(Iterator[dict[str, np.ndarray]]):
    """This host's rows of every global batch, without end.

    Each batch is a dict of numpy arrays: x0 [b, h, w, 3] float32 in [-1, 1]; low_res [b, h', w', 3] likewise
    (super-resolution only); text [b, n, d], zero-padded; text_mask [b, n] bool; of a mixture also source [b] int32; of
    a corpus of sizes also framing [b, 6] float32 (`data.sized_pictures`), and h, w are those of its batch.

    Args:
      config: what to read.
      batch_size: rows of the global batch. It may exceed the corpus.
      seed: in [0, 2**31); fixes the order and the crops.
      start_step: step of the first batch to come.
      rows: numbers of the rows to read, in [0, batch_size), rising; None: all of them.
      encoder: makes the text embeddings where config.store_dir is None.

    Raises:
      UserError: bad arguments, corpus or store; also from iterating, when a shard is damaged, a key is not in
        the store or a caption is too long.
    """

    def __init__(
        self,
        config: DataConfig,
        *,
        batch_size: int,
        seed: int,
        start_step: int,
        rows: Sequence[int] | None = None,
        encoder: TextEncoder | None = None,
    ):
        own = checked_rows(rows, batch_size=batch_size, seed=seed, start_step=start_step)
        _leave_accelerators_to_jax()
        self._config, self._batch_size, self._seed, self._step = config, batch_size, seed, start_step
        self._failures = FailureBox()
        shares = shares_of(config)
        self._sources = [_opened(share, config.image_size, encoder) for share in shares]
        self._order = Order(
            [one.corpus.num_examples(one.split) for one in self._sources],
            [share.rate for share in shares],
            [(step * batch_size, rates) for step, rates in config.rate_changes],
        )
        ranges = [check_corpus_sizes(config, one.corpus, one.split) for one in self._sources][0]
        self._sized = SizeOrder(ranges, batch_size, seed) if ranges else None
        self._rows = own
        self._start()

    def _start(self) -> None:
        """Begins to read at the step."""
        alive = tf.Variable(True)
        batches = self._dataset(alive).as_numpy_iterator()
        self._batches = batches
        self._finalizer = weakref.finalize(self, _stop, alive, batches)

    def _records(self, step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Of this host's rows of a step: sources, record numbers in them, and the numbers of the examples."""
        return self._records_of_rows(step, tf.constant(self._rows, tf.int64))

    def _records_of_rows(self, step: tf.Tensor, rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        number = step * self._batch_size + rows
        if self._sized is not None:
            return tf.zeros_like(number), self._sized.records(step, rows), number
        return (*self._order.records(number, self._seed), number)

    def examples_of(self, step: int) -> dict[str, list[int]]:
        """Record numbers of the whole global batch after `step` updates, in the order of its rows, by source.

        The name of a source is that of the mixture's, or the split of one corpus.
        """
        rows = tf.range(self._batch_size, dtype=tf.int64)
        sources, records, _ = (part.numpy() for part in self._records_of_rows(tf.constant(step, tf.int64), rows))
        names = self.source_names or (self._sources[0].split,)
        return {name: records[sources == number].tolist() for number, name in enumerate(names)}

    def _examples(self, batches: tf.data.Dataset) -> tf.data.Dataset:
        """Single examples of batches of `_records`."""
        config = self._config
        task = register_task(
            self._sources,
            image_size=config.image_size,
            low_res_size=config.low_res_size,
            max_text_length=config.max_text_length,
            crop=config.crop,
            failures=self._failures,
            sized=self._sized is not None,
        )

        dataset = task.source.read(batches, self._seed, _NUM_READ)
        dataset = task.preprocess_postcache(dataset, sequence_length=None)
        mixed, sized = len(self._sources) > 1, self._sized is not None
        lengths = feature_lengths(config.image_size, config.low_res_size, config.max_text_length, mixed, sized)
        dtype = tf.as_dtype(self.text_dtype)
        return feature_converter(config.low_res_size, mixed, dtype, sized)(dataset, lengths)

    def _dataset(self, alive: tf.Variable) -> tf.data.Dataset:
        steps = tf.data.Dataset.counter(self._step).take_while(lambda _: alive.read_value())
        dataset = self._examples(steps.map(self._records))
        options = tf.data.Options()
        options.deterministic = True
        # Autotuning's thread pauses for up to a minute, and a program that ended during a pause waited for it. There
        # is nothing to tune: threads and read-ahead are set here.
        options.autotune.enabled = False
        options.threading.private_threadpool_size = num_threads()
        options.threading.max_intra_op_parallelism = 1
        return dataset.batch(len(self._rows), drop_remainder=True).prefetch(_PREFETCH_BATCHES).with_options(options)

    def __next__(self) -> dict[str, np.ndarray]:
        while True:
            try:
                batch = next(self._batches)
                break
            except ERRORS:
                if self._failures.error is not None:
                    raise self._failures.error from None
                if not self._pass_over():
                    raise
        self._step += 1
        return batch

    def _pass_over(self) -> bool:
        """Finds the bad records of the batch that failed, and reads it without them; False if none is bad.

        Raises:
          UserError: the run is to stop at a bad record, or a shard is damaged.
        """
        sources, records, numbers = (part.numpy() for part in self._records(tf.constant(self._step, tf.int64)))
        found = list(failures(self._examples(single((sources, records, numbers))), len(numbers)))
        if self._failures.error is not None:
            raise self._failures.error
        for row, problem in found:
            bad = self._sources[sources[row]].bad
            bad.add(bad.replaced(int(records[row])), problem, self._config.bad_records)
        if found:
            self.close()
            self._start()
        return bool(found)

    @property
    def bad_records(self) -> frozenset[tuple[int, int]]:
        """Records that this process passed over since its start: the number of the source, and of the record in it."""
        return frozenset((source, record) for source, one in enumerate(self._sources) for record in one.bad.known)

    def close(self) -> None:
        """Stops reading ahead; the end of the program does as well. No batch comes after it."""
        self._finalizer()

    @property
    def text_dtype(self) -> np.dtype:
        """Dtype of the text: float32, or bfloat16 where every source is a store of bfloat16 or int8."""
        return text_dtype(self._sources)

    @property
    def source_names(self) -> tuple[str, ...]:
        """Names of the sources of a mixture, in the order of their numbers; none of one corpus."""
        return tuple(one.name for one in self._sources) if len(self._sources) > 1 else ()

    def epochs(self, step: int) -> dict[str, float]:
        """Epochs of each source of a mixture before a step."""
        drawn = self._order.drawn(step * self._batch_size)
        pairs = zip(self.source_names, drawn, self._order.sizes, strict=False)
        return {name: float(count / size) for name, count, size in pairs}

    def position(self) -> dict[str, Any]:
        """Where the next batch stands, and what fixes the order; JSON-able and a few dozen bytes a source."""
        place: dict[str, Any] = {"step": self._step, "seed": self._seed, "batch_size": self._batch_size}
        if len(self._sources) == 1:
            (one,) = self._sources
            size = self._order.sizes[0]
            return {**place, "split": one.split, "num_examples": size, "corpus": one.corpus.digest[:16]}
        digests = {one.name: f"{one.split} {one.corpus.digest[:16]}" for one in self._sources}
        # Changes to come are free to change.
        rates = [[0, *self._order.rates]]
        rates += [[step, *rates] for step, rates in self._config.rate_changes if step <= self._step]
        return {**place, "corpora": digests, "rates": rates}


def _opened(share: CorpusShare, image_size: int, encoder: TextEncoder | None) -> OpenSource:
    corpus = Corpus(share.corpus_dir)
    corpus.num_examples(share.split)
    if image_size > corpus.image_size:
        raise UserError(
            f"image_size ({image_size}) is larger than the images of corpus {share.corpus_dir!r} "
            f"({corpus.image_size}); choose at most {corpus.image_size} or build the corpus larger"
        )
    text = encoder if share.store_dir is None else EmbeddingStore.open(share.store_dir)
    if text is None:
        raise UserError("store_dir is None, and there is no encoder for the captions; give one of them")
    return OpenSource(name=str(share.name), corpus=corpus, split=share.split, text=text)


def _stop(alive: tf.Variable, batches: Iterator[dict[str, np.ndarray]]) -> None:
    """Ends the stream and reads what is left of it.

    TensorFlow's threads read records through Python. A stream that is dropped while they do waits for them with
    the interpreter's lock in hand, which they wait for too: programs hung for a minute at their end, or for good.
    """
    alive.assign(False)
    for _ in range(_MAX_LEFT):
        try:
            next(batches)
        except StopIteration:
            return
        except ERRORS:
            continue


def _leave_accelerators_to_jax() -> None:
    """Hides GPUs from TensorFlow, which would otherwise take most of their memory."""
    if tf.config.get_visible_devices("GPU"):
        tf.config.set_visible_devices([], "GPU")
