"""Ready-made corpora that need no download."""

import os

from imagen_jax.data.builder import BuildConfig, BuildReport, build_corpus
from imagen_jax.data.shapes import BRIGHTNESSES, HELDOUT
from imagen_jax.data.sources import shapes_source


def build_shapes(
    out_dir: str | os.PathLike[str],
    *,
    num_train: int,
    num_val: int,
    seed: int,
    vocab_size: int,
    image_size: int = 64,
    brightness: str = BRIGHTNESSES[0],
    num_workers: int = 0,
    overwrite: bool = False,
) -> BuildReport:
    """Builds the drawn shapes corpus with splits "train" and "val" and its own vocabulary.

    corpus.json lists under extra.heldout the (colour, shape) pairs that no example shows, and tells the brightness.

    Args:
      out_dir: the corpus directory.
      num_train, num_val: examples of the two splits.
      seed: fixes every pixel and caption.
      vocab_size: most pieces of the SentencePiece vocabulary.
      image_size: side of the drawings, in pixels.
      brightness: of the backgrounds, one of BRIGHTNESSES.
      num_workers: processes that draw; 0 draws in this one.
      overwrite: replace a corpus of other settings.
    """
    config = BuildConfig(name="shapes", image_size=image_size, seed=seed, vocab_size=vocab_size)
    source = shapes_source({"train": num_train, "val": num_val}, seed, image_size, brightness)
    extra = {"heldout": sorted(list(pair) for pair in HELDOUT), "brightness": brightness}
    return build_corpus(source, out_dir, config, num_workers=num_workers, overwrite=overwrite, extra=extra)
