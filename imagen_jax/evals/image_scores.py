"""Scores of a folder of images against a folder of references, under one protocol or all → `image_scores.json`.

One set of images has as many FIDs as there are protocols; the table shows them side by side, and their spread.
"""

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import jax
import numpy as np

from imagen_jax.checks import check_count, check_path
from imagen_jax.errors import UserError, listed
from imagen_jax.evals.metrics import FeatureStatistics
from imagen_jax.evals.metrics.statistics import check_same
from imagen_jax.evals.networks import load_networks
from imagen_jax.evals.protocols import ALL, Protocol, find_protocols
from imagen_jax.evals.scoring import Gathered, figures, find_metrics, gather, identity_of, too_few
from imagen_jax.files import files_under, make_dirs, read_json, size_of, write_json
from imagen_jax.image_files import ImageError, decode_image
from imagen_jax.versions import code_version

FILE = "image_scores.json"
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MadeBy:
    """Maker of a file of mu and sigma alone, such as pytorch-fid's and clean-fid's.

    Args:
      protocol: name of the protocol whose resizes it was made with; its weights were those of `weights_path`.
      num_images: of the reference set.
    """

    protocol: str
    num_images: int

    def __post_init__(self) -> None:
        find_protocols((self.protocol,))
        check_count("MadeBy.num_images", self.num_images, 2)


class ImageFolder:
    """Images of a folder, each read when it is asked for; upright RGB, whatever their files hold.

    Args:
      folder: local or in a bucket.
      names: of the files; None: every image in it, in folders within it too.

    Raises:
      UserError: there is none.
    """

    def __init__(self, folder: str, names: Sequence[str] | None = None):
        self.folder = folder
        found = names if names is not None else files_under(folder)
        self.names = [name for name in found if name.lower().endswith(ENDINGS)]
        if not self.names:
            raise UserError(f"no images in {folder}; expected files that end in {', '.join(ENDINGS)}")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, number: int) -> np.ndarray:
        path = os.path.join(self.folder, self.names[number])
        try:
            return np.asarray(decode_image(path))
        except ImageError as error:
            raise UserError(f"{path} is no image that can be read ({error}); remove it or give it again") from error

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[number] for number in range(len(self)))

    def chosen(self, most: int, seed: int) -> "ImageFolder":
        """All images, or `most` of them in the order of their names' digests with the seed."""
        if not most or len(self.names) <= most:
            return self

        def digest(name: str) -> str:
            return hashlib.sha256(f"{seed} {name}".encode()).hexdigest()

        return ImageFolder(self.folder, sorted(sorted(self.names, key=digest)[:most]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageScores:
    """Metrics of images that are there already; the cascade draws none. Several processes each read a part of them.

    Args:
      generated_dir: folder of images, in folders within it too.
      reference_dir: folder of the reference's images; None: `statistics_path` holds all that the metrics need, or they
        need no reference.
      weights_path: Inception file, see `load_extractor`; None where no metric takes its features.
      clip_path, dinov2_path: folders of these networks, for the metrics that take their features.
      protocols: names of `protocols.PROTOCOLS`, or "all".
      metrics: names of `scoring.METRICS`.
      captions_path: JSON object from each image's name to its caption, for metrics of captions.
      statistics_path: .npz of the reference's Inception statistics; written where it is not there and `reference_dir`
        is given, and then read in its place. One protocol at a time.
      made_by: what made that file, where it holds mu and sigma alone.
    """

    generated_dir: str
    reference_dir: str | None = None
    weights_path: str | None = None
    clip_path: str | None = None
    dinov2_path: str | None = None
    protocols: tuple[str, ...] = (ALL,)
    metrics: tuple[str, ...] = ("fid",)
    captions_path: str | None = None
    statistics_path: str | None = None
    made_by: MadeBy | None = None
    needs_cascade: ClassVar[bool] = False
    shares_images: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "protocols", tuple(self.protocols))
        object.__setattr__(self, "metrics", tuple(self.metrics))
        check_path("ImageScores.generated_dir", self.generated_dir)
        protocols = find_protocols(self.protocols)
        wanted = find_metrics(self.metrics)
        if self.statistics_path is not None and (len(protocols) > 1 or protocols[0].matched):
            raise UserError(
                f"ImageScores.statistics_path ({self.statistics_path}) holds one whole reference under one protocol, "
                f"and protocols names {', '.join(one.name for one in protocols)}; name one that is not matched"
            )
        kept = [name for name, one in wanted.items() if one.paired and not one.streams]
        if self.reference_dir is None and (kept or (any(one.paired for one in wanted.values()) and not self._stored)):
            raise UserError(
                f"ImageScores.reference_dir is not given, and {', '.join(kept) or 'FID'} needs the reference's images; "
                "give their folder"
            )

    @property
    def _stored(self) -> bool:
        return self.statistics_path is not None and size_of(self.statistics_path) is not None

    def evaluate(self, cascade: Any, run_dir: str) -> None:
        """Writes RUN_DIR/image_scores.json and prints the table; `cascade` is not used."""
        extractors = self._extractors()
        generated = ImageFolder(self.generated_dir)
        reference = None if self.reference_dir is None else ImageFolder(self.reference_dir)
        captions = self._captions(generated)
        known: dict[tuple[Any, ...], Gathered] = {}
        rows = []
        for protocol in find_protocols(self.protocols):
            ours_from = generated.chosen(protocol.num_images, protocol.seed)
            texts = None if captions is None else [captions[name] for name in ours_from.names]
            key = ("generated", protocol.preparation, len(ours_from), protocol.seed)
            if key not in known:
                label = f"{protocol.name}: generated"
                known[key] = gather(ours_from, self.metrics, extractors, captions=texts, protocol=protocol, label=label)
            theirs = self._reference(reference, protocol, extractors, known)
            rows.append(self._row(protocol, known[key], theirs))
        result = {
            "version": code_version(),
            "weights_sha256": {one.kind: one.fingerprint for one in extractors},
            "metrics": list(self.metrics),
            "scores": rows,
            "spread": {name: max(row[name] for row in rows) - min(row[name] for row in rows) for name in _names(rows)},
        }
        if jax.process_index() == 0:
            make_dirs(run_dir)
            write_json(os.path.join(run_dir, FILE), result)
            print(table(result))

    def _extractors(self) -> list[Any]:
        fields = {
            "inception": ("ImageScores.weights_path", self.weights_path),
            "clip": ("ImageScores.clip_path", self.clip_path),
            "dinov2": ("ImageScores.dinov2_path", self.dinov2_path),
        }
        return load_networks(self.metrics, fields)

    def _captions(self, images: ImageFolder) -> dict[str, str] | None:
        if self.captions_path is None:
            return None
        path = self.captions_path
        try:
            found = read_json(path)
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({error}); expected a JSON object of captions by name") from error
        if not isinstance(found, dict) or not all(isinstance(one, str) for one in found.values()):
            raise UserError(f"{path} must be a JSON object, from the name of each image to its caption")
        without = [name for name in images.names if name not in found]
        beyond = sorted(found.keys() - set(images.names))
        if without:
            raise UserError(f"{path} has no caption of {len(without)} images: {listed(without)}; add them")
        if beyond and jax.process_index() == 0:
            print(f"{len(beyond)} captions of {path} without image, which are left out: {listed(beyond)}")
        return found

    def _reference(
        self,
        images: ImageFolder | None,
        protocol: Protocol,
        extractors: Sequence[Any],
        known: dict[tuple[Any, ...], Gathered],
    ) -> Gathered | None:
        paired = [name for name, one in find_metrics(self.metrics).items() if one.paired]
        if not paired:
            return None
        if self._stored:
            stored = self._read(protocol, extractors)
            if images is not None and len(images) != stored.num_images:
                raise UserError(
                    f"{self.statistics_path} is of {stored.num_images} images, and {images.folder} holds "
                    f"{len(images)}; remove the file to measure them again"
                )
            rest = [name for name in paired if name != "fid"]
            if not rest or images is None:
                return stored
            made = gather(images, rest, extractors, protocol=protocol, label=f"{protocol.name}: reference")
            made.statistics |= stored.statistics
            return made
        assert images is not None
        chosen = images.chosen(protocol.num_images if protocol.matched else 0, protocol.seed)
        key = ("reference", protocol.preparation, len(chosen), protocol.seed if protocol.matched else 0)
        if key not in known:
            known[key] = gather(chosen, paired, extractors, protocol=protocol, label=f"{protocol.name}: reference")
        found = known[key].statistics.get(("inception", "2048"))
        if self.statistics_path is not None and found is not None and jax.process_index() == 0:
            found.save(self.statistics_path)
        return known[key]

    def _read(self, protocol: Protocol, extractors: Sequence[Any]) -> Gathered:
        assert self.statistics_path is not None
        network = next((one for one in extractors if one.kind == "inception"), None)
        if network is None:
            raise UserError(
                f"{self.statistics_path} holds statistics of Inception, which no metric takes; leave it out"
            )
        stated = None
        if self.made_by is not None:
            by = find_protocols((self.made_by.protocol,))[0]
            stated = self.made_by.num_images, identity_of(network, "2048", by)
        found = FeatureStatistics.load(self.statistics_path, stated)
        check_same(FeatureStatistics(len(found.mean), identity_of(network, "2048", protocol)), found)
        return Gathered(found.num_examples, {("inception", "2048"): found})

    def _row(self, protocol: Protocol, ours: Gathered, theirs: Gathered | None) -> dict[str, Any]:
        warnings = too_few(self.metrics, ours, theirs)
        if protocol.num_images and ours.num_images < protocol.num_images:
            warnings.append(f"{ours.num_images} of the protocol's {protocol.num_images} images")
        return {
            "protocol": dataclasses.asdict(protocol),
            **figures(self.metrics, ours, theirs),
            "num_generated": ours.num_images,
            "num_reference": 0 if theirs is None else theirs.num_images,
            "identity": {"/".join(key): one.identity for key, one in ours.statistics.items()},
            "warnings": warnings,
        }


def _names(rows: Sequence[dict[str, Any]]) -> list[str]:
    return [name for name, value in rows[0].items() if isinstance(value, float)]


def table(result: dict[str, Any]) -> str:
    """The result as lines of text."""
    names = _names(result["scores"])
    head = " ".join(f"{name:>16s}" for name in names)
    lines = [f"{'protocol':18s} {head} {'images':>8s} {'reference':>10s}  resize"]
    # What holds of every row is said once.
    common = [one for one in result["scores"][0]["warnings"] if all(one in row["warnings"] for row in result["scores"])]
    for row in result["scores"]:
        protocol = row["protocol"]
        values = " ".join(f"{row[name]:16.4f}" for name in names)
        counts = f"{row['num_generated']:8d} {row['num_reference']:10d}"
        lines.append(f"{protocol['name']:18s} {values} {counts}  {protocol['geometry']}, {protocol['resize']}")
        lines += [f"{'':18s} {warning}" for warning in row["warnings"] if warning not in common]
    spread = " ".join(f"{result['spread'][name]:16.4f}" for name in names)
    lines += [f"{'spread':18s} {spread}", *common]
    return "\n".join(lines)
