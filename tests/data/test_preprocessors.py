"""Resizes agree with Pillow, crops are windows of the picture, texts are those of their key."""

import io
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from imagen_jax.data import preprocessors

_PHOTO = np.asarray(
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 6, 3), np.uint8)).resize(
        (48, 48), Image.Resampling.BICUBIC
    )
)


def _run(step, **features) -> dict[str, np.ndarray]:
    dataset = tf.data.Dataset.from_tensors({name: tf.constant(value) for name, value in features.items()})
    (example,) = dataset.map(step).as_numpy_iterator()
    return example


def _file(kind: str, pixels: np.ndarray = _PHOTO, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_decoding_is_exactly_pillows(kind):
    example = _run(preprocessors.decode_image(48), image=_file(kind), key=b"k")
    assert np.array_equal(example["image"], np.asarray(Image.open(io.BytesIO(_file(kind)))))
    assert example["key"] == b"k"


def test_an_image_of_another_size_stops_the_pipeline():
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"\[48,48,3\]"):
        _run(preprocessors.decode_image(32), image=_file("PNG"))


def test_a_turned_original_is_upright_as_in_pillow():
    exif = Image.Exif()
    for orientation in range(1, 9):
        exif[0x0112] = orientation
        file = _file("JPEG", _PHOTO[:, :40], exif=exif)
        expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(file))))
        decoded = _run(preprocessors.decode_image(None), image=file)["image"]
        turned = preprocessors.upright(tf.constant(decoded), tf.constant(orientation, tf.int64))
        assert np.array_equal(turned, expected)


def test_originals_of_any_shape_become_centre_squares_of_their_corpus():
    wide = np.concatenate([np.zeros((48, 5, 3), np.uint8), _PHOTO, np.zeros((48, 6, 3), np.uint8)], axis=1)
    for size, source in ((48, 0), (16, 1)):
        original = {"image": wide[::-1], "orientation": np.int64(4), "source": np.int32(source)}  # 4: upside down.
        example = _run(preprocessors.fit([48, 16]), **original)
        assert set(example) == {"image", "source"}
        expected = np.asarray(Image.fromarray(_PHOTO).resize((size, size), Image.Resampling.BILINEAR))
        np.testing.assert_allclose(example["image"].astype(int), expected, atol=0 if size == 48 else 1)


@pytest.mark.parametrize("size", [24, 16, 12])
def test_resize_is_pillows_antialiased_one(size):
    expected = np.asarray(Image.fromarray(_PHOTO).resize((size, size), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(preprocessors.resize(tf.constant(_PHOTO), size), expected, atol=1)
    aliased = tf.image.resize(_PHOTO, (size, size), method="bilinear")
    assert np.abs(aliased - expected).max() > 4


def test_images_span_minus_one_to_one_and_keep_their_pixels_at_full_size():
    image = np.stack([np.arange(256, dtype=np.uint8).reshape(16, 16)] * 3, axis=-1)
    example = _run(preprocessors.make_images(16, None), image=image)
    assert set(example) == {"x0"}
    np.testing.assert_allclose(example["x0"], image.astype(np.float64) * 2 / 255 - 1, atol=1e-6)


def test_low_res_is_what_the_base_model_is_trained_on():
    pair = _run(preprocessors.make_images(24, 12), image=_PHOTO)
    base = _run(preprocessors.make_images(12, None), image=_PHOTO)
    assert pair["x0"].shape == (24, 24, 3)
    assert np.array_equal(pair["low_res"], base["x0"])


def test_low_res_of_a_black_and_white_edge_is_the_mean():
    image = np.zeros((8, 8, 3), np.uint8)
    image[:, 4:] = 255
    low_res = _run(preprocessors.make_images(8, 2), image=image)["low_res"]
    # A triangle of half-width 4, the reduction, around the first output pixel's centre, cut at the border.
    weights = np.clip(1 - np.abs(np.arange(8) - 1.5) / 4, 0, None)
    bright = weights[4:].sum() / weights.sum()
    np.testing.assert_allclose(low_res[:, 0], 2 * bright - 1, atol=1e-5)
    np.testing.assert_allclose(low_res[:, 1], 1 - 2 * bright, atol=1e-5)


_NUMBERED = np.arange(64).reshape(8, 8)


def _crops(mode: str, streams: list[tuple[int, int]]) -> list[np.ndarray]:
    image = tf.constant(_NUMBERED[..., None].repeat(3, axis=-1), tf.uint8)
    dataset = tf.data.Dataset.from_tensor_slices({"stream": np.array(streams, np.int64)})
    dataset = dataset.map(lambda one: {**one, "image": image}).map(preprocessors.crop(4, mode))
    return [example["image"][..., 0] for example in dataset.as_numpy_iterator()]


def test_centre_crop_and_no_crop():
    assert np.array_equal(_crops("centre", [(0, 0)]), [_NUMBERED[2:6, 2:6]])
    assert np.array_equal(_crops("none", [(0, 0)]), [_NUMBERED])


def test_random_crop_is_a_window_fixed_by_seed_and_number_and_reaches_every_place():
    streams = [(7, number) for number in range(300)]
    windows = _crops("random", streams)
    corners = [divmod(int(window[0, 0]), 8) for window in windows]
    for window, (top, left) in zip(windows, corners, strict=True):
        assert np.array_equal(window, _NUMBERED[top : top + 4, left : left + 4])
    assert set(corners) == {(top, left) for top in range(5) for left in range(5)}
    assert np.array_equal(_crops("random", streams[::-1]), windows[::-1])
    assert not np.array_equal(_crops("random", [(8, number) for number in range(300)]), windows)
