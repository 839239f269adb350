"""Ready-made corpora that need no download."""

import os
from collections.abc import Mapping
from typing import Any

from imagen_jax.data.builder import BuildConfig, BuildReport, build_corpus
from imagen_jax.data.shapes import BRIGHTNESSES, HELDOUT
from imagen_jax.data.shapes_canvas import CANVASES, canvas_size
from imagen_jax.data.sources import shapes_source

_FORM = ("image_format", "quality", "shard_size")


def build_shapes(
    out_dir: str | os.PathLike[str],
    sizes: Mapping[str, int],
    *,
    seed: int,
    vocab_size: int,
    image_size: int = 64,
    brightness: str = BRIGHTNESSES[0],
    wide_and_tall: bool = False,
    **options: Any,
) -> BuildReport:
    """Builds the drawn shapes corpus with its own vocabulary.

    corpus.json lists under extra.heldout the (colour, shape) pairs that no example shows, and tells the brightness.

    Args:
      out_dir: the corpus directory.
      sizes: examples of each split, e.g. {"train": 20_000, "val": 1_000}.
      seed: fixes every pixel and caption.
      vocab_size: most pieces of the SentencePiece vocabulary.
      image_size: side of the square drawings, in pixels.
      brightness: of the backgrounds, one of BRIGHTNESSES.
      wide_and_tall: some drawings are wide or tall; the corpus has a size for each canvas.
      options: image_format, quality and shard_size, as for `data.builder.BuildConfig`; num_workers, processes that
        draw, and overwrite, as for `data.builder.build_corpus`.
    """
    canvases = tuple(canvas_size(name, image_size) for name in CANVASES) if wide_and_tall else ()
    form = {name: options.pop(name) for name in _FORM if name in options}
    config = BuildConfig(name="shapes", image_size=image_size, sizes=canvases, seed=seed, vocab_size=vocab_size, **form)
    source = shapes_source(sizes, seed, image_size, brightness, wide_and_tall)
    extra = {"heldout": sorted(list(pair) for pair in HELDOUT), "brightness": brightness}
    return build_corpus(source, out_dir, config, extra=extra, **options)
