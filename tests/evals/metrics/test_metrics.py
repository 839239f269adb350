"""Metrics against torch-fidelity's and pytorch-fid's own figures, closed forms and properties."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import scipy.linalg

from imagen_jax.errors import UserError
from imagen_jax.evals import metrics
from imagen_jax.evals.metrics import FeatureStatistics

GOLDEN = Path(__file__).parents[2] / "golden" / "d_fid"
EXPECTED = json.loads((GOLDEN / "metrics.json").read_text())
FEATURES = dict(np.load(GOLDEN / "features.npz"))
SETS = ("full", "rank_deficient")
RELATIVE = 1e-6


def pair(name: str) -> tuple[np.ndarray, np.ndarray]:
    return FEATURES[f"{name}/1"].astype(np.float64), FEATURES[f"{name}/2"].astype(np.float64)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize("name", SETS)
def test_fid_equals_its_peers(name):
    got = metrics.frechet_distance(*pair(name))
    assert got == pytest.approx(EXPECTED[name]["fid_torch_fidelity"], rel=RELATIVE)
    assert got == pytest.approx(EXPECTED[name]["fid_pytorch_fid"], rel=RELATIVE)


@pytest.mark.parametrize("name", SETS)
def test_kid_equals_torch_fidelity(name):
    a, b = pair(name)
    wanted = EXPECTED[name]["kid_subsets"]
    got = metrics.kernel_distance(a, b, num_subsets=wanted["kid_subsets"], subset_size=wanted["kid_subset_size"])
    assert got == pytest.approx((wanted["mean"], wanted["std"]), rel=RELATIVE)
    m = EXPECTED[name]["kid_all_first_m"]["m"]
    whole = metrics.kernel_distance(a[:m], b[:m], num_subsets=1)
    assert whole == pytest.approx((EXPECTED[name]["kid_all_first_m"]["value"], 0.0), rel=RELATIVE)


@pytest.mark.parametrize("name", SETS)
def test_precision_and_recall_equal_torch_fidelity(name):
    wanted = EXPECTED[name]["prc_k3"]
    assert metrics.precision_recall(*pair(name), k=3) == pytest.approx((wanted["precision"], wanted["recall"]))


def test_inception_score_equals_torch_fidelity():
    logits, wanted = FEATURES["logits"], EXPECTED["inception_score"]
    for name, options in (
        ("splits10_shuffled", {}),
        ("splits10_in_order", {"seed": None}),
        ("splits1", {"num_splits": 1}),
    ):
        got = metrics.inception_score(logits, **options)
        expected = (wanted[name]["inception_score_mean"], wanted[name]["inception_score_std"])
        assert got == pytest.approx(expected, rel=RELATIVE), name


def test_statistics_equal_the_golden_ones():
    for name in SETS:
        found = FeatureStatistics.of(FEATURES[f"{name}/1"])
        np.testing.assert_allclose(found.mean, FEATURES[f"{name}/mu1"], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(np.diag(found.covariance), FEATURES[f"{name}/cov1_diag"], rtol=1e-5)


@pytest.mark.parametrize("dims", [1, 3])
def test_fid_of_known_gaussians(dims):
    """Diagonal covariances: sum of (difference of means)² and of (difference of deviations)²."""
    x = normal(0, 50, dims)
    x = (x - x.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.atleast_2d(np.cov(x, rowvar=False)))).T
    scale, shift = np.arange(1, dims + 1) * 1.5, np.arange(dims) - 2.0
    assert metrics.frechet_distance(x, x * scale + shift) == pytest.approx((shift**2).sum() + ((scale - 1) ** 2).sum())


def test_fid_of_fewer_images_than_features_equals_the_nuclear_norm():
    """tr((A B)^1/2) is the sum of the singular values of X^T Y, for A = X X^T and B = Y Y^T."""
    x, y = normal(1, 5, 40), normal(2, 9, 40) + 1
    centred = [(one - one.mean(0)) / np.sqrt(len(one) - 1) for one in (x, y)]
    root = scipy.linalg.svdvals(centred[0] @ centred[1].T).sum()
    wanted = ((x.mean(0) - y.mean(0)) ** 2).sum() + (centred[0] ** 2).sum() + (centred[1] ** 2).sum() - 2 * root
    assert metrics.frechet_distance(x, y) == pytest.approx(wanted, rel=1e-8)
    assert metrics.frechet_distance(y, x) == pytest.approx(wanted, rel=1e-8)
    assert metrics.frechet_distance(x, x) == pytest.approx(0, abs=1e-6)
    constant = np.ones((4, 40))
    assert metrics.frechet_distance(constant, constant + 1) == pytest.approx(40)


def test_statistics_of_parts_merge_to_those_of_all(tmp_path):
    a, b = pair("full")
    whole = FeatureStatistics.of(a + 1e4)
    processes = []
    for rows in (slice(0, 7), slice(7, 8), slice(8, 400)):
        one = FeatureStatistics(a.shape[1])
        for start in range(0, len(a[rows]), 50):
            one.update(a[rows][start : start + 50] + 1e4)
        one.update(a[:0])
        processes.append(one)
    merged = FeatureStatistics(a.shape[1])
    for one in reversed(processes):
        merged.merge(one)
    assert merged.num_examples == 400
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-13)
    np.testing.assert_allclose(merged.covariance, np.cov(a, rowvar=False), rtol=1e-9, atol=1e-10)
    merged.save(tmp_path / "reference.npz")
    again = FeatureStatistics.load(tmp_path / "reference.npz")
    assert again.num_examples == 400
    wanted = metrics.frechet_distance(b + 1e4, whole)
    assert metrics.frechet_distance(b + 1e4, again) == pytest.approx(wanted, rel=1e-9)


def test_fid_at_infinity_is_that_of_many_images():
    """Two samples of one distribution: at n images FID is far from 0, at infinity near it."""
    a, b = normal(3, 3000, 16), normal(4, 20000, 16)
    few = metrics.frechet_distance(a[:300], b)
    at_infinity = metrics.frechet_distance_infinity(a, b, min_examples=100)
    assert abs(at_infinity) < 0.15 * few
    assert at_infinity == metrics.frechet_distance_infinity(a, FeatureStatistics.of(b), min_examples=100)


def test_kid_and_cmmd_equal_their_definitions():
    a, b = normal(5, 20, 6), normal(6, 25, 6) + 0.3
    got = metrics.kernel_distance(a, b[:20], num_subsets=1, subset_size=20).mean
    kernel = [[(x @ y / 6 + 1) ** 3 for y in [*a, *b[:20]]] for x in [*a, *b[:20]]]
    k = np.array(kernel)
    own = [(k[s, s].sum() - np.trace(k[s, s])) / (20 * 19) for s in (slice(0, 20), slice(20, 40))]
    assert got == pytest.approx(sum(own) - 2 * k[:20, 20:].mean())
    gauss = [[np.mean([np.exp(-((x - y) ** 2).sum() / 200) for x in p for y in q]) for q in (a, b)] for p in (a, b)]
    assert metrics.cmmd(a, b) == pytest.approx(1000 * (gauss[0][0] + gauss[1][1] - 2 * gauss[0][1]))
    assert metrics.cmmd(a, a) == pytest.approx(0, abs=1e-9)


def test_blocks_change_nothing(monkeypatch):
    a, b = pair("full")
    wanted = [metrics.cmmd(a, b), *metrics.precision_recall(a, b), *metrics.density_coverage(a, b)]
    monkeypatch.setattr(metrics.inputs, "BLOCK", 37)
    got = [metrics.cmmd(a, b), *metrics.precision_recall(a, b), *metrics.density_coverage(a, b)]
    assert got == pytest.approx(wanted, rel=1e-12)


def test_manifolds_of_points_on_a_line():
    """Reference 0, 1, 2, 10: balls of k = 1 reach 1, 1, 1 and 8."""
    reference, generated = np.array([[0.0], [1], [2], [10]]), np.array([[0.5], [1.5], [4.5], [30.0], [31]])
    found = metrics.precision_recall(generated, reference, k=1)
    assert found == (3 / 5, 3 / 4)
    # 0.5 lies in two balls, 1.5 in two, 4.5 in one; the balls about 0, 1, 2 and 10 all hold one.
    assert metrics.density_coverage(generated, reference, k=1) == pytest.approx((5 / 5, 1.0))
    assert metrics.precision_recall(reference, reference, k=1) == (1, 1)
    assert metrics.density_coverage(reference + 100, reference, k=1) == (0, 0)


def test_inception_score_of_known_classes():
    """Sure classes, evenly spread, score their number; images all alike score 1."""
    sure = 50.0 * np.tile(np.eye(4), (5, 1))
    assert metrics.inception_score(sure, num_splits=5, seed=None) == pytest.approx((4.0, 0.0))
    assert metrics.inception_score(np.ones((20, 4))) == pytest.approx((1.0, 0.0))


def test_vendi_score_counts_what_differs():
    assert metrics.vendi_score(np.repeat(np.eye(5), 3, axis=0) * 7) == pytest.approx(5)
    assert metrics.vendi_score(np.ones((6, 9))) == pytest.approx(1)
    x = normal(7, 8, 20)
    assert metrics.vendi_score(x) == pytest.approx(metrics.vendi_score(np.hstack([x, 0 * x])))
    assert metrics.vendi_score(x.T) == pytest.approx(metrics.vendi_score(np.vstack([x, 0 * x]).T))


def test_scores_against_captions():
    images = np.array([[2.0, 0], [0, 3], [-1, 0]])
    np.testing.assert_allclose(metrics.clip_score(images, [[1, 1], [0, 5], [1, 0]]), [100 / np.sqrt(2), 100, 0])
    features = normal(8, 200, 30)
    assert metrics.r_precision(features, features, num_candidates=50) == 1
    by_chance = metrics.r_precision(features, normal(9, 200, 30), num_candidates=10)
    assert 0.02 < by_chance < 0.22
    assert metrics.r_precision(np.ones((40, 3)), np.ones((40, 3)), num_candidates=10) == pytest.approx(0.1)


def test_a_bootstrap_holds_the_mean_as_often_as_it_says():
    """Intervals of 200 samples of a normal distribution, whose mean is 0."""
    hits = 0
    for seed in range(200):
        found = metrics.bootstrap_interval(np.mean, normal(seed, 60), num_resamples=300, level=0.9, seed=seed)
        assert found.low < found.value < found.high
        hits += found.low <= 0 <= found.high
    assert 0.82 <= hits / 200 <= 0.96


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda x: metrics.frechet_distance(x, x[:, :3]), "8 and of 3"),
        (lambda x: metrics.frechet_distance(x, x[:1]), "at least 2"),
        (lambda x: metrics.frechet_distance(x, x[0]), "a row an example"),
        (lambda x: metrics.kernel_distance(x, np.where(np.arange(20)[:, None] == 7, np.nan, x)), "first is row 7"),
        (lambda x: metrics.kernel_distance(x, x, num_subsets=0), "num_subsets"),
        (lambda x: metrics.cmmd(x, x[:, :3]), "3"),
        (lambda x: metrics.precision_recall(x, x[:3]), "k (3)"),
        (lambda x: metrics.inception_score(x, num_splits=21), "num_splits (21)"),
        (lambda x: metrics.vendi_score(0 * x), "row 0"),
        (lambda x: metrics.clip_score(x, x[:3]), "one shape"),
        (lambda x: metrics.r_precision(x, x), "num_candidates (100)"),
        (lambda x: metrics.frechet_distance_infinity(x[:2], x), "more than 2"),
        (lambda x: metrics.bootstrap_interval(np.mean, x, x[:3]), "one length"),
        (lambda x: metrics.bootstrap_interval(np.mean, x, level=1.0), "level"),
        (lambda x: metrics.frechet_distance(["a"], x), "numbers"),
        (lambda x: metrics.frechet_distance([[1, 2], [3]], x), "NumPy says"),
        (lambda x: metrics.frechet_distance(x > 0, x), "got bool"),
        (lambda x: metrics.frechet_distance(x[:0], x), "have 0 rows of 8"),
        (lambda x: metrics.frechet_distance_infinity(x, x, seed=-1), "seed (-1)"),
        (lambda x: metrics.kernel_distance(x, x, seed=2**32), "seed (4294967296)"),
        (lambda x: metrics.inception_score(x, seed=-1), "seed (-1)"),
        (lambda x: metrics.r_precision(x, x, num_candidates=5, seed=-1), "seed (-1)"),
        (lambda x: metrics.bootstrap_interval(np.mean, x, seed=-1), "seed (-1)"),
        (lambda x: FeatureStatistics(-1), "dim (-1)"),
    ],
)
def test_wrong_input_is_refused(call, said):
    with pytest.raises(UserError) as error:
        call(normal(0, 20, 8))
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.int8])
def test_narrow_features_are_summed_wide(dtype):
    """Features of any type score what the same numbers in float64 do."""
    a, b = ((20 * normal(seed, 30, 12)).astype(dtype) for seed in (0, 1))
    wide = a.astype(np.float64), b.astype(np.float64)
    for metric in (metrics.frechet_distance, metrics.kernel_distance, metrics.cmmd, metrics.precision_recall):
        assert metric(a, b) == metric(*wide)


def test_statistics_of_another_resize_are_refused(tmp_path):
    x = normal(0, 20, 8)
    ours, theirs = (
        FeatureStatistics.of(x, "inception 12ab, resize tf1"),
        FeatureStatistics.of(x, "inception 12ab, clean"),
    )
    with pytest.raises(UserError, match="resize tf1.*clean"):
        metrics.frechet_distance(ours, theirs)
    theirs.save(tmp_path / "a.npz")
    with pytest.raises(UserError, match="resize tf1.*clean"):
        ours.merge(FeatureStatistics.load(tmp_path / "a.npz"))


@pytest.mark.parametrize("damage", ["absent", "cut", "text", "other", "nan"])
def test_damaged_statistics_are_refused(tmp_path, damage):
    path = tmp_path / "a.npz"
    FeatureStatistics.of(normal(0, 20, 8)).save(path)
    if damage == "absent":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-200])
    elif damage == "text":
        path.write_text("mu")
    elif damage == "other":
        np.savez(path, mu=np.zeros(3))
    else:
        np.savez(path, mu=np.full(3, np.nan), sigma=np.eye(3), num_examples=5, identity="")
    with pytest.raises(UserError, match="a.npz"):
        FeatureStatistics.load(path)
