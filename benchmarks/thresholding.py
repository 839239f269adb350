"""What costs dynamic thresholding its alignment in the demo's base stage: the ground that it divides, or the objects?

    python -m benchmarks.thresholding runs/demo [--picture docs/images/thresholds_ground.png]

The rule clips x0_hat to s and divides the whole image by it. Here one part of each image is thresholded by the dynamic
rule and the rest by the static one, at every step of the same network, prompts and noise. A pixel is of the ground
where the chroma (max - min of R, G, B) of its clipped x0_hat is below `shapes_judge.MIN_CHROMA`, as the judge has it.

A ground is called grey where its brightness (median of max(R, G, B) over the ground) lies in GREY, between the dark and
the light grounds of `shapes_draw.background`: no training picture has one. A row takes about a minute on two CPU cores;
docs/evaluation.md has the table.
"""

import argparse
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.diffusion import thresholding
from imagen_jax.diffusion.thresholding import dynamic_threshold, static_threshold
from imagen_jax.evals.sampler_study import Prompts
from imagen_jax.evals.shapes_judge import MIN_CHROMA
from imagen_jax.sampling.cascade import Cascade
from imagen_jax.sampling.images import sheet, write_png

GREY = (0.42, 0.63)
NUM_SHOWN = 10


def _is_ground(x0_hat: jax.Array) -> jax.Array:
    clipped = static_threshold(x0_hat)
    return clipped.max(-1, keepdims=True) - clipped.min(-1, keepdims=True) < 2 * MIN_CHROMA


# By what is divided by s; what is not is clipped to [-1, 1].
RULES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "all (the dynamic rule)": dynamic_threshold,
    "the ground alone": lambda x: jnp.where(_is_ground(x), dynamic_threshold(x), static_threshold(x)),
    "the objects alone": lambda x: jnp.where(_is_ground(x), static_threshold(x), dynamic_threshold(x)),
    "nothing (the static rule)": static_threshold,
}


@contextlib.contextmanager
def in_place_of_none(rule: Callable[[jax.Array], jax.Array]) -> Iterator[None]:
    """A stage with `thresholding` "none" has `rule` instead; the stage above, which has another, is left as it is."""
    named = thresholding.threshold

    def threshold(x0_hat: jax.Array, name: str, *settings: Any) -> jax.Array:
        return rule(x0_hat) if name == "none" else named(x0_hat, name, *settings)

    with mock.patch.object(thresholding, "threshold", threshold):
        # The compiled programs know the rule by its name alone.
        jax.clear_caches()
        try:
            yield
        finally:
            jax.clear_caches()


def share_grey(images: np.ndarray) -> float:
    """Of uint8 images [n, h, w, 3], those whose ground has a brightness that the corpus does not draw."""
    values = images.astype(np.float32) / 255
    high = values.max(-1)
    ground = high - values.min(-1) < MIN_CHROMA
    pairs = zip(high, ground, strict=True)
    brightness = np.asarray([np.median(one[where]) if where.any() else 0.0 for one, where in pairs])
    return float(np.mean((brightness > GREY[0]) & (brightness < GREY[1])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run_dir", help="of a cascade trained on the corpus of shapes")
    parser.add_argument("--weights", type=float, nargs="+", default=[5.0, 8.0], help="of the first stage")
    parser.add_argument(
        "--picture", type=Path, help="where to draw some images of the first weight, a row for each rule"
    )
    arguments = parser.parse_args()

    prompts = Prompts(seed=2)
    captions, _ = prompts.captions_and_scenes()
    cascade = Cascade.load(arguments.run_dir)
    shown: list[np.ndarray] = []
    for weight in arguments.weights:
        for name, rule in RULES.items():
            with in_place_of_none(rule):
                score, images = prompts.draw_and_judge(
                    cascade, f"w={weight:g}, divides {name}", 80, thresholding="none", guidance_weight=weight
                )
            grey = share_grey(images)
            print(f"w={weight:g}  divides {name:26s} alignment {score:.3f}  grey grounds {grey:.3f}", flush=True)
            if weight == arguments.weights[0]:
                shown += list(images[np.linspace(0, len(captions) - 1, NUM_SHOWN).astype(int)])
    if arguments.picture is not None:
        write_png(str(arguments.picture), sheet(shown, NUM_SHOWN), {})


if __name__ == "__main__":
    main()
