"""Scores of the images of one point: any metric of `scoring` by its name, and the exact judge of shapes."""

import dataclasses
import hashlib
import io
import os
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from imagen_jax.errors import UserError
from imagen_jax.evals.drawn_sizes import enlarged
from imagen_jax.evals.image_scores import ImageFolder
from imagen_jax.evals.metrics import FeatureStatistics
from imagen_jax.evals.networks import load_networks
from imagen_jax.evals.protocols import PROTOCOLS, Protocol
from imagen_jax.evals.scoring import METRICS, SCORES, Gathered, figures, find_metrics, gather, too_few
from imagen_jax.evals.shapes_judge import Verdict, alignment, category, judge
from imagen_jax.evals.sweeps.prompts import PromptList
from imagen_jax.files import as_path, files_under, locked, write_bytes

_KINDS = ("inception", "clip", "dinov2")
# Name beside those of metrics: the judge's shares.
_JUDGE = "shapes"
# Side of a picture that the judge reads best.
_JUDGED_SIDE = 64
_NUM_SHOWN = 4
_DAY_S = 86400.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measures:
    """Metrics of the images of each point; the exact judge reads drawn shapes in every case.

    Args:
      metrics: names of `scoring.METRICS`. Those that compare with a reference need prompts that have one.
      inception_path: Inception file, see `load_extractor`; None where no metric takes its features.
      clip_path, dinov2_path: folders of these networks, for the metrics that take their features.
    """

    metrics: tuple[str, ...] = ()
    inception_path: str | None = None
    clip_path: str | None = None
    dinov2_path: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "metrics", tuple(dict.fromkeys(self.metrics)))
        fields = self._fields()
        if not self.metrics:
            for field, path in fields.values():
                if path is not None:
                    raise UserError(f"{field} ({path}) is given, and Measures.metrics is empty; name metrics in it")
            return
        for name, metric in find_metrics(self.metrics).items():
            field, path = fields[metric.kind]
            if path is None:
                raise UserError(f"Measures.metrics names {name!r}, and {field} is not given; name the weights there")

    def _fields(self) -> dict[str, tuple[str, str | None]]:
        return {kind: (f"Measures.{kind}_path", getattr(self, f"{kind}_path")) for kind in _KINDS}

    def check(self, prompts: PromptList) -> None:
        """Refuses prompts that lack what a metric compares with.

        Raises:
          UserError: a metric compares with a reference, and the prompts have none.
        """
        paired = [name for name in self.metrics if METRICS[name].paired]
        if paired and prompts.protocol is None:
            raise UserError(
                f"metric {paired[0]!r} compares with a reference, and these prompts have none; leave it out of "
                "Measures.metrics, or draw CocoPrompts"
            )

    def load(self) -> "Scorer":
        """Loads the networks.

        Raises:
          UserError: a file is missing, damaged or of another network.
        """
        return Scorer(self.metrics, load_networks(self.metrics, self._fields()) if self.metrics else [])


class Scorer:
    """Metrics and their loaded networks; see `Measures`.

    Args:
      metrics: names.
      networks: one of each kind that they need.
    """

    def __init__(self, metrics: Sequence[str], networks: Sequence[Any]):
        self._metrics = tuple(metrics)
        self._networks = {one.kind: one for one in networks}
        self._parts: dict[str, FeatureStatistics | np.ndarray] = {}

    def facts(self) -> dict[str, str]:
        """Fingerprints of the networks, by their kind."""
        return {kind: one.fingerprint for kind, one in self._networks.items()}

    def keys(self, prompts: PromptList) -> dict[str, str]:
        """Names of all that is scored, each with the digest of what its figures depend on besides the images."""
        reference = _reference_facts(prompts)
        keys = {name: self._digest(name, prompts, reference) for name in self._metrics}
        return keys | ({_JUDGE: "exact"} if prompts.scenes is not None else {})

    def _digest(self, name: str, prompts: PromptList, reference: Sequence[Any]) -> str:
        metric = METRICS[name]
        facts = [self._networks[metric.kind].fingerprint, metric.layer, metric.streams]
        facts += [*_protocol(prompts).preparation, *(reference if metric.paired else ())]
        return hashlib.sha256("\n".join(map(str, facts)).encode()).hexdigest()[:16]

    def score(
        self, folder: str, names: Sequence[str], prompts: PromptList, wanted: Sequence[str], cache: str
    ) -> dict[str, dict[str, Any]]:
        """Scores the images of a point.

        Args:
          folder: of the images.
          names: of their files, in the order of the prompts.
          prompts: what they were drawn from.
          wanted: some of the names of `keys`.
          cache: folder that keeps the reference's features.

        Returns:
          By name: "scores" by figure; "warnings"; "samples": the best and worst images of each category by a score of
          each image, with captions, where there is such a score; "samples_by": that score, or "".
        """
        found = {}
        metrics = [name for name in wanted if name != _JUDGE]
        if metrics:
            ours = gather(
                ImageFolder(folder, names),
                metrics,
                list(self._networks.values()),
                captions=prompts.prompts,
                protocol=_protocol(prompts),
                label="features",
            )
            theirs = self._reference(metrics, prompts, cache)
            for name in metrics:
                found[name] = _scored(figures((name,), ours, theirs), too_few((name,), ours, theirs))
                if name == "clip_score":
                    each = ours.features["clip", SCORES][:, 0]
                    found[name] |= {"samples": _best_and_worst(each, names, prompts), "samples_by": name}
        if _JUDGE in wanted:
            shares, each = _judged(folder, names, prompts)
            found[_JUDGE] = _scored(shares, ())
            found[_JUDGE] |= {"samples": _best_and_worst(each, names, prompts), "samples_by": "matches"}
        return found

    def _reference(self, metrics: Sequence[str], prompts: PromptList, cache: str) -> Gathered | None:
        """Features of the reference, as far as metrics need them: gathered by one process, read by all."""
        facts = _reference_facts(prompts)
        paths = {
            name: os.path.join(cache, f"reference-{self._digest(name, prompts, facts)}.npz")
            for name in metrics
            if METRICS[name].paired
        }
        if not paths:
            return None
        with locked(os.path.join(cache, "reference.lock"), wait_s=_DAY_S):
            lacking = [name for name, path in paths.items() if path not in self._parts and not as_path(path).is_file()]
            if lacking:
                images = ImageFolder(prompts.reference_dir, prompts.reference_names)
                networks = list(self._networks.values())
                made = gather(images, lacking, networks, protocol=_protocol(prompts), label="reference")
                for name in lacking:
                    _save(paths[name], made, METRICS[name].key, METRICS[name].streams)
        theirs = Gathered(len(prompts.reference_names))
        for name, path in paths.items():
            metric = METRICS[name]
            # Read even by the process that wrote it: the rounding is then the same for all.
            if path not in self._parts:
                self._parts[path] = FeatureStatistics.load(path) if metric.streams else _load_features(path)
            part = self._parts[path]
            if isinstance(part, FeatureStatistics):
                theirs.statistics[metric.key], theirs.num_images = part, part.num_examples
            else:
                theirs.features[metric.key], theirs.num_images = part, len(part)
        return theirs


def combined(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Scores of one point from those of each name; samples are by the judge where it is among them."""
    found = _scored({}, ())
    for part in parts:
        found["scores"] |= part["scores"]
        found["warnings"] += [one for one in part["warnings"] if one not in found["warnings"]]
        if part["samples"]:
            found |= {name: part[name] for name in ("samples", "samples_by")}
    return found


def _scored(scores: dict[str, float], warnings: Sequence[str]) -> dict[str, Any]:
    return {"scores": scores, "warnings": list(warnings), "samples": [], "samples_by": ""}


def _protocol(prompts: PromptList) -> Protocol:
    """The way of images to the networks; as they are where the prompts have no reference."""
    return prompts.protocol or PROTOCOLS["torch_fidelity"]


def _reference_facts(prompts: PromptList) -> list[Any]:
    if prompts.protocol is None:
        return []
    sizes = files_under(prompts.reference_dir)
    return [(name, sizes.get(name)) for name in prompts.reference_names]


def _save(path: str, made: Gathered, key: tuple[str, str], streams: bool) -> None:
    if streams:
        made.statistics[key].save(path)
    else:
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, features=made.features[key])
        write_bytes(path, buffer.getvalue())


def _load_features(path: str) -> np.ndarray:
    try:
        with np.load(io.BytesIO(as_path(path).read_bytes()), allow_pickle=False) as found:
            return np.asarray(found["features"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}); remove it: it is made again") from error


def _judged(folder: str, names: Sequence[str], prompts: PromptList) -> tuple[dict[str, float], np.ndarray]:
    assert prompts.scenes is not None
    verdicts: dict[str, list[Verdict]] = {}
    each = []
    for image, scene in zip(ImageFolder(folder, names), prompts.scenes, strict=True):
        (image,) = enlarged(image[None], max(1, _JUDGED_SIDE // image.shape[0]))
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
