"""seqio tasks: a corpus directory as a base or super-resolution task."""

import abc
import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from imagen_jax.data import preprocessors
from imagen_jax.data.bad_records import BadRecords
from imagen_jax.data.config import CorpusShare, DataConfig
from imagen_jax.data.feature_converters import BaseFeatureConverter, SuperResolutionFeatureConverter
from imagen_jax.data.mixture import shuffled
from imagen_jax.data.records import PARSE_SPEC, SIZED_PARSE_SPEC, Corpus
from imagen_jax.data.sized_pictures import make_sized_images
from imagen_jax.errors import UserError
from imagen_jax.files import is_remote
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.text.store.reader import EmbeddingStore

BASE_TASK, SUPER_RESOLUTION_TASK = "imagen_base", "imagen_sr"

_READ_BATCH = 64


def num_threads() -> int:
    """Threads that make examples: the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpenSource:
    """One source of a run, open for reading.

    Args:
      name: in metrics.
      corpus: the images and their captions.
      split: of the corpus.
      text: embeddings of the captions, or the encoder that makes them as the captions are read.

    Attributes:
      bad: records that are passed over.
    """

    name: str
    corpus: Corpus
    split: str
    text: EmbeddingStore | TextEncoder
    bad: BadRecords = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "bad", BadRecords(self.corpus, self.split))

    def embed(self, keys: Sequence[bytes], captions: Sequence[bytes], max_length: int) -> list[np.ndarray]:
        """Token embeddings of examples: [n, d] each, of `text_dtype`, n at most `max_length`.

        Raises:
          UserError: a key is not in the store, or a caption is longer.
        """
        if isinstance(self.text, TextEncoder):
            made, mask = self.text.encode([caption.decode() for caption in captions])
            found = [row[:count] for row, count in zip(np.asarray(made), mask.sum(axis=1), strict=True)]
        else:
            found = self.text.lookup(keys)
        for key, text in zip(keys, found, strict=True):
            if len(text) > max_length:
                raise UserError(
                    f"the caption of example {key.decode(errors='replace')!r} has {len(text)} token embeddings; "
                    f"max_text_length is {max_length}; raise it or embed the captions with a shorter one"
                )
        return found

    @property
    def text_dtype(self) -> np.dtype:
        """Dtype of a token embedding: float32, or bfloat16 of a store that is no longer exact."""
        return np.dtype(np.float32) if isinstance(self.text, TextEncoder) else self.text.dtype

    @property
    def text_width(self) -> int:
        """Width of a token embedding."""
        return self.text.sizes.embed_dim if isinstance(self.text, TextEncoder) else self.text.embed_dim


class _ByNumber(seqio.DataSource):
    """A source of which any record can be read on its own."""

    def __init__(self, corpus: Corpus):
        self.corpus = corpus
        counts = {split: corpus.num_examples(split) for split in corpus.splits}
        super().__init__(splits=corpus.splits, num_input_examples=counts, caching_permitted=False)

    @property
    def supports_arbitrary_sharding(self) -> bool:
        """True: any record can be read on its own."""
        return True

    def list_shards(self, split: str) -> list[str]:
        """File names of a split's shards."""
        return [shard["file"] for shard in self.corpus.manifest["splits"][split]["shards"]]

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        *,
        sequence_length: Mapping[str, int] | None = None,
        use_cached: bool = False,
        num_epochs: int | None = 1,
    ) -> tf.data.Dataset:
        """One epoch through seqio's own door."""
        del sequence_length, use_cached, num_epochs
        count = self.corpus.num_examples(split)
        index, num_shards = (shard_info.index, shard_info.num_shards) if shard_info else (0, 1)
        positions = tf.data.Dataset.range(index, count, num_shards).batch(_READ_BATCH)
        key = 0 if seed is None else seed

        def records(position: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return shuffled(position, count, key, tf.zeros_like(position)) if shuffle else position, position

        return self.examples(split, positions.map(records), key)

    @abc.abstractmethod
    def examples(self, split: str, batches: tf.data.Dataset, seed: int) -> tf.data.Dataset:
        """Single examples, in order, of pairs of int64 [k]: record numbers, and numbers of the examples."""


class CorpusSource(_ByNumber):
    """The records of a corpus directory: key, image (encoded) and caption.

    Args:
      corpus_dir: the corpus directory.
      store_dir: embedding store of its captions, for training; None: they are encoded as they are read.
    """

    def __init__(self, corpus_dir: str, store_dir: str | None = None):
        self.corpus_dir, self.store_dir = corpus_dir, store_dir
        super().__init__(Corpus(corpus_dir))

    def examples(self, split: str, batches: tf.data.Dataset, seed: int) -> tf.data.Dataset:
        """See `_ByNumber`."""
        del seed

        def read(record: tf.Tensor, number: tf.Tensor) -> dict[str, tf.Tensor]:
            del number
            return parsed(lambda indices: self.corpus.read(split, indices.tolist()), [record], record.shape)

        return batches.map(read).unbatch()


def parsed(
    read: Callable[..., Sequence[bytes]],
    arguments: Sequence[tf.Tensor],
    shape: Any,
    spec: Mapping[str, Any] = PARSE_SPEC,
) -> dict[str, tf.Tensor]:
    """Records that a Python function reads, as key, image and caption.

    Args:
      read: gives the records for the values of `arguments`.
      arguments: its arguments.
      shape: of the records, (k,).
      spec: what is read of them.
    """
    fetch = lambda *values: np.array(read(*values), dtype=object)  # noqa: E731
    serialized = tf.numpy_function(fetch, arguments, tf.string, stateful=False)
    return tf.io.parse_example(tf.ensure_shape(serialized, shape), spec)


def add_corpus(name: str, corpus_dir: str, store_dir: str | None = None) -> seqio.Task:
    """Registers a corpus directory as a seqio task, to be named in a seqio Mixture.

    Args:
      name: of the task; it must be new.
      corpus_dir: the corpus directory.
      store_dir: embedding store of its captions; None: they are encoded as they are read.

    Raises:
      UserError: there is no corpus, or the name is taken.
    """
    if name in seqio.TaskRegistry.names():
        raise UserError(f"a seqio task {name!r} is registered already; choose another name")
    text = seqio.Feature(seqio.PassThroughVocabulary(0), add_eos=False, dtype=tf.string, rank=0)
    return seqio.TaskRegistry.add(
        name,
        source=CorpusSource(corpus_dir, store_dir),
        preprocessors=[],
        output_features={"key": text, "image": text, "caption": text},
    )


def shares_of(config: DataConfig) -> tuple[CorpusShare, ...]:
    """The corpora that a config reads, with their rates; none where it reads a task.

    Raises:
      UserError: there is no such seqio Mixture, or one of its tasks is no corpus.
    """
    if config.task is not None:
        return ()
    if config.corpus_dir is not None:
        return (CorpusShare(corpus_dir=config.corpus_dir, store_dir=config.store_dir, split=config.split),)
    if not isinstance(config.mixture, str):
        return config.mixture or ()
    names = seqio.MixtureRegistry.names()
    if config.mixture not in names:
        raise UserError(
            f"there is no seqio Mixture {config.mixture!r}; register it in a module that a gin file imports; known are "
            f"{', '.join(sorted(names)) or 'none'}"
        )
    mixture = seqio.MixtureRegistry.get(config.mixture)
    shares = []
    for task in mixture.tasks:
        if not isinstance(task.source, CorpusSource):
            raise UserError(
                f"task {task.name!r} of Mixture {config.mixture!r} is no corpus; build one of it "
                "(`imagen_jax script data/build_task.py`) and register that with imagen_jax.data.tasks.add_corpus"
            )
        shares.append(
            CorpusShare(
                corpus_dir=task.source.corpus_dir,
                store_dir=task.source.store_dir,
                rate=float(mixture.get_rate(task)),
                split=config.split,
                name=task.name,
            )
        )
    return tuple(shares)


class RunSource(_ByNumber):
    """The examples of a run: key, image, caption, text [n, d], their source and their random `stream`.

    seqio's own door gives those of the first source; the training pipeline uses `read`.

    Args:
      sources: what is read.
      max_text_length: most token embeddings of a caption.
      failures: keeps the UserError of a damaged shard or of a caption that is too long.
    """

    def __init__(self, sources: Sequence[OpenSource], max_text_length: int, failures: preprocessors.FailureBox):
        super().__init__(sources[0].corpus)
        self._sources, self._max, self._failures = sources, max_text_length, failures
        at_once = len(sources) > 1 and any(is_remote(one.corpus.directory) for one in sources)
        self._map: Callable[..., Iterable[Any]] = ThreadPoolExecutor(2 * len(sources)).map if at_once else map

    def examples(self, split: str, batches: tf.data.Dataset, seed: int) -> tf.data.Dataset:
        """See `_ByNumber`."""
        return self._read([split], batches.map(lambda record, number: (tf.zeros_like(record), record, number)), seed, 1)

    def read(self, batches: tf.data.Dataset, seed: int, num_parallel: int) -> tf.data.Dataset:
        """Single examples, in order.

        Args:
          batches: triples of int64 [k]: sources, record numbers in them, and the numbers of the examples in the run.
          seed: seed of the run; with the example's number it makes its `stream`.
          num_parallel: batches that are read at once.
        """
        return self._read([one.split for one in self._sources], batches, seed, num_parallel)

    def _read(self, splits: Sequence[str], batches: tf.data.Dataset, seed: int, num_parallel: int) -> tf.data.Dataset:
        records = self._failures.guard(functools.partial(self._records, splits))
        embed, width = self._failures.guard(self._embed), self._sources[0].text_width
        kinds = (tf.as_dtype(text_dtype(self._sources)), tf.int64)
        sized = bool(self._sources[0].corpus.sizes(splits[0]))
        spec = SIZED_PARSE_SPEC if sized else PARSE_SPEC

        def read(source: tf.Tensor, record: tf.Tensor, number: tf.Tensor) -> dict[str, tf.Tensor]:
            found = parsed(records, [source, record], record.shape, spec)
            text, num_tokens = tf.numpy_function(embed, [source, found["key"], found["caption"]], kinds, stateful=False)
            return {
                **found,
                "text": tf.ensure_shape(text, (*record.shape, None, width)),
                "num_tokens": tf.ensure_shape(num_tokens, record.shape),
                "source": tf.cast(source, tf.int32),
                "stream": tf.stack((tf.fill(tf.shape(number), tf.cast(seed, tf.int64)), number), axis=1),
            }

        return batches.map(read, num_parallel_calls=num_parallel, deterministic=True).unbatch()

    def _by_source(self, sources: np.ndarray, read: Callable[[int, np.ndarray], Sequence[Any]]) -> list[Any]:
        """Results of `read` for the rows of each source, in the order of the rows; those of buckets at once."""
        numbers = np.unique(sources).tolist()
        rows = [np.flatnonzero(sources == number) for number in numbers]
        found = itertools.chain.from_iterable(self._map(read, numbers, rows))
        in_order = dict(zip(np.concatenate(rows).tolist(), found, strict=True))
        return [in_order[row] for row in range(len(sources))]

    def _records(self, splits: Sequence[str], sources: np.ndarray, records: np.ndarray) -> list[bytes]:
        def read(number: int, places: np.ndarray) -> Sequence[bytes]:
            source = self._sources[number]
            return source.corpus.read(splits[number], [source.bad.replaced(one) for one in records[places].tolist()])

        return self._by_source(sources, read)

    def _embed(self, sources: np.ndarray, keys: np.ndarray, captions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        def embed(number: int, places: np.ndarray) -> Sequence[np.ndarray]:
            return self._sources[number].embed(keys[places].tolist(), captions[places].tolist(), self._max)

        found = self._by_source(sources, embed)
        counts = np.array([len(text) for text in found], np.int64)
        padded = np.zeros((len(found), counts.max(initial=0), self._sources[0].text_width), text_dtype(self._sources))
        for row, text in zip(padded, found, strict=True):
            row[: len(text)] = text
        return padded, counts


def text_dtype(sources: Sequence[OpenSource]) -> np.dtype:
    """Dtype of a run's text: bfloat16 where that of every source is."""
    return np.result_type(*(one.text_dtype for one in sources))


def register_task(
    sources: Sequence[OpenSource],
    *,
    image_size: int,
    low_res_size: int | None,
    max_text_length: int,
    crop: str,
    failures: preprocessors.FailureBox,
    sized: bool = False,
) -> seqio.Task:
    """Registers `imagen_base`, or `imagen_sr` where there is a low_res_size, and returns it.

    It replaces an earlier one, which stays usable by those who hold it.

    Args:
      sources: what is read.
      image_size, low_res_size, crop: see `preprocessors`.
      max_text_length: most token embeddings of a caption.
      failures: keeps a UserError raised inside the dataset.
      sized: the source is a corpus of sizes.
    """
    features = {
        "x0": seqio.ContinuousFeature(dtype=tf.float32, rank=3),
        "text": seqio.ContinuousFeature(dtype=tf.as_dtype(text_dtype(sources)), rank=2),
        "source": seqio.Feature(seqio.PassThroughVocabulary(0), add_eos=False, dtype=tf.int32, rank=0),
    }
    name = BASE_TASK
    if low_res_size is not None:
        name, features["low_res"] = SUPER_RESOLUTION_TASK, features["x0"]
    if sized:
        features["framing"] = seqio.ContinuousFeature(dtype=tf.float32, rank=1)
    if name in seqio.TaskRegistry.names():
        seqio.TaskRegistry.remove(name)
    sizes = [one.corpus.image_size for one in sources]
    fits = any(one.corpus.keeps_originals for one in sources)
    steps = (
        [
            preprocessors.trim_text(),
            preprocessors.decode_image(None),
            make_sized_images(image_size, low_res_size, sizes[0]),
        ]
        if sized
        else [
            preprocessors.trim_text(),
            preprocessors.decode_image(sizes[0] if len({*sizes}) == 1 and not fits else None),
            *([preprocessors.fit(sizes)] if fits else []),
            preprocessors.crop(image_size, crop),
            preprocessors.make_images(image_size, low_res_size),
        ]
    )
    return seqio.TaskRegistry.add(
        name,
        source=RunSource(sources, max_text_length, failures),
        preprocessors=[preprocessors.in_one_map(steps, num_threads())],
        output_features=features,
        shuffle_buffer_size=None,
    )


def feature_converter(
    low_res_size: int | None, with_source: bool = False, text_dtype: tf.DType = tf.float32, sized: bool = False
) -> seqio.FeatureConverter:
    """The converter that fits the task of `register_task`; `with_source` keeps the numbers of the sources."""
    converter = BaseFeatureConverter if low_res_size is None else SuperResolutionFeatureConverter
    return converter(with_source, text_dtype, check_lengths=False, sized=sized)


def feature_lengths(
    image_size: int, low_res_size: int | None, max_text_length: int, with_source: bool = False, sized: bool = False
) -> dict[str, int]:
    """Lengths of the task features, as seqio calls them: the side of an image, the tokens of a caption.

    Of a picture of any size that is the number of its channels.
    """
    if sized:
        image_size, low_res_size = 3, None if low_res_size is None else 3
    lengths = {"x0": image_size, "text": max_text_length}
    if low_res_size is not None:
        lengths["low_res"] = low_res_size
    return lengths | ({"source": 1} if with_source else {}) | ({"framing": 6} if sized else {})
