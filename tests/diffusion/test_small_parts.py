"""Thresholding, noise conditioning and random times: properties and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from imagen_jax.diffusion import noise_conditioning, thresholding, time_sampling
from imagen_jax.errors import UserError


def _images(scale: float = 1.0) -> jax.Array:
    return scale * jax.random.normal(jax.random.key(0), (3, 8, 8, 3))


def test_dynamic_threshold_rescales_by_the_percentile_of_each_image() -> None:
    x = np.asarray(_images(3.0))
    got = np.asarray(thresholding.dynamic_threshold(jnp.asarray(x), 90.0))
    for image, result in zip(x, got, strict=True):
        s = np.percentile(np.abs(image), 90.0)
        np.testing.assert_allclose(result, np.clip(image, -s, s) / s, atol=1e-5)
        assert (np.abs(result) >= 1 - 1e-6).mean() == pytest.approx(0.1, abs=0.01)


def test_dynamic_threshold_is_capped() -> None:
    """A cap the percentile does not reach changes nothing; one below it takes its place; 1 is the static rule."""
    x = _images(3.0)
    percentiles = np.percentile(np.abs(np.asarray(x)).reshape(3, -1), 95.0, axis=1)
    assert percentiles.min() > 5
    loose = thresholding.dynamic_threshold(x, 95.0, 1000.0)
    np.testing.assert_array_equal(loose, thresholding.dynamic_threshold(x, 95.0))
    np.testing.assert_allclose(thresholding.threshold(x, "dynamic", 95.0, 1.5), np.clip(x, -1.5, 1.5) / 1.5, atol=1e-6)
    np.testing.assert_array_equal(thresholding.dynamic_threshold(x, 95.0, 1.0), thresholding.static_threshold(x))


def test_each_image_is_capped_by_itself() -> None:
    x = jnp.stack([jnp.full((4, 4, 3), 1.2), jnp.full((4, 4, 3), 4.0)])
    got = thresholding.dynamic_threshold(x, 95.0, 1.5)
    np.testing.assert_allclose(got[0], 1.0, atol=1e-6)
    np.testing.assert_allclose(got[1], 1.0, atol=1e-6)
    half = thresholding.dynamic_threshold(0.5 * x, 95.0, 1.5)
    np.testing.assert_allclose(half[:, 0, 0, 0], [0.6, 1.0], atol=1e-6)


def test_dynamic_threshold_leaves_images_inside_the_range_alone() -> None:
    x = jnp.clip(_images(0.2), -1, 1)
    np.testing.assert_array_equal(thresholding.dynamic_threshold(x), x)


def test_static_and_no_threshold() -> None:
    x = _images(2.0)
    assert float(jnp.abs(thresholding.threshold(x, "static")).max()) == 1.0
    np.testing.assert_array_equal(thresholding.threshold(x, "none"), x)


@pytest.mark.parametrize("percentile", [0.995, 0.0, 101.0])
def test_a_percentile_on_the_wrong_scale_is_refused(percentile: float) -> None:
    with pytest.raises(UserError, match="0-100"):
        thresholding.check_thresholding("dynamic", percentile, 1.5)


def test_an_unknown_rule_and_a_cap_within_the_range_are_refused() -> None:
    with pytest.raises(UserError, match="must be one of"):
        thresholding.check_thresholding("dynamical", 99.5, 1.5)
    for cap in (0.9, float("nan")):
        with pytest.raises(UserError, match="threshold_cap"):
            thresholding.check_thresholding("dynamic", 99.5, cap)
    thresholding.check_thresholding("dynamic", 99.5, float("inf"))


def test_corruption_goes_from_clean_to_noise_and_keeps_variance() -> None:
    low_res, eps = _images(), jax.random.normal(jax.random.key(1), (3, 8, 8, 3))
    np.testing.assert_allclose(noise_conditioning.corrupt(low_res, eps, jnp.zeros(3)), low_res, atol=1e-6)
    np.testing.assert_allclose(noise_conditioning.corrupt(low_res, eps, jnp.ones(3)), eps, atol=1e-6)
    third = noise_conditioning.corrupt(low_res, eps, jnp.full(3, 1 / 3))
    np.testing.assert_allclose(third, np.sqrt(3) / 2 * low_res + 0.5 * eps, atol=1e-5)
    with pytest.raises(UserError, match="aug_level"):
        noise_conditioning.check_aug_level(1.5)


def test_stratified_times_cover_every_interval_once_and_are_uniform() -> None:
    times = np.asarray(time_sampling.stratified(jax.random.key(3), 32))
    np.testing.assert_array_equal(np.sort((times * 32).astype(int)), np.arange(32))
    first = np.array([float(time_sampling.stratified(jax.random.key(i), 4)[0]) for i in range(400)])
    assert abs(first.mean() - 0.5) < 0.05 and abs(first.var() - 1 / 12) < 0.015


def test_the_default_time_sampler_is_stratified() -> None:
    rng = jax.random.key(5)
    np.testing.assert_array_equal(time_sampling.StratifiedTimes().times(rng, 16), time_sampling.stratified(rng, 16))


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.5, 0.6), (1.0, 1.7)])
def test_logit_normal_times_follow_their_distribution(mean: float, std: float) -> None:
    """logit(t) of n stratified times against N(mean, std²) by scipy; their distribution is never off by over 1/n."""
    n = 512
    times = np.asarray(time_sampling.LogitNormalTimes(mean=mean, std=std).times(jax.random.key(0), n), np.float64)
    assert times.min() >= 0 and times.max() <= 1
    found = stats.norm.cdf(np.log(times / (1 - times)), mean, std)
    assert stats.kstest(found, "uniform").statistic < 1.1 / n
    # Independent of the row: shuffled, not sorted.
    assert abs(stats.spearmanr(found, np.arange(n)).statistic) < 0.2
    # The mass of SD3's equation 19 in each bin of a histogram.
    edges = np.linspace(0.05, 0.95, 7)
    mass = np.diff(stats.norm.cdf(np.log(edges / (1 - edges)), mean, std))
    np.testing.assert_allclose(np.histogram(times, edges)[0] / n, mass, atol=2 / n)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"std": 0.0}, r"std \(0.0\) must be a positive"), ({"mean": float("nan")}, r"mean \(nan\) must be a finite")],
)
def test_impossible_logit_normal_times_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        time_sampling.LogitNormalTimes(**settings)
