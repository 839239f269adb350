"""The "shapes" corpus: procedurally drawn pictures of one to four objects, with English captions.

A caption tells colour, shape, size, count and spatial relation, so a judge (`evals.shapes_judge`) can read
from a sample whether a model drew what it was asked for. Example i of a split is a pure function of
(seed, split, i).
"""

import itertools
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import UInt8

from imagen_jax.data.shapes_canvas import pick_canvas
from imagen_jax.data.shapes_captions import caption
from imagen_jax.data.shapes_draw import BRIGHTNESSES, draw
from imagen_jax.data.shapes_scene import (
    COLOURS,
    HELDOUT,
    HUES,
    KINDS,
    RELATIONS,
    SHAPES,
    SIZES,
    Object,
    Scene,
    sample_scene,
)
from imagen_jax.errors import UserError

__all__ = [
    "BRIGHTNESSES", "COLOURS", "HELDOUT", "HUES", "KINDS", "RELATIONS", "SHAPES", "SIZES",
    "Object", "Scene", "caption", "draw", "eval_prompts", "examples", "sample_scene",
]  # fmt: skip


def _stream(seed: int, purpose: str, index: int) -> np.random.Generator:
    return np.random.default_rng((seed, zlib.crc32(purpose.encode()), index))


def examples(
    seed: int,
    split: str,
    num_examples: int,
    *,
    start: int = 0,
    stop: int | None = None,
    image_size: int = 64,
    brightness: str = BRIGHTNESSES[0],
    wide_and_tall: bool = False,
) -> Iterator[tuple[str, UInt8[np.ndarray, "h w 3"], str, Scene]]:
    """Yields (key, image, caption, scene) of a split; no pair of HELDOUT occurs.

    Args:
      seed: non-negative; with `split` and the index it fixes every pixel.
      split: name of the split, such as "train" or "val".
      num_examples: size of the whole split.
      start, stop: the half-open range to draw, within [0, num_examples]; by default all of it. Ranges drawn
        apart join to the same examples, so workers may share a split.
      image_size: side of a square picture, in pixels.
      brightness: of the backgrounds, one of BRIGHTNESSES.
      wide_and_tall: draw on the canvases of `shapes_canvas`; else all pictures are square.

    Raises:
      UserError: the range does not lie within the split, or there is no such brightness.
    """
    if brightness not in BRIGHTNESSES:
        raise UserError(f"brightness ({brightness!r}) must be one of {', '.join(BRIGHTNESSES)}")
    stop = num_examples if stop is None else stop
    if not 0 <= start <= stop <= num_examples:
        raise UserError(
            f"range [{start}, {stop}) of split {split!r} is outside [0, {num_examples}); "
            "choose 0 <= start <= stop <= num_examples"
        )
    for index in range(start, stop):
        rng = _stream(seed, split, index)
        scene = sample_scene(rng)
        text = caption(scene, rng)
        # A stream of its own: the same scenes and captions as of square pictures.
        canvas = pick_canvas(scene, _stream(seed, f"{split}/canvas", index)) if wide_and_tall else "square"
        yield f"shapes-{seed}-{split}-{index:07d}", draw(scene, rng, image_size, brightness, canvas), text, scene


def eval_prompts(
    seed: int, num_single: int, num_two: int, num_count: int, num_heldout: int, relations: Sequence[str] = RELATIONS
) -> list[tuple[str, Scene]]:
    """Captions to sample from, worded like the training captions, with the scenes to judge them by.

    Args:
      seed: fixes the prompts; they use another stream than any split.
      num_single, num_two, num_count: how many of each kind, in this order.
      num_heldout: how many single objects of a pair in HELDOUT, last.
      relations: those that scenes of two objects may have; the others are passed over.
    """
    wanted = (("single", num_single, False), ("two", num_two, False), ("count", num_count, False),
              ("single", num_heldout, True))  # fmt: skip
    prompts: list[tuple[str, Scene]] = []
    for kind, number, heldout in wanted:
        drawn = ((_stream(seed, f"prompts/{kind}/{heldout}", index), kind, heldout) for index in itertools.count())
        found = ((rng, sample_scene(rng, kind, heldout)) for rng, kind, heldout in drawn)
        kept = ((caption(scene, rng), scene) for rng, scene in found if scene.relation in (None, *relations))
        prompts += itertools.islice(kept, number)
    return prompts
