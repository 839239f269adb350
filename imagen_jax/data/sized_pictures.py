"""Preprocessing of a corpus of sizes: pictures scaled to a stage's sizes, and how each is framed.

`framing` is what SDXL tells its network of a picture (arXiv 2307.01952, section 2.2): six numbers,

    original height and width, height and width cut off at the top and at the left, height and width of the picture,

here all in pixels of x0: the original as it would be if it had been made smaller as much as the corpus's pictures are
for this stage. So a picture that had the corpus's size has its own size as the original one, whatever the stage's, and
a stage that trains at the corpus's own size is told what SDXL is.
"""

import tensorflow as tf

from imagen_jax.data.config import DataConfig
from imagen_jax.data.preprocessors import Example, Step, to_unit_range
from imagen_jax.data.records import Corpus
from imagen_jax.data.sizes import SizeRange, names_of, scaled
from imagen_jax.errors import UserError


def check_corpus_sizes(config: DataConfig, corpus: Corpus, split: str) -> tuple[SizeRange, ...]:
    """Where the records of each size lie in a split; none of a corpus of squares.

    Raises:
      UserError: the corpus has other sizes than the config says, none where it says some, or some where it says none.
    """
    ranges = corpus.sizes(split)
    found = [scaled(one.size, config.image_size, corpus.image_size) for one in ranges]
    if None in found:
        raise UserError(
            f"the sizes of corpus {str(corpus.directory)!r} ({names_of([one.size for one in ranges])}) are no whole "
            f"numbers at image_size {config.image_size} of {corpus.image_size}; choose another image_size"
        )
    here = [size for size in found if size is not None]
    if not set(here) <= set(config.sizes) or (config.sizes and not here):
        raise UserError(
            f"split {split!r} of corpus {str(corpus.directory)!r} has, at image_size {config.image_size}, "
            f"{f'pictures of sizes {names_of(here)}' if here else 'square pictures'}; DataConfig.sizes is "
            f"{names_of(config.sizes) or 'empty'}: set it to {tuple(here)}"
        )
    return ranges


def make_sized_images(image_size: int, low_res_size: int | None, corpus_image_size: int) -> Step:
    """`image`, `original_size` → `x0`, `framing` [6] and, for super-resolution, `low_res`; float32.

    Args:
      image_size, low_res_size: nominal sides of x0 and low_res, in pixels; None for a base model.
      corpus_image_size: nominal side of the corpus.
    """

    def make(example: Example) -> Example:
        example = dict(example)
        image, original = example.pop("image"), tf.cast(example.pop("original_size"), tf.float32)
        stored = tf.shape(image)[:2]

        def at(side: int) -> tf.Tensor:
            return tf.image.resize(image, stored * side // corpus_image_size, method="bilinear", antialias=True)

        example["x0"] = to_unit_range(at(image_size))
        if low_res_size is not None:
            example["low_res"] = to_unit_range(at(low_res_size))
        size = tf.cast(stored, tf.float32)
        # As in `sizes.fitted`: scaled until it covers the size, and cut alike on both sides.
        cut = (original * tf.reduce_max(size / original) - size) / 2
        ratio = image_size / corpus_image_size
        example["framing"] = tf.concat([original * ratio, cut * ratio, size * ratio], axis=0)
        return example

    return make
