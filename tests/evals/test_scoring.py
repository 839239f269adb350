"""`scoring.score`: every metric by name on features of small stand-in networks, against the metrics called by hand."""

import types

import numpy as np
import pytest

from imagen_jax.errors import UserError
from imagen_jax.evals import metrics, scoring
from imagen_jax.evals.protocols import PROTOCOLS
from imagen_jax.evals.scoring import METRICS, figures, gather, merged, score

N, M, DIM = 23, 19, 6


class Network:
    """Means of patches times a fixed matrix: cheap features that differ by image and by resize."""

    def __init__(self, kind: str, layers: tuple[str, ...]):
        self.kind, self.layers, self.fingerprint, self.calls = kind, layers, f"{kind}-weights", 0
        rng = np.random.default_rng(len(kind))
        self._maps = {layer: rng.standard_normal((12, DIM)) for layer in layers}

    def prepare(self, image):
        return image[:8, :8].astype(np.float32)

    def features_of_resized(self, pixels, layers):
        self.calls += 1
        b, h, w, _ = pixels.shape
        means = pixels[:, : h // 2 * 2, : w // 2 * 2].reshape(b, 2, h // 2, 2, w // 2, 3).mean((2, 4)) / 255
        return {layer: (means.reshape(b, 12) @ self._maps[layer]).astype(np.float32) for layer in layers}

    def text_features(self, captions):
        return np.stack([np.random.default_rng(len(text)).standard_normal(DIM) for text in captions]).astype("f4")


def networks() -> tuple[Network, Network, Network]:
    return (
        Network("inception", ("2048", "logits_unbiased")),
        Network("clip", ("image_features",)),
        Network("dinov2", ("cls",)),
    )


def pictures(seed: int, number: int) -> list[np.ndarray]:
    """Of two sizes."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (10 + i % 2, 12, 3), dtype=np.uint8) for i in range(number)]


CAPTIONS = ["x" * (i + 1) for i in range(N)]
OURS, THEIRS = pictures(0, N), pictures(1, M)


def by_hand(images, network: Network, layer: str) -> np.ndarray:
    made = []
    for image in images:
        pixels = PROTOCOLS["torch_fidelity"].prepare(image) if network.kind == "inception" else network.prepare(image)
        made.append(network.features_of_resized(pixels[None], (layer,))[layer][0])
    return np.stack(made)


def test_every_metric_is_what_it_is_by_hand():
    inception, clip, dino = networks()
    got = score(OURS, THEIRS, tuple(METRICS), (inception, clip, dino), captions=CAPTIONS)
    a, b = (by_hand(images, inception, "2048") for images in (OURS, THEIRS))
    c, d = (by_hand(images, clip, "image_features") for images in (OURS, THEIRS))
    logits, texts = by_hand(OURS, inception, "logits_unbiased"), clip.text_features(CAPTIONS)
    expected = {
        "fid": metrics.frechet_distance(a, b),
        "fid_infinity": metrics.frechet_distance_infinity(a, b),
        "kid": metrics.kernel_distance(a, b).mean,
        "kid_std": metrics.kernel_distance(a, b).std,
        "inception_score": metrics.inception_score(logits).mean,
        "inception_score_std": metrics.inception_score(logits).std,
        **metrics.precision_recall(a, b)._asdict(),
        **metrics.density_coverage(a, b)._asdict(),
        "vendi": metrics.vendi_score(a),
        "fd_dinov2": metrics.frechet_distance(by_hand(OURS, dino, "cls"), by_hand(THEIRS, dino, "cls")),
        "cmmd": metrics.cmmd(c, d),
        "clip_score": metrics.clip_score(c, texts).mean(),
        "r_precision": metrics.r_precision(c, texts, num_candidates=N),
    }
    assert got.keys() == expected.keys() | {"clip_score_low", "clip_score_high"}
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, rel=1e-6, abs=1e-9), name
    assert got["clip_score_low"] < got["clip_score"] < got["clip_score_high"]


def test_metrics_that_stream_keep_no_features():
    found = gather(OURS, ("fid", "fd_dinov2", "clip_score"), networks(), captions=CAPTIONS)
    assert {key: value.shape for key, value in found.features.items()} == {("clip", "score"): (N, 1)}
    assert {one.num_examples for one in found.statistics.values()} == {N}


def test_only_the_networks_asked_for_run():
    inception, clip, dino = networks()
    score(OURS, THEIRS, ("fid",), (inception, clip, dino))
    assert inception.calls and not clip.calls and not dino.calls


def test_processes_gather_as_one_would(monkeypatch):
    """Three processes, in turn: what each sends, put together, scores as one process does to rounding."""
    names = ("fid", "kid", "clip_score", "r_precision")
    whole, theirs = gather(OURS, names, networks(), captions=CAPTIONS), gather(THEIRS, ("fid", "kid"), networks())
    sent: list[bytes] = []

    def pretend(content: bytes) -> list[bytes]:
        if content:
            sent.append(content)
        return [content]

    monkeypatch.setattr(scoring, "gathered", pretend)
    monkeypatch.setattr(scoring, "merged", lambda parts, number: whole)
    for rank in range(3):
        monkeypatch.setattr(
            scoring, "jax", types.SimpleNamespace(process_index=lambda r=rank: r, process_count=lambda: 3)
        )
        gather(OURS, names, networks(), captions=CAPTIONS)
    found = merged(sent, N)
    for key, value in whole.features.items():
        np.testing.assert_array_equal(found.features[key], value)
    one, other = found.statistics["inception", "2048"], whole.statistics["inception", "2048"]
    assert (one.num_examples, one.identity) == (other.num_examples, other.identity)
    np.testing.assert_allclose(one.covariance, other.covariance, atol=1e-12)
    assert figures(names, found, theirs) == pytest.approx(figures(names, whole, theirs), rel=1e-9)


def test_an_error_of_one_process_ends_all(monkeypatch):
    monkeypatch.setattr(scoring, "jax", types.SimpleNamespace(process_index=lambda: 0, process_count=lambda: 2))
    monkeypatch.setattr(scoring, "gathered", lambda content: [content, b"image 7 is no image"])
    with pytest.raises(UserError, match="image 7 is no image"):
        gather(OURS, ("fid",), networks())


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda x: score(OURS, THEIRS, ("fidd",), x), "'fidd' is unknown; expected some of fid"),
        (lambda x: score(OURS, THEIRS, (), x), "unknown"),
        (lambda x: score(OURS, None, ("fid",), x), "compares with a reference"),
        (lambda x: score(OURS, THEIRS, ("fid",), x[1:]), "needs the network inception"),
        (lambda x: score(OURS, None, ("clip_score",), x), "needs the images' captions"),
        (lambda x: score(OURS, None, ("clip_score",), x, captions=["a"]), "23 images have 1 captions"),
        (lambda x: score(OURS[:1], THEIRS, ("fid",), x), "1 images are too few"),
        (lambda x: score([one / 255 for one in OURS], None, ("vendi",), x), "image 0 is float64 [10, 12, 3]; expected"),
        (lambda x: score([OURS[0], OURS[0] * np.nan], None, ("vendi",), x), "image 1 is float64 [10, 12, 3] with NaN"),
        (lambda x: score(OURS, gather(THEIRS, ("fid",), x), ("kid",), x), "the reference has no features"),
    ],
)
def test_what_cannot_be_scored_is_refused(call, said):
    with pytest.raises(UserError) as error:
        call(networks())
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_network_that_gives_nan_is_named():
    inception = networks()[0]
    inception._maps["2048"][:] = np.nan
    with pytest.raises(UserError, match="inception's 2048 of an image is not finite"):
        score(OURS, THEIRS, ("fid",), (inception,))
