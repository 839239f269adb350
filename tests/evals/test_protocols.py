"""Protocols: each way from a picture to Inception's pixels against Pillow or arithmetic, and the choice of captions."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from imagen_jax.errors import UserError
from imagen_jax.evals.features.resize import tf1_bilinear
from imagen_jax.evals.protocols import PROTOCOLS, Protocol, choose_captions, find_protocols


def photo(height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def made(**fields) -> Protocol:
    return Protocol(name="x", source="y", **fields)


@pytest.mark.parametrize(
    ("geometry", "box", "size"),
    [
        ("crop_then_resize", (20, 0, 100, 80), (64, 64)),
        ("stretch", (0, 0, 120, 80), (64, 64)),
        ("short_side_then_crop", (0, 0, 120, 80), (96, 64)),
    ],
)
def test_pictures_are_brought_to_size_as_pillow_does(geometry, box, size):
    picture = Image.fromarray(photo(80, 120))
    expected = picture.crop(box).resize(size, Image.Resampling.LANCZOS)
    left = (size[0] - 64) // 2
    got = made(image_size=64, geometry=geometry, filter="lanczos").at_size(np.asarray(picture))
    np.testing.assert_array_equal(got, np.asarray(expected.crop((left, 0, left + 64, 64))))


@pytest.mark.parametrize(("width", "left"), [(80, 0), (81, 0), (82, 1), (83, 2), (85, 2), (87, 4)])
def test_torchvisions_crop_begins_at_the_even_pixel(width, left):
    """Its center_crop, which GigaGAN's evaluation takes, begins at int(round(difference / 2))."""
    image = photo(80, width)
    record = made(image_size=80, geometry="torchvision_crop_then_resize")
    np.testing.assert_array_equal(record.at_size(image), image[:, left : left + 80])
    np.testing.assert_array_equal(record.at_size(image.swapaxes(0, 1)), image.swapaxes(0, 1)[left : left + 80])
    assert PROTOCOLS["clean_fid_30k"].geometry == PROTOCOLS["clean_fid_10k"].geometry == record.geometry


def test_references_are_those_of_the_publications():
    """GLIDE's table 2 and Imagen's section 4: the whole validation set; Mosaic: the captions' images."""
    assert {name for name, one in PROTOCOLS.items() if one.matched} == {"short_side_30k"}
    assert {name for name, one in PROTOCOLS.items() if one.split != "val2014"} == {"training_set_30k"}


def test_the_clean_resize_is_pillows_on_floats():
    image = photo(40, 40)
    got = made(image_size=40, resize="clean").prepare(image)
    for channel in range(3):
        one = Image.fromarray(image[..., channel].astype(np.float32)).resize((299, 299), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(got[..., channel], np.clip(np.asarray(one), 0, 255))


def test_bilinear_resizes_of_a_ramp():
    """A ramp stays one; TensorFlow 1 begins at the first pixel, PyTorch half a pixel's share before it."""
    ramp = np.broadcast_to(np.arange(0, 250, 2, dtype=np.uint8)[None, :, None], (125, 125, 3))
    places = np.arange(299) * 125 / 299
    got = made(image_size=125, resize="tf1").prepare(ramp)[0, :, 0]
    np.testing.assert_allclose(got, np.minimum(2 * places, 248), atol=1e-3)
    half = np.clip((np.arange(299) + 0.5) * 125 / 299 - 0.5, 0, 124)
    theirs = made(image_size=125, resize="pytorch").prepare(ramp)[0, :, 0]
    # pytorch-fid's network takes 2 x / 255 - 1 of the pixels.
    np.testing.assert_allclose((theirs - 128) / 128, 2 * (2 * half) / 255 - 1, atol=1e-5)


def test_images_as_they_are():
    image = photo(30, 50)
    got = PROTOCOLS["torch_fidelity"].prepare(image)
    np.testing.assert_array_equal(got, tf1_bilinear(image[None], 299)[0])


def test_every_record_is_frozen_named_and_sourced():
    assert len(PROTOCOLS) >= 8
    for name, one in PROTOCOLS.items():
        assert name == one.name and one.source
        assert set(one.assumed) <= {field.name for field in dataclasses.fields(one)}
        assert one.prepare(photo(50, 70)).shape == (299, 299, 3)
        with pytest.raises(dataclasses.FrozenInstanceError):
            one.seed = 3  # type: ignore[misc]
    assert find_protocols(["all"]) == tuple(PROTOCOLS.values())
    assert [one.name for one in find_protocols(["torch_fidelity", "imagen_30k", "torch_fidelity"])] == [
        "torch_fidelity",
        "imagen_30k",
    ]


def test_captions_are_chosen_the_same_everywhere():
    captions = {5: [52, 51], 3: [31, 32, 33], 9: [], 4: [41]}
    five = made(num_images=5)
    found = choose_captions(five, captions)
    assert found == choose_captions(five, dict(reversed(captions.items())))
    assert len(set(found.caption_ids)) == 5 and set(found.caption_ids) <= {31, 32, 33, 41, 51, 52}
    assert found != choose_captions(dataclasses.replace(five, seed=1), captions)
    # NumPy promises the numbers of its RandomState.
    assert found.caption_ids == (52, 33, 32, 41, 31)
    one_each = choose_captions(made(num_images=0, one_per_image=True), captions)
    assert sorted(number // 10 for number in one_each.caption_ids) == [3, 4, 5]
    with pytest.raises(UserError, match="draws 30000 captions, and there are 6"):
        choose_captions(made(), captions)


@pytest.mark.parametrize(
    "fields",
    [{"geometry": "squash"}, {"filter": "nearest"}, {"resize": "cv2"}, {"image_size": 0}, {"geometry": "as_is"}],
)
def test_wrong_records_are_refused(fields):
    with pytest.raises(UserError, match="Protocol"):
        made(**fields)


@pytest.mark.parametrize("names", [[], ["imagen"], ["all", "imagen"]])
def test_unknown_names_are_refused(names):
    with pytest.raises(UserError, match="imagen_30k"):
        find_protocols(names)
