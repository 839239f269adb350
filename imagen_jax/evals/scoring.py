"""Any of the metrics on a set of images, by name: features are gathered batch by batch, then scored.

    score(images, reference, ("fid", "clip_score"), (inception, clip), captions=captions)

Metrics of the first and second moments (FID, FD-DINOv2) and the CLIP score hold no features, whatever the number of
images. The others keep theirs as float32. Several processes each take every n-th image; their parts are put together
exactly, in the images' order, in every process.
"""

import dataclasses
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from imagen_jax.checkpoints.processes import gathered
from imagen_jax.errors import UserError
from imagen_jax.evals import metrics, protocols
from imagen_jax.evals.metrics import FeatureStatistics
from imagen_jax.evals.protocols import PROTOCOLS
from imagen_jax.progress import Progress

BATCH = 16
# Below as many images FID on 2048 features is far too large.
FEW = 2048
_RESAMPLES = 1000
# Layer of CLIP that holds each image's CLIP score.
SCORES = "score"


@runtime_checkable
class Images(Protocol):
    """Images by number: uint8 [h, w, 3] each, of any size; or what reads each when asked for it."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> Any: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric by name.

    Args:
      kind: of the network whose features it takes.
      layer: of that network.
      compute: (generated, reference) → figures by name. Both are features [n, d], or `FeatureStatistics` where it
        streams; a metric without reference is given None.
      streams: it takes statistics and needs no features.
      paired: it compares with a reference.
      captioned: it compares images with their captions, whose features are then the reference.
    """

    kind: str
    layer: str
    compute: Callable[[Any, Any], dict[str, float]]
    streams: bool = False
    paired: bool = True
    captioned: bool = False

    @property
    def key(self) -> tuple[str, str]:
        """Network and layer."""
        return self.kind, self.layer


def _one(name: str, metric: Callable[..., float]) -> Callable[[Any, Any], dict[str, float]]:
    return lambda ours, theirs: {name: float(metric(ours, theirs))}


def _with_std(name: str, metric: Callable[..., metrics.Score]) -> Callable[[Any, Any], dict[str, float]]:
    def compute(ours: Any, theirs: Any) -> dict[str, float]:
        found = metric(ours) if theirs is None else metric(ours, theirs)
        return {name: found.mean, f"{name}_std": found.std}

    return compute


def _fields(metric: Callable[..., Any]) -> Callable[[Any, Any], dict[str, float]]:
    return lambda ours, theirs: metric(ours, theirs)._asdict()


def _mean_clip_score(ours: Any, theirs: Any) -> dict[str, float]:
    found = metrics.bootstrap_interval(np.mean, ours[:, 0], num_resamples=_RESAMPLES)
    return {"clip_score": found.value, "clip_score_low": found.low, "clip_score_high": found.high}


def _r_precision(ours: Any, theirs: Any) -> dict[str, float]:
    return {"r_precision": metrics.r_precision(ours, theirs, num_candidates=min(100, len(ours)))}


METRICS: Mapping[str, Metric] = {
    "fid": Metric(kind="inception", layer="2048", compute=_one("fid", metrics.frechet_distance), streams=True),
    "fid_infinity": Metric(
        kind="inception", layer="2048", compute=_one("fid_infinity", metrics.frechet_distance_infinity)
    ),
    "kid": Metric(kind="inception", layer="2048", compute=_with_std("kid", metrics.kernel_distance)),
    "inception_score": Metric(
        kind="inception",
        layer="logits_unbiased",
        compute=_with_std("inception_score", metrics.inception_score),
        paired=False,
    ),
    "precision_recall": Metric(kind="inception", layer="2048", compute=_fields(metrics.precision_recall)),
    "density_coverage": Metric(kind="inception", layer="2048", compute=_fields(metrics.density_coverage)),
    "vendi": Metric(
        kind="inception",
        layer="2048",
        compute=lambda ours, theirs: {"vendi": metrics.vendi_score(ours)},
        paired=False,
    ),
    "fd_dinov2": Metric(kind="dinov2", layer="cls", compute=_one("fd_dinov2", metrics.frechet_distance), streams=True),
    "cmmd": Metric(kind="clip", layer="image_features", compute=_one("cmmd", metrics.cmmd)),
    "clip_score": Metric(kind="clip", layer=SCORES, compute=_mean_clip_score, paired=False, captioned=True),
    "r_precision": Metric(kind="clip", layer="image_features", compute=_r_precision, paired=False, captioned=True),
}


def find_metrics(names: Sequence[str]) -> dict[str, Metric]:
    """Metrics by name.

    Raises:
      UserError: there is none, or a name is unknown.
    """
    wrong = [name for name in names if name not in METRICS]
    if isinstance(names, str) or wrong or not names:
        raise UserError(f"metric {(wrong or [''])[0]!r} is unknown; expected some of {', '.join(METRICS)}")
    return {name: METRICS[name] for name in names}


@dataclasses.dataclass
class Gathered:
    """Features of a set of images, as far as the metrics need them.

    Args:
      num_images: over all processes.
      statistics: by network and layer.
      features: float32 [n, d] by network and layer.
    """

    num_images: int
    statistics: dict[tuple[str, str], FeatureStatistics] = dataclasses.field(default_factory=dict)
    features: dict[tuple[str, str], np.ndarray] = dataclasses.field(default_factory=dict)


def score(
    images: Images,
    reference: Images | Gathered | None,
    names: Sequence[str],
    extractors: Sequence[Any],
    *,
    captions: Sequence[str] | None = None,
    protocol: protocols.Protocol = PROTOCOLS["torch_fidelity"],
) -> dict[str, float]:
    """Figures of a set of images.

    Args:
      images: at least two, and as many as there are processes.
      reference: images too, or what `gather` made of them; None for metrics without reference.
      names: of METRICS.
      extractors: one of each network that the metrics need.
      captions: one an image, for CLIP score and R-precision.
      protocol: how images are brought to the networks; the default leaves them as they are.

    Returns:
      Figures by name: a metric of several, such as precision_recall, gives each of them.

    Raises:
      UserError: a metric lacks its network, reference or captions; there are too few images, or one is of no use.
    """
    ours = gather(images, names, extractors, captions=captions, protocol=protocol, label="images")
    theirs = reference
    if theirs is not None and not isinstance(theirs, Gathered):
        paired = [name for name in names if METRICS[name].paired]
        theirs = gather(theirs, paired, extractors, protocol=protocol, label="reference") if paired else None
    return figures(names, ours, theirs)


def figures(names: Sequence[str], ours: Gathered, theirs: Gathered | None) -> dict[str, float]:
    """Figures of features that are gathered; see `score`."""
    found: dict[str, float] = {}
    for name, metric in find_metrics(names).items():
        if metric.paired and theirs is None:
            raise UserError(f"metric {name!r} compares with a reference; give its images or statistics")
        sides: tuple[Any, Any]
        if metric.streams:
            sides = ours.statistics[metric.key], _of(name, theirs, metric, "statistics")
        elif metric.captioned:
            sides = ours.features[metric.key], ours.features.get((metric.kind, "text_features"))
        else:
            sides = ours.features[metric.key], _of(name, theirs, metric, "features") if metric.paired else None
        found |= metric.compute(*sides)
    return found


def too_few(names: Sequence[str], ours: Gathered, theirs: Gathered | None) -> list[str]:
    """Warnings of sets of images that are too small for FID."""
    if not {"fid", "fid_infinity"} & set(names):
        return []
    return [
        f"{one.num_images} {side} images: FID is biased upwards, by about C / {one.num_images}; give at least {FEW}"
        for side, one in (("generated", ours), ("reference", theirs))
        if one is not None and one.num_images < FEW
    ]


def _of(name: str, theirs: Any, metric: Metric, field: str) -> Any:
    found = getattr(theirs, field).get(metric.key)
    if found is None:
        raise UserError(
            f"the reference has no {field} of {metric.kind}'s {metric.layer}, which {name!r} needs; give its images"
        )
    return found


def identity_of(extractor: Any, layer: str, protocol: protocols.Protocol) -> str:
    """Words for what makes features: network, weights, layer, and the way from the image to the network."""
    steps = protocol.preparation if extractor.kind == "inception" else protocol.preparation[:-1]
    return f"{extractor.kind} {extractor.fingerprint}, layer {layer}, {':'.join(map(str, steps))}"


def gather(
    images: Images,
    names: Sequence[str],
    extractors: Sequence[Any],
    *,
    captions: Sequence[str] | None = None,
    protocol: protocols.Protocol = PROTOCOLS["torch_fidelity"],
    label: str = "features",
) -> Gathered:
    """Features of images as metrics need them, a batch of images in memory at a time; see `score`.

    Raises:
      UserError: as for `score`; of several processes, in every one.
    """
    wanted = find_metrics(names)
    networks = {one.kind: one for one in extractors}
    for name, metric in wanted.items():
        if metric.kind not in networks:
            raise UserError(f"metric {name!r} needs the network {metric.kind}; give its weights")
        if metric.captioned and captions is None:
            raise UserError(f"metric {name!r} needs the images' captions; give one an image")
    if captions is not None and len(captions) != len(images):
        raise UserError(f"{len(images)} images have {len(captions)} captions; give one caption an image")
    rank, count = jax.process_index(), jax.process_count()
    if len(images) < max(2, count):
        raise UserError(f"{len(images)} images are too few to be scored; give at least {max(2, count)}")
    error, made = "", b""
    try:
        rows = range(rank, len(images), count)
        part = _gather_rows(images, rows, wanted.values(), networks, captions, protocol, label)
        if count == 1:
            return part
        made = _to_bytes(part)
    except UserError as problem:
        if count == 1:
            raise
        error = str(problem)
    told = [text.decode() for text in gathered(error.encode()) if text]
    if told:
        raise UserError(told[0])
    return merged(gathered(made), len(images))


def _gather_rows(
    images: Images,
    rows: Sequence[int],
    wanted: Any,
    networks: Mapping[str, Any],
    captions: Sequence[str] | None,
    protocol: protocols.Protocol,
    label: str,
) -> Gathered:
    found = Gathered(len(rows))
    parts: dict[tuple[str, str], list[np.ndarray]] = {}
    with Progress(len(rows), label, "image") as progress:
        for start in range(0, len(rows), BATCH):
            chosen = rows[start : start + BATCH]
            batch = [_checked(images, row) for row in chosen]
            texts = None if captions is None else [captions[row] for row in chosen]
            made = _features(batch, texts, wanted, networks, protocol)
            for metric in wanted:
                if metric.streams:
                    statistics = found.statistics.get(metric.key)
                    if statistics is None:
                        identity = identity_of(networks[metric.kind], metric.layer, protocol)
                        statistics = FeatureStatistics(made[metric.key].shape[1], identity)
                        found.statistics[metric.key] = statistics
            for key, statistics in found.statistics.items():
                statistics.update(made[key])
            for key in _kept(wanted):
                parts.setdefault(key, []).append(made[key])
            progress.update(len(chosen))
    found.features = {key: np.concatenate(values) for key, values in parts.items()}
    return found


def _kept(wanted: Any) -> set[tuple[str, str]]:
    keys = {metric.key for metric in wanted if not metric.streams}
    if any(metric.captioned and metric.layer != SCORES for metric in wanted):
        keys.add(("clip", "text_features"))
    return keys


def _checked(images: Images, row: int) -> np.ndarray:
    image = np.asarray(images[row])
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        bad = " with NaN" if image.dtype.kind == "f" and not np.isfinite(image).all() else ""
        raise UserError(
            f"image {row} is {image.dtype} {list(image.shape)}{bad}; expected uint8 [h, w, 3] of 0 to 255: "
            "from [-1, 1] it is np.rint((x + 1) * 127.5).astype(np.uint8)"
        )
    return image


def _features(
    batch: Sequence[np.ndarray],
    captions: Sequence[str] | None,
    wanted: Any,
    networks: Mapping[str, Any],
    protocol: protocols.Protocol,
) -> dict[tuple[str, str], np.ndarray]:
    made: dict[tuple[str, str], np.ndarray] = {}
    for kind in {metric.kind for metric in wanted}:
        network = networks[kind]
        if kind == "inception":
            layers = tuple(sorted({metric.layer for metric in wanted if metric.kind == kind}))
            pixels = np.stack([protocol.prepare(image) for image in batch])
        else:
            layers = network.layers
            pixels = np.stack([network.prepare(protocol.at_size(image)) for image in batch])
        made |= {(kind, layer): value for layer, value in network.features_of_resized(pixels, layers).items()}
    if any(metric.captioned for metric in wanted):
        texts = networks["clip"].text_features(captions)
        made["clip", "text_features"] = texts
        made["clip", SCORES] = metrics.clip_score(made["clip", "image_features"], texts)[:, None]
    for (kind, layer), value in made.items():
        if not np.isfinite(value).all():
            raise UserError(f"{kind}'s {layer} of an image is not finite; its weights are damaged: download them again")
    return made


def _to_bytes(part: Gathered) -> bytes:
    arrays: dict[str, Any] = {}
    for (kind, layer), one in part.statistics.items():
        name = f"statistics/{kind}/{layer}"
        arrays |= {f"{name}/mean": one.mean, f"{name}/scatter": one.scatter, f"{name}/number": one.num_examples}
        arrays[f"{name}/identity"] = np.str_(one.identity)
    arrays |= {f"features/{kind}/{layer}": value for (kind, layer), value in part.features.items()}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def merged(parts: Sequence[bytes], num_images: int) -> Gathered:
    """Features that processes gathered, each of every len(parts)-th image, as one process would have them."""
    found = Gathered(num_images)
    for rank, content in enumerate(parts):
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            for name in arrays.files:
                what, kind, layer, *rest = name.split("/")
                if what == "features":
                    rows = found.features.setdefault(
                        (kind, layer), np.zeros((num_images, arrays[name].shape[1]), arrays[name].dtype)
                    )
                    rows[rank :: len(parts)] = arrays[name]
                elif rest == ["mean"]:
                    base = name.removesuffix("/mean")
                    one = FeatureStatistics(len(arrays[name]), str(arrays[f"{base}/identity"]))
                    one.num_examples = int(arrays[f"{base}/number"])
                    one.mean, one.scatter = arrays[name], arrays[f"{base}/scatter"]
                    if (kind, layer) in found.statistics:
                        found.statistics[kind, layer].merge(one)
                    else:
                        found.statistics[kind, layer] = one
    return found
