"""FID of a folder of images against a folder of references, under one protocol or all → `image_scores.json`.

One set of images has as many FIDs as there are protocols; the table shows them side by side, and their spread.
"""

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from imagen_jax.checks import check_path
from imagen_jax.errors import UserError
from imagen_jax.evals.features.inception import InceptionExtractor
from imagen_jax.evals.features.loading import load_extractor
from imagen_jax.evals.metrics import FeatureStatistics, frechet_distance
from imagen_jax.evals.protocols import ALL, Protocol, find_protocols
from imagen_jax.files import files_under, make_dirs, write_json
from imagen_jax.image_files import ImageError, decode_image
from imagen_jax.progress import Progress

FILE = "image_scores.json"
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
LAYER = "2048"
# Below as many images as features the covariance is not of full rank, and FID far too large.
FEW = 2048
BATCH = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageScores:
    """FID of images that are there already; the cascade draws none.

    Args:
      generated_dir: folder of images, in folders within it too.
      reference_dir: folder of the reference's images.
      weights_path: Inception file, see `load_extractor`.
      protocols: names of `protocols.PROTOCOLS`, or "all".
    """

    generated_dir: str
    reference_dir: str
    weights_path: str
    protocols: tuple[str, ...] = (ALL,)
    needs_cascade: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "protocols", tuple(self.protocols))
        check_path("ImageScores.generated_dir", self.generated_dir)
        check_path("ImageScores.reference_dir", self.reference_dir)
        find_protocols(self.protocols)

    def evaluate(self, cascade: Any, run_dir: str) -> None:
        """Writes RUN_DIR/image_scores.json and prints the table; `cascade` is not used."""
        extractor = load_extractor(self.weights_path, batch_size=BATCH)
        if not isinstance(extractor, InceptionExtractor):
            raise UserError(
                f"{self.weights_path} holds {extractor.kind}; the protocols are of Inception: give its file"
            )
        folders = {name: _images(path) for name, path in self._folders().items()}
        known: dict[tuple[Any, ...], FeatureStatistics] = {}
        rows = []
        for protocol in find_protocols(self.protocols):
            rows.append(self._row(protocol, extractor, folders, known))
        fids = [row["fid"] for row in rows]
        result = {
            "weights_sha256": extractor.fingerprint,
            "layer": LAYER,
            "scores": rows,
            "spread": max(fids) - min(fids),
        }
        make_dirs(run_dir)
        write_json(os.path.join(run_dir, FILE), result)
        print(table(result))

    def _folders(self) -> dict[str, str]:
        return {"generated": self.generated_dir, "reference": self.reference_dir}

    def _row(
        self,
        protocol: Protocol,
        extractor: InceptionExtractor,
        folders: dict[str, list[str]],
        known: dict[tuple[Any, ...], FeatureStatistics],
    ) -> dict[str, Any]:
        found = {}
        for name, files in folders.items():
            most = protocol.num_images if name == "generated" or protocol.matched else 0
            chosen = _chosen(files, most, protocol.seed)
            key = (name, protocol.preparation, tuple(chosen))
            if key not in known:
                label = f"{protocol.name}: {name}"
                known[key] = gather(protocol, extractor, self._folders()[name], chosen, label)
            found[name] = known[key]
        ours, theirs = found["generated"], found["reference"]
        warnings = [
            f"{one.num_examples} {name} images: FID is biased upwards below {FEW}"
            for name, one in found.items()
            if one.num_examples < FEW
        ]
        if protocol.num_images and ours.num_examples < protocol.num_images:
            warnings.append(f"{ours.num_examples} of the protocol's {protocol.num_images} images")
        return {
            "protocol": dataclasses.asdict(protocol),
            "fid": frechet_distance(ours, theirs),
            "num_generated": ours.num_examples,
            "num_reference": theirs.num_examples,
            "identity": ours.identity,
            "warnings": warnings,
        }


def gather(
    protocol: Protocol, extractor: InceptionExtractor, folder: str, names: Sequence[str], label: str = "features"
) -> FeatureStatistics:
    """Statistics of images as a protocol prepares them, a batch in memory at a time.

    Args:
      protocol: how images are prepared.
      extractor: of the features.
      folder: where the images lie.
      names: of their files, at least one.
      label: of the bar.

    Raises:
      UserError: a file is no image, or there are fewer than two.
    """
    if len(names) < 2:
        raise UserError(f"{folder} gives {len(names)} images; FID needs at least 2, and {FEW} to be of use")
    sides = ":".join(str(one) for one in protocol.preparation)
    identity = f"inception {extractor.fingerprint}, layer {LAYER}, {sides}"
    found = FeatureStatistics(int(LAYER), identity)
    with Progress(len(names), label, "image") as progress:
        for start in range(0, len(names), BATCH):
            part = names[start : start + BATCH]
            pixels = np.stack([protocol.prepare(image) for image in _decoded(folder, part)])
            found.update(extractor.features_of_resized(pixels, (LAYER,))[LAYER])
            progress.update(len(part))
    return found


def table(result: dict[str, Any]) -> str:
    """The result as lines of text."""
    lines = [f"{'protocol':18s} {'FID':>10s} {'images':>8s} {'reference':>10s}  resize"]
    for row in result["scores"]:
        protocol = row["protocol"]
        counts = f"{row['num_generated']:8d} {row['num_reference']:10d}"
        lines.append(
            f"{protocol['name']:18s} {row['fid']:10.3f} {counts}  {protocol['geometry']}, {protocol['resize']}"
        )
        lines += [f"{'':18s} {warning}" for warning in row["warnings"]]
    lines.append(f"{'spread':18s} {result['spread']:10.3f}")
    return "\n".join(lines)


def _decoded(folder: str, names: Sequence[str]) -> Iterator[np.ndarray]:
    for name in names:
        try:
            yield np.asarray(decode_image(os.path.join(folder, name)))
        except ImageError as error:
            raise UserError(
                f"{os.path.join(folder, name)} is no image that can be read ({error}); remove it or give it again"
            ) from error


def _images(folder: str) -> list[str]:
    names = [name for name in files_under(folder) if name.lower().endswith(ENDINGS)]
    if not names:
        raise UserError(f"no images in {folder}; expected files that end in {', '.join(ENDINGS)}")
    return names


def _chosen(names: Sequence[str], most: int, seed: int) -> list[str]:
    """All names, or `most` of them in the order of their digests with the seed."""
    if not most or len(names) <= most:
        return list(names)
    return sorted(sorted(names, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).hexdigest())[:most])
