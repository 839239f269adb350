"""Scores of the images of one point: the exact judge of shapes, FID against a reference, CLIP score."""

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from imagen_jax.errors import UserError
from imagen_jax.evals.drawn_sizes import enlarged
from imagen_jax.evals.features.clip import CLIPExtractor
from imagen_jax.evals.features.inception import InceptionExtractor
from imagen_jax.evals.features.loading import load_extractor
from imagen_jax.evals.image_scores import ImageFolder
from imagen_jax.evals.metrics import FeatureStatistics, frechet_distance
from imagen_jax.evals.scoring import FEW, METRICS, gather
from imagen_jax.evals.shapes_judge import Verdict, alignment, category, judge
from imagen_jax.evals.sweeps.prompts import PromptList
from imagen_jax.files import as_path
from imagen_jax.image_files import decode_image

# Side of a picture that the judge reads best.
_JUDGED_SIDE = 64
_BATCH = 64
_NUM_SHOWN = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measures:
    """Networks that score images; what is scored without any depends on the prompts.

    Args:
      inception_path: Inception's weights, for FID where the prompts have a reference; None: no FID.
      clip_path: folder of a CLIP model, for CLIP score; None: none.
    """

    inception_path: str | None = None
    clip_path: str | None = None

    def load(self) -> "Scorer":
        """Loads the networks.

        Raises:
          UserError: a file is missing, damaged or of another network.
        """
        inception = None if self.inception_path is None else load_extractor(self.inception_path)
        clip = None if self.clip_path is None else load_extractor(self.clip_path)
        if inception is not None and not isinstance(inception, InceptionExtractor):
            raise UserError(f"Measures.inception_path={self.inception_path} is no Inception file; see docs/features.md")
        if clip is not None and not isinstance(clip, CLIPExtractor):
            raise UserError(f"Measures.clip_path={self.clip_path} is no CLIP folder; see docs/features.md")
        return Scorer(inception, clip)


@dataclasses.dataclass(frozen=True)
class Scorer:
    """The loaded networks; see `Measures`."""

    inception: InceptionExtractor | None
    clip: CLIPExtractor | None

    def facts(self) -> dict[str, str]:
        """Fingerprints of the networks, by their kind."""
        found = {"inception": self.inception, "clip": self.clip}
        return {name: one.fingerprint for name, one in found.items() if one is not None}

    def score(self, folder: str, names: Sequence[str], prompts: PromptList, cache: str) -> dict[str, Any]:
        """Scores the images of a point.

        Args:
          folder: of the images.
          names: of their files, in the order of the prompts.
          prompts: what they were drawn from.
          cache: folder for the reference's statistics.

        Returns:
          "scores" by name; "warnings"; "samples": the best and worst images of each category by a score of each image,
          with captions, where there is such a score.
        """
        scores: dict[str, float] = {}
        warnings: list[str] = []
        each: np.ndarray | None = None
        by: str = ""
        if prompts.protocol is not None and self.inception is not None:
            reference = self._reference(prompts, cache)
            found = self._statistics(folder, names, prompts, "features")
            scores["fid"] = frechet_distance(found, reference)
            warnings += [
                f"{one.num_examples} {name} images: FID is biased upwards below {FEW}"
                for name, one in (("generated", found), ("reference", reference))
                if one.num_examples < FEW
            ]
        if self.clip is not None:
            each, by = _clip_scores(self.clip, folder, names, prompts), "clip_score"
            scores["clip_score"] = float(np.mean(each, dtype=np.float64))
        if prompts.scenes is not None:
            shares, each, by = *_judged(folder, names, prompts), "matches"
            scores |= shares
        samples = [] if each is None else _best_and_worst(each, names, prompts)
        return {"scores": scores, "warnings": warnings, "samples": samples, "samples_by": by}

    def _reference(self, prompts: PromptList, cache: str) -> FeatureStatistics:
        assert prompts.protocol is not None and self.inception is not None
        facts = [self.inception.fingerprint, *prompts.protocol.preparation, *prompts.reference_names]
        digest = hashlib.sha256("\n".join(map(str, facts)).encode()).hexdigest()[:16]
        path = os.path.join(cache, f"reference-{digest}.npz")
        if not as_path(path).is_file():
            self._statistics(prompts.reference_dir, prompts.reference_names, prompts, "reference").save(path)
        # Read in every case: rounding is then the same for whoever scores.
        return FeatureStatistics.load(path)

    def _statistics(self, folder: str, names: Sequence[str], prompts: PromptList, label: str) -> FeatureStatistics:
        assert prompts.protocol is not None
        images = ImageFolder(folder, names)
        made = gather(images, ("fid",), (self.inception,), protocol=prompts.protocol, label=label)
        return made.statistics[METRICS["fid"].key]


def _pixels(folder: str, names: Sequence[str]) -> np.ndarray:
    return np.stack([np.asarray(decode_image(os.path.join(folder, name))) for name in names])


def _clip_scores(clip: CLIPExtractor, folder: str, names: Sequence[str], prompts: PromptList) -> np.ndarray:
    parts = [
        clip.score(_pixels(folder, names[start : start + _BATCH]), prompts.prompts[start : start + _BATCH])
        for start in range(0, len(names), _BATCH)
    ]
    return np.concatenate(parts)


def _judged(folder: str, names: Sequence[str], prompts: PromptList) -> tuple[dict[str, float], np.ndarray]:
    assert prompts.scenes is not None
    verdicts: dict[str, list[Verdict]] = {}
    each = []
    for name, scene in zip(names, prompts.scenes, strict=True):
        image = _pixels(folder, [name])
        (image,) = enlarged(image, max(1, _JUDGED_SIDE // image.shape[1]))
        verdict = judge(image, scene)
        verdicts.setdefault(category(scene), []).append(verdict)
        each.append(float(verdict.matches))
    return {"matches": float(np.mean(each)), **alignment(verdicts)}, np.asarray(each)


def _best_and_worst(each: np.ndarray, names: Sequence[str], prompts: PromptList) -> list[dict[str, Any]]:
    samples = []
    for kind in sorted(set(prompts.categories)):
        rows = [row for row, one in enumerate(prompts.categories) if one == kind]
        # Ties by number, so that every run shows the same.
        ordered = sorted(rows, key=lambda row: (-float(f"{each[row]:.6g}"), row))
        most = min(_NUM_SHOWN, len(ordered) // 2)
        for end, chosen in (("best", ordered[:most]), ("worst", ordered[len(ordered) - most :])):
            for row in chosen:
                score = float(f"{each[row]:.6g}")
                caption = prompts.prompts[row]
                samples.append({"category": kind, "end": end, "image": names[row], "caption": caption, "score": score})
    return samples
