"""Pixels, sheets, and PNG files that carry their origin."""

import json

import numpy as np
import pytest
from PIL import Image

from imagen_jax.errors import UserError
from imagen_jax.sampling import images


def test_conversion_is_the_inverse_of_scaling_and_clips() -> None:
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    np.testing.assert_array_equal(images.to_uint8(images.from_uint8(pixels)), pixels)
    assert images.to_uint8(np.full((1, 1, 1, 3), 3.0, np.float32)).max() == 255
    assert images.to_uint8(np.full((1, 1, 1, 3), -3.0, np.float32)).max() == 0


def test_grid_puts_each_image_in_its_place() -> None:
    tiles = [np.full((2, 3, 3), value, np.uint8) for value in (10, 20, 30)]
    sheet = images.sheet(tiles, 2, gap=1)
    assert sheet.shape == (2 * 3 + 1, 2 * 4 + 1, 3)
    assert (sheet[1:3, 5:8] == 20).all() and (sheet[4:6, 1:4] == 30).all() and (sheet[4:6, 5:8] == 255).all()


def test_enlarge_repeats_pixels() -> None:
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    grown = images.enlarge(image, 3)
    assert grown.shape == (6, 6, 3)
    np.testing.assert_array_equal(grown[::3, ::3], image)
    np.testing.assert_array_equal(grown[2::3, 2::3], image)


def test_png_carries_text_and_pixels(tmp_path) -> None:
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    path = tmp_path / "new" / "a.png"
    images.write_png(str(path), image, {"prompt": "ein Würfel ☃", "seed": 3, "guidance_weight": [1.5, 1.0]})
    with Image.open(path) as read:
        np.testing.assert_array_equal(np.asarray(read), image)
        assert read.text["prompt"] == "ein Würfel ☃"
        assert json.loads(read.text["guidance_weight"]) == [1.5, 1.0]
    assert [entry.name for entry in path.parent.iterdir()] == ["a.png"]


def test_a_failed_write_leaves_the_old_picture(tmp_path, monkeypatch) -> None:
    image = np.zeros((2, 2, 3), np.uint8)
    path = tmp_path / "a.png"
    images.write_png(str(path), image)
    before = path.read_bytes()

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(images.os, "replace", full_disk)
    with pytest.raises(OSError, match="No space"):
        images.write_png(str(path), image + 9)
    assert path.read_bytes() == before


def test_any_kind_of_file_becomes_three_channels_of_the_asked_size(tmp_path) -> None:
    grey = np.linspace(0, 255, 48 * 64).reshape(48, 64)
    colour = np.stack([grey, grey[::-1], np.full_like(grey, 90)], axis=-1).astype(np.uint8)
    half = np.full((48, 64), 51, np.uint8)
    kinds = {
        "plain": (Image.fromarray(colour), colour),
        # A fifth of the colour, four fifths of white.
        "alpha": (Image.fromarray(np.dstack([colour, half])), 0.2 * colour + 0.8 * 255),
        "deep": (Image.fromarray((grey * 257).astype(np.uint16)), np.dstack([grey] * 3)),
        "grey": (Image.fromarray(grey.astype(np.uint8)), np.dstack([grey] * 3)),
    }
    for kind, (image, expected) in kinds.items():
        path = str(tmp_path / f"{kind}.png")
        image.save(path)
        read = images.fitted(images.read_image(path), (48, 64))
        assert read.dtype == np.float32
        np.testing.assert_allclose((read + 1) * 127.5, expected, atol=1.01)
        assert images.fitted(images.read_image(path), (32, 40)).shape == (32, 40, 3)
    (tmp_path / "broken.png").write_bytes(b"no image")
    for name in ("broken.png", "absent.png"):
        with pytest.raises(UserError, match="cannot be read"):
            images.read_image(str(tmp_path / name))


def test_a_mask_made_smaller_marks_whatever_was_marked(tmp_path) -> None:
    pixels = np.zeros((40, 60), np.uint8)
    pixels[11, 29] = 255
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    image = Image.new("RGB", (60, 40))
    mask = images.read_mask(str(tmp_path / "mask.png"), image)
    assert np.argwhere(images.fitted_mask(mask, (40, 60))).tolist() == [[11, 29]]
    assert np.argwhere(images.fitted_mask(mask, (4, 6))).tolist() == [[1, 2]]
    with pytest.raises(UserError, match="is 60x40 pixels, the image 60x41"):
        images.read_mask(str(tmp_path / "mask.png"), Image.new("RGB", (60, 41)))


def test_what_an_image_says_of_itself_reads_back(tmp_path) -> None:
    info = {"prompt": "a “red” cube", "seed": 3, "stages": ["base"], "size": (4, 6)}
    images.write_png(str(tmp_path / "x.png"), np.zeros((4, 6, 3), np.uint8), info)
    assert images.read_info(str(tmp_path / "x.png")) == images.as_info(info)
    assert images.read_info(str(tmp_path / "none.png")) == {}
