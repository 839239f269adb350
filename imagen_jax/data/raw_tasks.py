"""seqio tasks of pictures as they were found: those registered by the user, and COCO captions of TFDS."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import seqio
import tensorflow as tf

from imagen_jax.errors import UserError, one_line
from imagen_jax.files import copies_limit, files_under, is_remote, local_folder


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
          UserError: it is not on disk, or in files that seqio does not read.
        """
        try:
            return super().get_dataset(split=split, shuffle=shuffle, **options)
        except AssertionError as error:  # what TFDS raises for want of the files
            raise UserError(
                f"dataset {self._name!r} is not prepared ({error}); run `tfds build {self._name}` first; "
                "TFDS_DATA_DIR says where"
            ) from error
        except NotImplementedError as error:
            raise UserError(
                f"dataset {self._name!r} is in files that seqio does not read ({error}); build a corpus of its folder: "
                "build_corpus --images DATA_DIR/name/version"
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
        return _here(seqio.TaskRegistry.get(name))
    if name not in RAW_TASKS:
        known = sorted({*RAW_TASKS, *seqio.TaskRegistry.names()})
        raise UserError(f"there is no seqio task {name!r}; choose one of {', '.join(known)} or register it")
    return _here(RAW_TASKS[name]())


def examples_of(task: seqio.Task, **options: Any) -> tf.data.Dataset:
    """The examples of a task.

    Args:
      task: the task.
      options: of its `get_dataset`.

    Raises:
      UserError: they are not what the task declares.
    """
    try:
        return task.get_dataset(try_in_mem_cache=False, **options)
    except ValueError as error:  # Of seqio's check.
        raise UserError(
            f"task {task.name!r} does not give what its output_features say ({one_line(str(error))}); make them agree"
        ) from error


def _here(task: seqio.Task) -> seqio.Task:
    """The task, its TFDS dataset copied to this machine if that lies in a bucket: TensorFlow's own way is not taken.

    Raises:
      UserError: it is not there, or larger than all copies may be.
    """
    if not isinstance(task.source, seqio.TfdsDataSource):
        return task
    loader = task.source.tfds_dataset
    data_dir = loader.data_dir or os.environ.get("TFDS_DATA_DIR", "")
    if loader.name is None or not is_remote(data_dir):
        return task
    dataset, _, version = loader.name.partition(":")
    there = files_under(f"{data_dir.rstrip('/')}/{dataset}")
    wanted = {name: size for name, size in there.items() if not version or version in name.split("/")}
    if not wanted:
        raise UserError(f"there is no dataset {loader.name!r} in {data_dir}; prepare it there, or check TFDS_DATA_DIR")
    total = sum(wanted.values())
    if total > copies_limit():
        raise UserError(
            f"dataset {loader.name!r} in {data_dir} has {total / 1e9:.2f} GB, more than copies may take; "
            "raise IMAGEN_JAX_CACHE_GB, or build a corpus of its folder (build_corpus --images), shard by shard"
        )
    loader.override_data_dir(local_folder(data_dir, [f"{dataset}/{name}" for name in wanted]))
    return task
