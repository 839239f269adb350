"""Alignment: does the cascade draw what the caption says, at each guidance weight?

Prompts are worded like the training captions of the shapes corpus; an exact judge reads the final images. The same
seed is used at every weight, so that the sweep compares weights and not noise. Pictures drawn from the empty
prompt are judged by the scenes of the single-object prompts: they must score near chance, which shows that the
judge does not flatter and that the alignment comes from the text.
"""

import collections
import dataclasses
import json
import os

import numpy as np

from imagen_jax.checks import check_count
from imagen_jax.data.shapes import Scene, eval_prompts
from imagen_jax.diffusion.guidance import check_guidance_weight
from imagen_jax.errors import UserError
from imagen_jax.evals.shapes_judge import Verdict, alignment, category, judge
from imagen_jax.files import write_json
from imagen_jax.sampling.cascade import Cascade
from imagen_jax.sampling.images import sheet, write_png
from imagen_jax.stage.sampling_config import SamplingConfig
from imagen_jax.stage.spec import Stage
from imagen_jax.typing import UInt8
from imagen_jax.versions import code_version

NUM_SHOWN = 16
# What the best weight is chosen by: a weight that serves only what was seen in training is not the best.
DECIDING = ("single_both", "two_colour_binding", "two_relation", "heldout_both")


def judge_all(images: UInt8[np.ndarray, "b h w 3"], scenes: list[Scene]) -> dict[str, list[Verdict]]:
    """The verdict of every image on its scene, by category."""
    verdicts: dict[str, list[Verdict]] = collections.defaultdict(list)
    for image, scene in zip(images, scenes, strict=True):
        verdicts[category(scene)].append(judge(image, scene))
    return dict(verdicts)


def chance_of_single(scenes: list[Scene]) -> float:
    """Rate at which two scenes of the list, drawn independently, agree in colour and shape."""
    counts = collections.Counter(scene.objects[0].pair for scene in scenes)
    return sum((n / len(scenes)) ** 2 for n in counts.values())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Alignment:
    """A sweep of guidance weights over judged prompts.

    Args:
      guidance_weights: of the base stage, each >= 0; the other stages keep their own.
      num_single, num_two, num_count, num_heldout: prompts of each kind.
      seed: of prompts and noise.
      batch_size: images drawn at a time.
    """

    guidance_weights: tuple[float, ...] = (1.0, 2.0, 4.0)
    num_single: int = 128
    num_two: int = 128
    num_count: int = 32
    num_heldout: int = 64
    seed: int = 1
    batch_size: int = 64

    def __post_init__(self) -> None:
        object.__setattr__(self, "guidance_weights", tuple(float(w) for w in self.guidance_weights))
        if not self.guidance_weights:
            raise UserError("Alignment.guidance_weights is empty; give at least one weight, e.g. (1.0, 3.0)")
        for weight in self.guidance_weights:
            check_guidance_weight(weight)
        for name in ("num_single", "num_two", "batch_size"):
            check_count(f"Alignment.{name}", getattr(self, name))

    def evaluate(self, cascade: Cascade, run_dir: str) -> None:
        """Sweeps the weights; writes RUN_DIR/eval.json and RUN_DIR/eval/*.png."""
        prompts = eval_prompts(self.seed, self.num_single, self.num_two, self.num_count, self.num_heldout)
        captions, scenes = [caption for caption, _ in prompts], [scene for _, scene in prompts]
        scores: dict[str, dict[str, float]] = {}
        for weight in self.guidance_weights:
            images = self._draw(cascade, captions, weight, f"eval w={weight:g}")
            scores[f"{weight:g}"] = alignment(judge_all(images, scenes))
            self._write_grid(run_dir, f"w_{weight:g}", images, captions, weight)
        singles = [scene for scene in scenes if category(scene) == "single"]
        empty = [""] * len(singles)
        unconditional = self._draw(cascade, empty, 1.0, "eval unconditional")
        self._write_grid(run_dir, "unconditional", unconditional, empty, 1.0)
        verdicts = [judge(image, scene) for image, scene in zip(unconditional, singles, strict=True)]
        deciding = [name for name in DECIDING if name in scores[f"{self.guidance_weights[0]:g}"]]
        mean_of = {w: float(np.mean([scores[f"{w:g}"][name] for name in deciding])) for w in self.guidance_weights}
        result = {
            "guidance_weights": list(self.guidance_weights),
            "alignment": scores,
            "best_guidance_weight": max(mean_of, key=lambda w: mean_of[w]),
            "unconditional_both": float(np.mean([verdict.both for verdict in verdicts])),
            "chance_both": chance_of_single(singles),
            "num_prompts": len(prompts),
            "config_hash": cascade.config_hash,
            "version": code_version(),
        }
        write_json(os.path.join(run_dir, "eval.json"), result)
        print(json.dumps(result, indent=1))

    def _draw(self, cascade: Cascade, captions: list[str], weight: float, label: str) -> UInt8[np.ndarray, "b h w 3"]:
        def change(stage: Stage, sampling: SamplingConfig) -> SamplingConfig:
            return sampling if stage.low_res_size else dataclasses.replace(sampling, guidance_weight=weight)

        # Stage by stage: what does not change from weight to weight is compiled once.
        configured = dataclasses.replace(cascade.configure(change), weights="offload")
        return configured.sample(captions, seed=self.seed, batch_size=self.batch_size, label=label)[-1]

    def _write_grid(
        self,
        run_dir: str,
        name: str,
        images: UInt8[np.ndarray, "b h w 3"],
        captions: list[str],
        weight: float,
    ) -> None:
        # Evenly spread over the list, so that every kind of prompt is shown.
        chosen = np.linspace(0, len(captions) - 1, min(NUM_SHOWN, len(captions))).astype(int)
        info = {"prompts": [captions[i] for i in chosen], "guidance_weight": weight, "seed": self.seed}
        write_png(os.path.join(run_dir, "eval", f"{name}.png"), sheet([images[i] for i in chosen], 8), info)
