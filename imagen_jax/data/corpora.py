"""Ready-made corpora that need no download."""

import os
from collections.abc import Mapping

from imagen_jax.data.builder import BuildConfig, BuildReport, build_corpus
from imagen_jax.data.shapes import BRIGHTNESSES, HELDOUT
from imagen_jax.data.sources import shapes_source


def build_shapes(
    out_dir: str | os.PathLike[str],
    sizes: Mapping[str, int],
    *,
    seed: int,
    vocab_size: int,
    image_size: int = 64,
    brightness: str = BRIGHTNESSES[0],
    num_workers: int = 0,
    overwrite: bool = False,
) -> BuildReport:
    """Builds the drawn shapes corpus with its own vocabulary.

    corpus.json lists under extra.heldout the (colour, shape) pairs that no example shows, and tells the brightness.

    Args:
      out_dir: the corpus directory.
      sizes: examples of each split, e.g. {"train": 20_000, "val": 1_000}.
      seed: fixes every pixel and caption.
      vocab_size: most pieces of the SentencePiece vocabulary.
      image_size: side of the drawings, in pixels.
      brightness: of the backgrounds, one of BRIGHTNESSES.
      num_workers: processes that draw; 0 draws in this one.
      overwrite: replace a corpus of other settings.
    """
    config = BuildConfig(name="shapes", image_size=image_size, seed=seed, vocab_size=vocab_size)
    source = shapes_source(sizes, seed, image_size, brightness)
    extra = {"heldout": sorted(list(pair) for pair in HELDOUT), "brightness": brightness}
    return build_corpus(source, out_dir, config, num_workers=num_workers, overwrite=overwrite, extra=extra)
