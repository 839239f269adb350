"""Sweeps of samplers, steps and thresholding in one stage over captions of drawn shapes.

Both draw the same prompts from the same noise under every setting and let the exact judge of shapes read the final
images, so that settings are compared and not noise.
"""

import dataclasses
import json
import os
from typing import Any

import numpy as np

from imagen_jax.checks import check_count
from imagen_jax.data.shapes import Scene, eval_prompts
from imagen_jax.diffusion.guidance import check_guidance_weight
from imagen_jax.diffusion.samplers import HeunSampler, Sampler
from imagen_jax.diffusion.schedules import EDMSchedule, Schedule
from imagen_jax.diffusion.thresholding import THRESHOLDINGS
from imagen_jax.diffusion.time_grids import EDMGrid, UniformGrid
from imagen_jax.errors import UserError
from imagen_jax.evals.alignment import DECIDING, judge_all
from imagen_jax.evals.shapes_judge import alignment
from imagen_jax.files import write_json
from imagen_jax.sampling.cascade import Cascade
from imagen_jax.sampling.images import from_uint8, sheet, write_png
from imagen_jax.stage.sampling_config import SamplingConfig
from imagen_jax.stage.spec import Stage
from imagen_jax.typing import Float, UInt8

SAMPLERS_FILE = "samplers.json"
# Of the first stage; another one's name follows an underscore. The picture is eval/ and that with .png.
THRESHOLDS_FILE = "thresholds.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompts:
    """Numbers of captions of each kind, and the seed of captions and noise."""

    num_single: int = 128
    num_two: int = 128
    num_heldout: int = 64
    seed: int = 1

    def __post_init__(self) -> None:
        for name in ("num_single", "num_two", "num_heldout"):
            check_count(f"Prompts.{name}", getattr(self, name))

    def draw_and_judge(
        self,
        cascade: Cascade,
        label: str,
        batch_size: int,
        low_res: Float[np.ndarray, "n h2 w2 3"] | None = None,
        **changes: Any,
    ) -> tuple[float, UInt8[np.ndarray, "n h w 3"]]:
        """Mean score over the deciding categories, and the final images.

        Args:
          cascade: its first stage is the one that is studied.
          label, batch_size, low_res: as in `Cascade.sample`.
          changes: to the first stage's settings.
        """

        def change(stage: Stage, sampling: SamplingConfig) -> SamplingConfig:
            return dataclasses.replace(sampling, **changes) if stage.name == cascade.names[0] else sampling

        captions, scenes = self.captions_and_scenes()
        # Stage by stage: the stages above are compiled once for all settings.
        configured = dataclasses.replace(cascade.configure(change), weights="offload")
        images = configured.sample(captions, seed=self.seed, low_res=low_res, batch_size=batch_size, label=label)[-1]
        scores = alignment(judge_all(images, scenes))
        return float(np.mean([scores[name] for name in DECIDING])), images

    def captions_and_scenes(self) -> tuple[list[str], list[Scene]]:
        """Captions to draw, and what to judge the images by."""
        prompts = eval_prompts(self.seed, self.num_single, self.num_two, 0, self.num_heldout)
        return [caption for caption, _ in prompts], [scene for _, scene in prompts]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """A sampler to be compared.

    Args:
      name: how the report calls it.
      sampler: its step.
      schedule: whose even times it is given, EDM's down to sigma_min; None: the stage's own, with the stage's times.
      num_steps: numbers of steps to try, rising.
    """

    name: str
    sampler: Sampler
    schedule: Schedule | None = None
    num_steps: tuple[int, ...] = (4, 8, 16, 25, 50)

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_steps", tuple(self.num_steps))
        if not self.num_steps or list(self.num_steps) != sorted(set(self.num_steps)):
            raise UserError(f"Candidate.num_steps ({self.num_steps}) must be rising numbers")

    def times(self) -> dict[str, Any]:
        """Settings of its times: the stage's times are of its own schedule."""
        if self.schedule is None:
            return {"schedule": None}
        grid = EDMGrid() if isinstance(self.schedule, EDMSchedule) else UniformGrid()
        return {"schedule": self.schedule, "times": grid}

    def calls(self, num_steps: int) -> int:
        """Network calls of so many steps."""
        return 2 * num_steps - 1 if isinstance(self.sampler, HeunSampler) else num_steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplerSweep:
    """Alignment and image error against network calls, for each sampler → RUN_DIR/samplers.json.

    The image error is the root mean square difference, in levels of 255, from what the first candidate draws from the
    same noise with its most steps: only deterministic samplers of the same flow come near it.

    Args:
      candidates: the first is the reference of the image error.
      guidance_weight: of the base stage.
      prompts: what is drawn.
      batch_size: images drawn at a time.
    """

    candidates: tuple[Candidate, ...]
    guidance_weight: float = 2.0
    prompts: Prompts = Prompts()
    batch_size: int = 64

    def __post_init__(self) -> None:
        object.__setattr__(self, "candidates", tuple(self.candidates))
        check_guidance_weight(self.guidance_weight)
        if not self.candidates or not all(isinstance(one, Candidate) for one in self.candidates):
            raise UserError(f"SamplerSweep.candidates ({self.candidates!r}) must be a tuple of @Candidate()")

    def evaluate(self, cascade: Cascade, run_dir: str) -> None:
        """Sweeps samplers and steps."""
        reference: np.ndarray | None = None
        found: dict[str, dict[str, list[float]]] = {}
        for candidate in self.candidates:
            rows: dict[str, list[float]] = {"calls": [], "alignment": [], "image_error": []}
            # From the most steps down, so that the reference is there first.
            for num_steps in reversed(candidate.num_steps):
                score, images = self.prompts.draw_and_judge(
                    cascade,
                    f"{candidate.name}, {num_steps} steps",
                    self.batch_size,
                    sampler=candidate.sampler,
                    num_steps=num_steps,
                    **candidate.times(),
                    guidance_weight=self.guidance_weight,
                )
                reference = images if reference is None else reference
                error = np.sqrt(np.mean(np.square(images.astype(np.float32) - reference)))
                rows["calls"].insert(0, candidate.calls(num_steps))
                rows["alignment"].insert(0, score)
                rows["image_error"].insert(0, float(error))
                print(f"{candidate.name:24s} {num_steps:4d} steps  alignment {score:.3f}  image error {error:.2f}")
            found[candidate.name] = rows
        captions, _ = self.prompts.captions_and_scenes()
        about = {"guidance_weight": self.guidance_weight, "num_prompts": len(captions)}
        result = {**about, "samplers": found, "config_hash": cascade.config_hash}
        write_json(os.path.join(run_dir, SAMPLERS_FILE), result)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ThresholdSweep:
    """Saturation and alignment by guidance weight under each rule → RUN_DIR/thresholds.json and eval/thresholds.png.

    A value is saturated at 0 or 255; the share is of all values of the final images. Of a stage above the first the
    files are thresholds_STAGE.json and eval/thresholds_STAGE.png, and what it draws from is drawn once, as configured.

    Args:
      stage: name of the stage whose weights and rules are tried; None: the first.
      guidance_weights: of that stage.
      prompts: what is drawn.
      num_shown: captions in the picture, one row for each rule and caption, one column for each weight.
      batch_size: images drawn at a time.
    """

    stage: str | None = None
    guidance_weights: tuple[float, ...] = (1.0, 3.0, 5.0, 8.0, 12.0)
    prompts: Prompts = Prompts()
    num_shown: int = 2
    batch_size: int = 64

    def __post_init__(self) -> None:
        object.__setattr__(self, "guidance_weights", tuple(float(w) for w in self.guidance_weights))
        for weight in self.guidance_weights:
            check_guidance_weight(weight)
        if not self.guidance_weights:
            raise UserError("ThresholdSweep.guidance_weights is empty; give some, e.g. (1.0, 5.0, 10.0)")

    def evaluate(self, cascade: Cascade, run_dir: str) -> None:
        """Sweeps rules and weights.

        Raises:
          UserError: the cascade has no such stage.
        """
        captions, _ = self.prompts.captions_and_scenes()
        studied = cascade.only(first=self.stage)
        name, low_res, file = studied.names[0], None, THRESHOLDS_FILE
        number = cascade.names.index(name)
        if number:
            below = cascade.only(last=cascade.names[number - 1])
            drawn = below.sample(captions, seed=self.prompts.seed, batch_size=self.batch_size, label=f"below {name}")
            low_res, file = from_uint8(drawn[-1]), THRESHOLDS_FILE.replace(".", f"_{name}.")
        chosen = np.linspace(0, len(captions) - 1, self.num_shown).astype(int)
        shown: dict[str, list[np.ndarray]] = {}
        found: dict[str, dict[str, list[float]]] = {}
        for rule in THRESHOLDINGS:
            found[rule], shown[rule] = {"alignment": [], "saturated": []}, []
            for weight in self.guidance_weights:
                score, images = self.prompts.draw_and_judge(
                    studied,
                    f"{name}, {rule} thresholding, w={weight:g}",
                    self.batch_size,
                    low_res,
                    thresholding=rule,
                    guidance_weight=weight,
                )
                saturated = float(np.mean((images == 0) | (images == 255)))
                found[rule]["alignment"].append(score)
                found[rule]["saturated"].append(saturated)
                shown[rule].append(images[chosen])
                print(f"{name:8s} {rule:8s} w={weight:<4g} alignment {score:.3f}  saturated {saturated:.4f}")
        result = {
            "stage": name,
            "guidance_weights": list(self.guidance_weights),
            "rules": found,
            "num_prompts": len(captions),
            "config_hash": cascade.config_hash,
        }
        write_json(os.path.join(run_dir, file), result)
        print(json.dumps(result, indent=1))
        pictures = [images[i] for i in range(self.num_shown) for rule in THRESHOLDINGS for images in shown[rule]]
        info = {"prompts": [captions[i] for i in chosen], "guidance_weights": list(self.guidance_weights)}
        picture = os.path.join(run_dir, "eval", file.replace(".json", ".png"))
        write_png(picture, sheet(pictures, len(self.guidance_weights)), info)
