"""Wide and tall pictures against square ones: does a cascade draw them as well as their captions say?

Prompts are those that a canvas has room for (`data.shapes_canvas`). Each is drawn on the canvas and, from the same
seed, as a square; both hold objects of the same sizes as far apart, so the two shares differ by the shape of the
picture alone. An exact judge reads them (`evals.shapes_judge`), enlarged where they are smaller than it can read.
"""

import dataclasses
import json
import os

import numpy as np
from PIL import Image

from imagen_jax.checks import check_count
from imagen_jax.data.shapes import Scene, eval_prompts
from imagen_jax.data.shapes_canvas import CANVASES, RELATIONS_ON, canvas_size
from imagen_jax.diffusion.guidance import check_guidance_weight
from imagen_jax.evals.alignment import judge_all
from imagen_jax.evals.shapes_judge import alignment
from imagen_jax.files import write_json
from imagen_jax.sampling.cascade import Cascade
from imagen_jax.sampling.images import sheet, write_png
from imagen_jax.typing import UInt8

# Side of a square that the judge reads best.
_JUDGED_SIDE = 64
_NUM_SHOWN = 16


def scores(images: UInt8[np.ndarray, "b h w 3"], scenes: list[Scene]) -> dict[str, float]:
    """Shares of the pictures that show what `alignment` names, and "matches", of those that show all of it."""
    verdicts = judge_all(images, scenes)
    matches = [verdict.matches for of_kind in verdicts.values() for verdict in of_kind]
    return {"matches": float(np.mean(matches)), **alignment(verdicts)}


def enlarged(images: UInt8[np.ndarray, "b h w 3"], factor: int) -> UInt8[np.ndarray, "b h2 w2 3"]:
    """Pictures enlarged by a whole factor, by Lanczos' filter."""
    if factor == 1:
        return images
    size = (images.shape[2] * factor, images.shape[1] * factor)
    resized = [Image.fromarray(image).resize(size, Image.Resampling.LANCZOS) for image in images]
    return np.stack([np.asarray(image) for image in resized])


@dataclasses.dataclass(frozen=True, kw_only=True)
class DrawnSizes:
    """Compares pictures of each canvas with squares.

    Args:
      guidance_weight: of every stage; None: as configured.
      num_single, num_two, num_heldout: prompts of each kind, for each canvas.
      seed: of prompts and noise.
      batch_size: images drawn at a time.
    """

    guidance_weight: float | None = None
    num_single: int = 128
    num_two: int = 128
    num_heldout: int = 64
    seed: int = 1
    batch_size: int = 64

    def __post_init__(self) -> None:
        if self.guidance_weight is not None:
            check_guidance_weight(self.guidance_weight)
        for name in ("num_single", "num_two", "batch_size"):
            check_count(f"DrawnSizes.{name}", getattr(self, name))

    def evaluate(self, cascade: Cascade, run_dir: str) -> None:
        """Writes RUN_DIR/sizes.json and RUN_DIR/sizes/*.png."""
        if self.guidance_weight is not None:
            weight = self.guidance_weight
            cascade = cascade.configure(lambda _, sampling: dataclasses.replace(sampling, guidance_weight=weight))
        side = cascade.stages[-1].stage.draw_size
        found = {}
        for canvas in CANVASES:
            if canvas == "square":
                continue
            prompts = eval_prompts(self.seed, self.num_single, self.num_two, 0, self.num_heldout, RELATIONS_ON[canvas])
            scenes = [scene for _, scene in prompts]
            found[canvas] = {"size": canvas_size(canvas, side), "num_prompts": len(prompts)}
            for shape in (canvas, "square"):
                images = cascade.sample(
                    [caption for caption, _ in prompts],
                    seed=self.seed,
                    size=canvas_size(shape, side),
                    batch_size=self.batch_size,
                    label=f"eval {canvas} as {shape}",
                )[-1]
                images = enlarged(images, max(1, _JUDGED_SIDE // side))
                found[canvas]["square" if shape == "square" else "at_size"] = scores(images, scenes)
                chosen = np.linspace(0, len(images) - 1, min(_NUM_SHOWN, len(images))).astype(int)
                path = os.path.join(run_dir, "sizes", f"{canvas}_as_{shape}.png")
                info = {"prompts": [prompts[i][0] for i in chosen], "seed": self.seed}
                write_png(path, sheet([images[i] for i in chosen], 8), info)
        write_json(os.path.join(run_dir, "sizes.json"), {**found, "config_hash": cascade.config_hash})
        print(json.dumps(found, indent=1))
