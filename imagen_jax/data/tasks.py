"""seqio tasks: a corpus directory as a base or super-resolution task, and raw datasets of TFDS."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from imagen_jax.data import preprocessors
from imagen_jax.data.feature_converters import BaseFeatureConverter, SuperResolutionFeatureConverter
from imagen_jax.data.records import PARSE_SPEC, Corpus
from imagen_jax.errors import UserError
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.text.store.reader import EmbeddingStore

BASE_TASK, SUPER_RESOLUTION_TASK = "imagen_base", "imagen_sr"

# Few rounds leave long runs of neighbouring records in some epochs; 16 are as even as true permutations.
_SHUFFLE_ROUNDS = 16
_READ_BATCH = 64


def shuffled(position: tf.Tensor, num_examples: int, seed: int, epoch: tf.Tensor) -> tf.Tensor:
    """The record at each position of an epoch: a stateless permutation of range(num_examples).

    Args:
      position: int64 [k], each in [0, num_examples).
      num_examples: records in the split.
      seed: in [0, 2**31).
      epoch: int64 [k], the epoch of each position.
    """
    seeds = tf.stack((tf.zeros_like(epoch), tf.fill(tf.shape(epoch), tf.cast(seed, tf.int64)), epoch), axis=1)
    last = tf.constant(num_examples - 1, tf.int64)
    return tf.raw_ops.RandomIndexShuffle(index=position, seed=seeds, max_index=last, rounds=_SHUFFLE_ROUNDS)


class CorpusSource(seqio.DataSource):
    """The records of a corpus directory: key, image, caption, and the example's random `stream`.

    Args:
      corpus: an open corpus.
      failures: keeps the UserError of a damaged shard.
      encoder: where given, the examples also carry `text`, the token embeddings of their captions: the records are
        read many at once, and so are their captions encoded.
    """

    def __init__(self, corpus: Corpus, failures: preprocessors.FailureBox, encoder: TextEncoder | None = None):
        counts = {split: corpus.num_examples(split) for split in corpus.splits}
        super().__init__(splits=corpus.splits, num_input_examples=counts, caching_permitted=False)
        self.corpus, self._failures, self._encoder = corpus, failures, encoder

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
        """One epoch through seqio's own door; the training pipeline uses `read` instead."""
        del sequence_length, use_cached, num_epochs
        count = self.corpus.num_examples(split)
        index, num_shards = (shard_info.index, shard_info.num_shards) if shard_info else (0, 1)
        positions = tf.data.Dataset.range(index, count, num_shards).batch(_READ_BATCH)
        key = 0 if seed is None else seed

        def records(position: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            epoch = tf.zeros_like(position)
            return (shuffled(position, count, key, epoch) if shuffle else position), position

        return self.read(split, positions.map(records), key)

    def read(self, split: str, batches: tf.data.Dataset, seed: int) -> tf.data.Dataset:
        """Single examples, in order.

        Args:
          split: name of a split.
          batches: pairs of int64 [k]: record numbers and the numbers of the examples in the run.
          seed: seed of the run; with the example's number it makes its `stream`.
        """
        fetch = self._failures.guard(lambda indices: np.array(self.corpus.read(split, indices.tolist()), dtype=object))

        def parse(records: tf.Tensor, numbers: tf.Tensor) -> dict[str, tf.Tensor]:
            serialized = tf.numpy_function(fetch, [records], tf.string, stateful=False)
            serialized = tf.ensure_shape(serialized, records.shape)
            stream = tf.stack((tf.fill(tf.shape(numbers), tf.cast(seed, tf.int64)), numbers), axis=1)
            return {**tf.io.parse_example(serialized, PARSE_SPEC), "stream": stream}

        dataset = batches.map(parse)
        if self._encoder is not None:
            dataset = preprocessors.encode_text(self._encoder, self._failures)(dataset)
        return dataset.unbatch()


def register_task(
    corpus: Corpus,
    text: EmbeddingStore | TextEncoder,
    *,
    image_size: int,
    low_res_size: int | None,
    max_text_length: int,
    crop: str,
    failures: preprocessors.FailureBox,
) -> seqio.Task:
    """Registers `imagen_base`, or `imagen_sr` where there is a low_res_size, and returns it.

    A later registration replaces an earlier one, which stays usable by those who hold it.

    Args:
      corpus: the images and their captions.
      text: embeddings of the captions, or the encoder that makes them as the captions are read.
      image_size, low_res_size, crop: see `preprocessors`.
      max_text_length: most token embeddings of a caption.
      failures: keeps a UserError raised inside the dataset.
    """
    features = {
        "x0": seqio.ContinuousFeature(dtype=tf.float32, rank=3),
        "text": seqio.ContinuousFeature(dtype=tf.float32, rank=2),
    }
    if isinstance(text, TextEncoder):
        source = CorpusSource(corpus, failures, text)
        join = preprocessors.trim_text()
    else:
        source = CorpusSource(corpus, failures)
        join = preprocessors.join_text(text, max_text_length, failures)
    name = BASE_TASK
    if low_res_size is not None:
        name, features["low_res"] = SUPER_RESOLUTION_TASK, features["x0"]
    if name in seqio.TaskRegistry.names():
        seqio.TaskRegistry.remove(name)
    return seqio.TaskRegistry.add(
        name,
        source=source,
        preprocessors=[
            preprocessors.decode_image(corpus.image_size),
            preprocessors.crop(image_size, crop),
            preprocessors.make_images(image_size, low_res_size),
            join,
        ],
        output_features=features,
        shuffle_buffer_size=None,
    )


def feature_converter(low_res_size: int | None) -> seqio.FeatureConverter:
    """The converter that fits the task of `register_task`."""
    return BaseFeatureConverter() if low_res_size is None else SuperResolutionFeatureConverter()


def feature_lengths(image_size: int, low_res_size: int | None, max_text_length: int) -> dict[str, int]:
    """Lengths of the task features, as seqio calls them: the side of an image, the tokens of a caption."""
    lengths = {"x0": image_size, "text": max_text_length}
    return lengths if low_res_size is None else {**lengths, "low_res": low_res_size}


class PreparedTfdsSource(seqio.TfdsDataSource):
    """A TFDS dataset that is on disk already: tens of gigabytes are the user's decision to download."""

    def __init__(self, name: str, splits: Sequence[str]):
        super().__init__(name, splits=splits, read_only=True)
        self._name = name.split(":")[0]

    def num_input_examples(self, split: str) -> int | None:
        """Examples of a split, None where the dataset is not prepared."""
        return super().num_input_examples(split) if self.tfds_dataset.info.splits else None

    def get_dataset(self, split: str = "train", shuffle: bool = True, **options: Any) -> tf.data.Dataset:
        """The dataset.

        Raises:
          UserError: it is not on disk.
        """
        try:
            return super().get_dataset(split=split, shuffle=shuffle, **options)
        except AssertionError as error:  # what TFDS raises for want of the files
            raise UserError(
                f"dataset {self._name!r} is not prepared ({error}); run `tfds build {self._name}` first; "
                "TFDS_DATA_DIR says where"
            ) from error


def _one_example_per_caption(dataset: tf.data.Dataset) -> tf.data.Dataset:
    def split(example: Mapping[str, tf.Tensor]) -> tf.data.Dataset:
        captions = example["captions"]["text"]
        count = tf.shape(captions)[0]
        names = tf.strings.as_string(tf.range(count))
        keys = tf.strings.join((tf.strings.as_string(example["image/id"]), names), "-")
        # One image at a time: a tensor of five copies would be decoded pictures by the megabyte.
        return tf.data.Dataset.from_tensor_slices((keys, captions)).map(
            lambda key, caption: {"key": key, "image": example["image"], "caption": caption}
        )

    return dataset.flat_map(split)


def _register_coco_captions() -> seqio.Task:
    text = seqio.Feature(seqio.PassThroughVocabulary(0), add_eos=False, dtype=tf.string, rank=0)
    pixels = seqio.ContinuousFeature(dtype=tf.uint8, rank=3)
    return seqio.TaskRegistry.add(
        "coco_captions",
        source=PreparedTfdsSource("coco_captions:1.1.0", ("train", "val", "test", "restval")),
        preprocessors=[_one_example_per_caption],
        output_features={"key": text, "image": pixels, "caption": text},
    )


RAW_TASKS: Mapping[str, Callable[[], seqio.Task]] = {"coco_captions": _register_coco_captions}


def get_raw_task(name: str) -> seqio.Task:
    """A task that feeds the corpus builder: one of RAW_TASKS, made on demand, or one the user registered.

    Raises:
      UserError: there is no such task.
    """
    if name in seqio.TaskRegistry.names():
        return seqio.TaskRegistry.get(name)
    if name not in RAW_TASKS:
        known = sorted({*RAW_TASKS, *seqio.TaskRegistry.names()})
        raise UserError(f"there is no seqio task {name!r}; choose one of {', '.join(known)} or register it")
    return RAW_TASKS[name]()
