"""seqio preprocessors: from a corpus record to the images and text embeddings of one training example.

Every resize is the same antialiased bilinear filter, so the low-res condition of a super-resolution model is,
bit for bit, the picture that the base model was trained on.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from imagen_jax.errors import UserError

Preprocessor = Callable[[tf.data.Dataset], tf.data.Dataset]
Example = dict[str, tf.Tensor]
Step = Callable[[Example], Example]


def in_one_map(steps: Sequence[Step], num_parallel: int) -> Preprocessor:
    """All steps on one example in one thread, examples beside each other; they leave in the order they came.

    A map of its own for each step costs more than a small picture's decoding.

    Args:
      steps: applied one after the other.
      num_parallel: examples in the making at once.
    """

    def apply(example: Example) -> Example:
        return functools.reduce(lambda found, step: step(found), steps, example)

    return lambda dataset: dataset.map(apply, num_parallel_calls=num_parallel, deterministic=True)


class FailureBox:
    """Keeps the UserError that a Python function inside tf.data raised, which TensorFlow turns into text."""

    error: UserError | None = None

    def guard(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function; a UserError is kept in `error` on its way out."""

        def guarded(*args: Any) -> Any:
            try:
                return function(*args)
            except UserError as error:
                self.error = error
                raise

        return guarded


def resize(image: tf.Tensor, size: int | tf.Tensor) -> tf.Tensor:
    """Antialiased bilinear resize to [size, size, 3], float32 of the same range."""
    if image.shape[:2] == (size, size):  # TensorFlow would go over every pixel to give the same values.
        return tf.cast(image, tf.float32)
    return tf.image.resize(image, (size, size), method="bilinear", antialias=True)


def to_unit_range(image: tf.Tensor) -> tf.Tensor:
    """[0, 255] → [-1, 1], float32."""
    return tf.cast(image, tf.float32) / 127.5 - 1.0


def decode_image(corpus_image_size: int | None) -> Step:
    """`image`: encoded PNG, JPEG or WebP → uint8 [size, size, 3].

    Args:
      corpus_image_size: side of the corpus images, in pixels; any other size stops the pipeline. None: any size.
    """

    def decode(example: Example) -> Example:
        image = tf.ensure_shape(_pixels(example["image"]), (corpus_image_size, corpus_image_size, 3))
        return {**example, "image": image}

    return decode


def _pixels(encoded: tf.Tensor) -> tf.Tensor:
    """uint8 [h, w, 3] of a file, by what its bytes are."""
    return tf.cond(
        tf.strings.substr(encoded, 0, 4) == b"RIFF",
        lambda: tf.io.decode_webp(encoded, channels=3)[0],  # The first of its frames.
        # It reads PNG as well. The default method is faster and differs from Pillow's and libjpeg's exact result.
        lambda: tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE"),
    )


def upright(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Pixels [h, w, 3] turned as their EXIF orientation says: int64, 1 to 8; 1 is upright already."""

    def turned() -> tf.Tensor:
        one = tf.cond(orientation >= 5, lambda: tf.transpose(image, (1, 0, 2)), lambda: image)
        one = tf.cond(tf.reduce_any(orientation == [2, 3, 6, 7]), lambda: one[:, ::-1], lambda: one)
        return tf.cond(tf.reduce_any(orientation == [3, 4, 7, 8]), lambda: one[::-1], lambda: one)

    return tf.cond(orientation == 1, lambda: image, turned)


def fit(sizes: Sequence[int]) -> Step:
    """`image`: uint8 of any shape, a kept original → turned upright, its centre square at the corpus's size, uint8.

    Args:
      sizes: sides of the images of each corpus, in pixels, in the order of the numbers in `source`.
    """
    size = sizes[0] if len({*sizes}) == 1 else None

    def fitted(example: Example) -> Example:
        example = dict(example)
        image = upright(example["image"], example.pop("orientation"))
        side = tf.gather(tf.constant(list(sizes)), example["source"])
        shape = tf.shape(image)
        least = tf.minimum(shape[0], shape[1])
        corner = tf.stack(((shape[0] - least) // 2, (shape[1] - least) // 2, 0))
        cut = tf.slice(image, corner, (least, least, 3))
        scaled = tf.cond(least == side, lambda: cut, lambda: tf.saturate_cast(tf.round(resize(cut, side)), tf.uint8))
        return {**example, "image": tf.ensure_shape(scaled, (size, size, 3))}

    return fitted


def square(size: int, failures: FailureBox) -> Step:
    """`image`: uint8 of any shape → its centre square, uint8.

    Args:
      size: least side, in pixels.
      failures: keeps the UserError of a picture that is smaller or has no three channels.
    """

    def checked(shape: np.ndarray) -> np.ndarray:
        if len(shape) != 3 or shape[2] != 3 or min(shape[:2]) < size:
            raise UserError(
                f"a picture of the task has shape {shape.tolist()}; expected [h, w, 3], no side below {size} pixels: "
                "filter the task, or choose a smaller image_size"
            )
        return shape

    guarded = failures.guard(checked)

    def cut(example: Example) -> Example:
        image = example["image"]
        shape = tf.numpy_function(guarded, [tf.shape(image)], tf.int32, stateful=False)
        shape = tf.ensure_shape(shape, (3,))
        side = tf.minimum(shape[0], shape[1])
        corner = tf.stack(((shape[0] - side) // 2, (shape[1] - side) // 2, 0))
        return {**example, "image": tf.ensure_shape(tf.slice(image, corner, (side, side, 3)), (None, None, 3))}

    return cut


def crop(size: int, mode: str) -> Step:
    """`image`: cut to [size, size, 3]; section 2.5 trains the 1024 x 1024 model on crops.

    Args:
      size: side of the window, in pixels.
      mode: "none" keeps the whole image, "centre" cuts the middle, "random" a window drawn from the
        example's own `stream` (run seed, number of the example in the run), so that it is the same on every
        restart and every layout of hosts.
    """

    def cut(example: Example) -> Example:
        image = example["image"]
        room = tf.shape(image)[0] - size
        if mode == "random":
            corner = tf.random.stateless_uniform((2,), example["stream"], 0, room + 1, tf.int32)
        else:
            corner = tf.stack((room // 2, room // 2))
        window = tf.slice(image, tf.concat((corner, (0,)), axis=0), (size, size, 3))
        return {**example, "image": window}

    return (lambda example: example) if mode == "none" else cut


def make_images(image_size: int, low_res_size: int | None) -> Step:
    """`image` → `x0`, and `low_res` of the same crop for super-resolution; float32 in [-1, 1].

    Args:
      image_size: side of x0, in pixels.
      low_res_size: side of low_res, in pixels; None for a base model.
    """

    def make(example: Example) -> Example:
        example = dict(example)
        image = example.pop("image")
        example["x0"] = to_unit_range(resize(image, image_size))
        if low_res_size is not None:
            example["low_res"] = to_unit_range(resize(image, low_res_size))
        return example

    return make


def trim_text() -> Step:
    """`text` [n, d] of a batch's longest caption and `num_tokens` → `text` [num_tokens, d]."""

    def trim(example: Example) -> Example:
        example = dict(example)
        return {**example, "text": example["text"][: example.pop("num_tokens")]}

    return trim
