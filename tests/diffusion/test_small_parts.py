"""Guidance, thresholding, noise conditioning, times and loss: properties and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion import guidance, losses, noise_conditioning, thresholding, time_sampling
from imagen_jax.errors import UserError


def _images(scale: float = 1.0) -> jax.Array:
    return scale * jax.random.normal(jax.random.key(0), (3, 8, 8, 3))


def test_guidance_is_the_papers_line() -> None:
    cond, null = _images(), _images(0.3)
    np.testing.assert_allclose(guidance.guide(cond, null, 1.0), cond, atol=1e-6)
    np.testing.assert_allclose(guidance.guide(cond, null, 0.0), null, atol=1e-6)
    np.testing.assert_allclose(guidance.guide(cond, null, 7.5), 7.5 * cond - 6.5 * null, atol=1e-5)
    with pytest.raises(UserError, match="guidance_weight"):
        guidance.check_guidance_weight(-0.1)


def test_dynamic_threshold_rescales_by_the_percentile_of_each_image() -> None:
    x = np.asarray(_images(3.0))
    got = np.asarray(thresholding.dynamic_threshold(jnp.asarray(x), 90.0))
    for image, result in zip(x, got, strict=True):
        s = np.percentile(np.abs(image), 90.0)
        np.testing.assert_allclose(result, np.clip(image, -s, s) / s, atol=1e-5)
        assert (np.abs(result) >= 1 - 1e-6).mean() == pytest.approx(0.1, abs=0.01)


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
        thresholding.check_thresholding("dynamic", percentile)
    with pytest.raises(UserError, match="must be one of"):
        thresholding.check_thresholding("dynamical", 99.5)


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


def test_loss_is_the_mean_of_squares_of_each_example() -> None:
    output, target = _images(), _images(0.5)
    expected = ((np.asarray(output, np.float64) - np.asarray(target)) ** 2).reshape(3, -1).mean(1)
    np.testing.assert_allclose(losses.per_example_mse(output, target), expected, rtol=1e-5)
