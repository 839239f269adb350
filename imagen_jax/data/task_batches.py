"""Host batches straight from a seqio task of the user's: TFDS, TFRecord, a function, with no corpus built.

The order is seqio's with the run's seed, so it is the same on every start as long as the task's is. Of the global batch
each host keeps its own rows, and a resumed run passes over what was read: both cost reading, not training. Captions are
encoded as they are read. Built into a corpus (`data/build_task.py`), the same task is read by number and from stores.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from imagen_jax.data import preprocessors
from imagen_jax.data.config import DataConfig
from imagen_jax.data.pipeline import checked_rows
from imagen_jax.data.raw_tasks import examples_of, get_raw_task
from imagen_jax.data.tasks import num_threads
from imagen_jax.errors import UserError
from imagen_jax.text.encoder import TextEncoder

_NUM_PARALLEL = 2
_PREFETCH_BATCHES = 2
_FEATURES = ("image", "caption")


class TaskBatches(Iterator[dict[str, np.ndarray]]):
    """This host's rows of every global batch of a task that is read again and again.

    Batches are as those of `data.pipeline.BatchIterator`.

    Args:
      config: what to read; its `task` gives `image` (uint8 pixels [h, w, 3] or encoded bytes) and `caption`.
      batch_size: rows of the global batch.
      seed: in [0, 2**31); fixes the task's order and the crops.
      start_step: step of the first batch to come.
      rows: numbers of the rows to read, in [0, batch_size), rising; None: all of them.
      encoder: makes the text embeddings.

    Raises:
      UserError: bad arguments, no such task or split, the task lacks a feature or gives another type; also from
        iterating, when a picture is smaller than the stage's, or the task gives nothing.
    """

    source_names: tuple[str, ...] = ()
    bad_records: frozenset[tuple[int, int]] = frozenset()
    # Captions are encoded as they are read.
    text_dtype = np.dtype(np.float32)

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
        if encoder is None:
            raise UserError("captions of a task are encoded as they are read, and there is no encoder; give one")
        self._config, self._batch_size, self._seed, self._step = config, batch_size, seed, start_step
        self._failures = preprocessors.FailureBox()
        self._encoder = encoder
        self._batches = self._dataset(np.isin(np.arange(batch_size), own), len(own)).as_numpy_iterator()

    def _dataset(self, own: np.ndarray, num_own: int) -> tf.data.Dataset:
        config, name = self._config, self._config.task
        task = get_raw_task(str(name))
        if config.split not in task.splits:
            raise UserError(f"split {config.split!r} is not in task {name!r}; choose from {', '.join(task.splits)}")
        options = {"split": config.split, "shuffle": True, "seed": self._seed, "num_epochs": None}
        dataset = examples_of(task, sequence_length=None, **options)
        _check_features(str(name), dataset.element_spec)
        first = self._step * self._batch_size
        dataset = dataset.skip(first).enumerate(first)
        dataset = dataset.filter(lambda number, _: tf.constant(own)[number % self._batch_size])

        def example(number: tf.Tensor, found: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            stream = tf.stack((tf.constant(self._seed, tf.int64), number))
            return {"image": found["image"], "caption": found["caption"], "stream": stream}

        encoded = dataset.element_spec[1]["image"].dtype == tf.string
        dataset = dataset.map(example)
        steps = [
            *([preprocessors.decode_image(None)] if encoded else []),
            preprocessors.square(config.image_size, self._failures),
            preprocessors.crop(config.image_size, config.crop),
            preprocessors.make_images(config.image_size, config.low_res_size),
        ]
        dataset = preprocessors.in_one_map(steps, num_threads())(dataset)
        reading = tf.data.Options()
        reading.deterministic = True
        reading.autotune.enabled = False
        batches = dataset.batch(num_own, drop_remainder=True).map(self._with_text, num_parallel_calls=_NUM_PARALLEL)
        return batches.prefetch(_PREFETCH_BATCHES).with_options(reading)

    def _with_text(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        length, width = self._config.max_text_length, self._encoder.sizes.embed_dim

        def encode(captions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            found, mask = self._encoder.encode([caption.decode() for caption in captions.tolist()])
            text = np.zeros((len(captions), length, width), np.float32)
            text[:, : found.shape[1]] = np.where(mask[..., None], found, 0)[:, :length]
            kept = np.zeros(text.shape[:2], bool)
            kept[:, : mask.shape[1]] = mask[:, :length]
            return text, kept

        guarded = self._failures.guard(encode)
        text, mask = tf.numpy_function(guarded, [batch["caption"]], (tf.float32, tf.bool), stateful=False)
        rows = batch["x0"].shape[0]
        images: dict[str, tf.Tensor] = {name: batch[name] for name in ("x0", "low_res") if name in batch}
        return {
            **images,
            "text": tf.ensure_shape(text, (rows, length, width)),
            "text_mask": tf.ensure_shape(mask, (rows, length)),
        }

    def __next__(self) -> dict[str, np.ndarray]:
        try:
            batch = next(self._batches)
        except StopIteration:
            raise UserError(f"task {self._config.task!r} gives no example of split {self._config.split!r}") from None
        except tf.errors.OpError:
            if self._failures.error is not None:
                raise self._failures.error from None
            raise
        self._step += 1
        return batch

    def close(self) -> None:
        """Nothing: what was read ahead is dropped with the iterator."""

    def examples_of(self, step: int) -> dict[str, list[int]]:
        """Numbers that the examples of the global batch after `step` updates have in the task's order."""
        first = step * self._batch_size
        return {str(self._config.task): list(range(first, first + self._batch_size))}

    def epochs(self, step: int) -> dict[str, float]:
        """No sources: the task is one."""
        del step
        return {}

    def position(self) -> dict[str, Any]:
        """Where the next batch stands, and what fixes the order; JSON-able."""
        return {
            "step": self._step,
            "seed": self._seed,
            "batch_size": self._batch_size,
            "split": self._config.split,
            "task": self._config.task,
        }


def _check_features(name: str, spec: dict[str, tf.TensorSpec]) -> None:
    missing = [feature for feature in _FEATURES if feature not in spec]
    if missing:
        raise UserError(
            f"task {name!r} lacks {' and '.join(missing)}, it gives {', '.join(sorted(spec))}; rename its features"
        )
    for feature, allowed in (("image", (tf.uint8, tf.string)), ("caption", (tf.string,))):
        if spec[feature].dtype not in allowed:
            kinds = " or ".join(kind.name for kind in allowed)
            raise UserError(f"feature {feature} of task {name!r} is {spec[feature].dtype.name}; expected {kinds}")
