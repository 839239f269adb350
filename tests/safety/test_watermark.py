"""The watermark: found after a crop and JPEG, by its key alone; the bound of false positives; what it changes."""

import importlib.util
import io
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagen_jax.data.shapes import draw
from imagen_jax.data.shapes_scene import sample_scene
from imagen_jax.errors import UserError
from imagen_jax.safety.watermark import detect, embed


def drawn(size: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return draw(sample_scene(rng), rng, image_size=size)


def photo(name: str, size: int) -> np.ndarray:
    """The centre of a photograph that comes with scikit-image."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        pytest.skip("the photographs come with imagen_jax[photos]; `make test` installs it")
    image = Image.open(Path(spec.origin).parent / "data" / name).convert("RGB")
    side = min(image.size)
    return np.asarray(image.crop((0, 0, side, side)).resize((size, size), Image.Resampling.LANCZOS))


def attacked(image: np.ndarray, top: int, left: int) -> np.ndarray:
    """Nine tenths of the sides, as JPEG of quality 75."""
    side = round(0.9 * image.shape[0])
    buffer = io.BytesIO()
    Image.fromarray(image[top : top + side, left : left + side]).save(buffer, "JPEG", quality=75)
    return np.asarray(Image.open(buffer))


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return 10 * math.log10(255**2 / np.mean((one.astype(float) - other) ** 2))


def holds(image: np.ndarray, least_psnr: float) -> None:
    """The mark is found wherever the image is cut, its PSNR is high, and neither image has another key's mark."""
    marked = embed(image)
    assert psnr(marked, image) > least_psnr
    most = image.shape[0] - round(0.9 * image.shape[0])
    for top, left in ((0, 0), (most, 3), (7, most), (13, 9)):
        cut = attacked(marked, top, left)
        assert detect(cut).found
        assert not detect(cut, "another key").found
    assert not detect(image).found


@pytest.mark.parametrize("seed", range(8))
def test_shapes_keep_the_mark_through_crop_and_jpeg(seed):
    holds(drawn(256, seed), 42)


@pytest.mark.parametrize("name", ["astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "hubble_deep_field.jpg"])
def test_photographs_keep_the_mark_through_crop_and_jpeg(name):
    holds(photo(name, 256), 40)


def test_large_images_keep_the_mark():
    holds(drawn(1024, 0), 44)
    holds(photo("retina.jpg", 1024), 41)


@pytest.mark.parametrize("level", [0, 7, 128, 255])
def test_flat_images_keep_the_mark_and_have_none_of_their_own(level):
    flat = np.full((256, 256, 3), level, np.uint8)
    assert detect(flat).score == 0
    assert detect(attacked(embed(flat), 5, 11)).found


def test_false_positives_stay_below_their_bound_and_the_threshold_is_its_closed_form():
    """Of an unmarked image chance is that of the key; one that repeats its own tile is no worse."""
    found = detect(drawn(64, 0), false_positives=1e-6)
    assert 128**2 * math.exp(-(found.threshold**2) / 2) == pytest.approx(1e-6)
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    for image in (drawn(256, 1), np.tile(noise, (2, 2, 1)), embed(drawn(256, 2), "mine")):
        scores = np.array([detect(image, f"key {number}", 0.05).score for number in range(100)])
        threshold = detect(image, false_positives=0.05).threshold
        # With a rate of at most 0.05, more than 12 of 100 have a chance below 0.002.
        assert (scores >= threshold).sum() <= 12
        # The scores are those of noise, whose largest of 128² lies near 4, not of something that can never reach them.
        assert 3.2 < np.median(scores) < 4.6


def test_only_luminance_changes_and_every_size_can_be_marked():
    image = np.full((40, 300, 3), (100, 150, 60), np.uint8)
    change = embed(image).astype(int) - image
    assert (change == change[..., :1]).all() and 0 < np.abs(change).max() < 10
    for size in ((1, 1), (3, 200), (129, 127)):
        small = np.zeros((*size, 3), np.uint8)
        assert embed(small).shape == small.shape and not detect(small).found


def test_a_rate_that_is_none_is_refused():
    with pytest.raises(UserError, match="false_positives"):
        detect(drawn(64, 0), false_positives=0.0)
