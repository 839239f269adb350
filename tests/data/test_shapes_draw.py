"""Drawing of shapes scenes, against areas and hues known in closed form."""

import colorsys

import numpy as np
import pytest

from imagen_jax.data import shapes
from imagen_jax.data.shapes import COLOURS, HUES, KINDS, SHAPES, Object, Scene
from imagen_jax.data.shapes_draw import BACKGROUNDS, BRIGHTNESSES, Placed, background, draw, layout, paint, to_uint8

# Areas of the outlines at radius 1.
_AREAS = {
    "sphere": np.pi,
    "ring": np.pi * (1 - 0.5**2),
    "cube": 1.84**2 - 0.24**2,
    "triangle": 0.98 * 1.78,
    "star": 10 * 0.5 * 0.44 * np.sin(np.pi / 5),
    "cross": 4 * 0.33 * (2 - 0.33),
}


def _painted(shape: str, colour: str, radius: float, size: int = 64) -> np.ndarray:
    image = np.full((size, size, 3), 0.5, np.float32)
    placed = Placed(object=Object(colour=colour, shape=shape), x=size / 2 + 0.3, y=size / 2 - 0.2, radius=radius)
    paint(image, placed, np.random.default_rng(0))
    return image


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("radius", [8.3, 15.0])
def test_areas_are_those_of_the_outlines(shape: str, radius: float) -> None:
    # The green channel of a red object on grey tells coverage, as shading leaves it low.
    image = _painted(shape, "red", radius)
    covered = image[..., 1] < 0.5
    lowest = np.median(image[..., 1][covered])
    coverage = np.clip((0.5 - image[..., 1]) / (0.5 - lowest), 0, 1)
    assert coverage.sum() == pytest.approx(_AREAS[shape] * radius**2, rel=0.05)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("colour", COLOURS)
def test_shading_leaves_the_hue_alone(shape: str, colour: str) -> None:
    image = _painted(shape, colour, 14.0)
    chroma = image.max(-1) - image.min(-1)
    inside = image[chroma > 0.55 * chroma.max()]
    assert len(inside) > 100
    hues = np.asarray([colorsys.rgb_to_hsv(*pixel)[0] * 360 for pixel in inside.tolist()])
    assert np.abs((hues - HUES[colour] + 180) % 360 - 180).max() < 4


def test_hues_can_be_told_apart() -> None:
    hues = np.sort(list(HUES.values()))
    assert np.diff([*hues, hues[0] + 360]).min() >= 25


def test_edges_are_smooth() -> None:
    image = _painted("sphere", "blue", 12.0)[..., 0]
    levels = np.unique(np.round(image, 2))
    assert len(levels) > 20


@pytest.mark.parametrize("kind", KINDS)
def test_objects_lie_apart_and_inside(kind: str) -> None:
    rng = np.random.default_rng(4)
    for _ in range(400):
        scene = shapes.sample_scene(rng, kind)
        places = layout(scene, rng)
        assert [one.object for one in places] == list(scene.drawn)
        for index, one in enumerate(places):
            assert min(one.x, one.y, 64 - one.x, 64 - one.y) >= one.radius + 1
            for other in places[:index]:
                apart = max(abs(one.x - other.x), abs(one.y - other.y)) - one.radius - other.radius
                assert apart >= 3
        if scene.relation is not None:
            dx, dy = places[0].x - places[1].x, places[0].y - places[1].y
            step = {"left": -dx, "right": dx, "above": -dy, "below": dy}[scene.relation]
            across = dy if scene.relation in ("left", "right") else dx
            assert step > 0 and abs(across) < 0.5 * step


def test_named_sizes_are_visible() -> None:
    rng = np.random.default_rng(0)
    for kind, relation, count in (("single", None, 1), ("two", "left", 2)):
        radii = {}
        for size in shapes.SIZES:
            pair = (
                Object(colour="red", shape="cube", size=size),
                Object(colour="blue", shape="ring", size=size),
            )
            scene = Scene(kind=kind, objects=pair[:count], count=count, relation=relation)
            radii[size] = [one.radius for _ in range(50) for one in layout(scene, rng)]
        assert max(radii["small"]) + 0.5 < min(radii["medium"])
        assert max(radii["medium"]) + 0.5 < min(radii["large"])


@pytest.mark.parametrize("kind", BACKGROUNDS)
def test_backgrounds_are_greyish_and_as_named(kind: str) -> None:
    rng = np.random.default_rng(5)
    for _ in range(50):
        image = background(rng, 64, kind)
        assert image.shape == (64, 64, 3) and image.min() >= 0 and image.max() <= 1
        assert (image.max(-1) - image.min(-1)).max() < 0.13
        assert (np.ptp(image, (0, 1)).max() == 0) == (kind == "plain")


def test_backgrounds_leave_a_gap_in_brightness_unless_they_may_have_any() -> None:
    found = {}
    for brightness in BRIGHTNESSES:
        rng = np.random.default_rng(7)
        drawn = [background(rng, 16, "plain", brightness).max() for _ in range(600)]
        assert 0.15 <= min(drawn) < 0.17 and 0.92 < max(drawn) <= 0.93
        found[brightness] = float(np.mean([0.35 < value < 0.7 for value in drawn]))
    # 0.35 of the range from 0.15 to 0.93.
    assert found["light_or_dark"] == 0 and abs(found["any"] - 0.45) < 0.07


def test_every_background_is_drawn() -> None:
    rng = np.random.default_rng(6)
    plain = np.mean([np.ptp(background(rng, 16), (0, 1)).max() == 0 for _ in range(600)])
    assert 0.6 < plain < 0.8


def test_the_same_generator_draws_the_same_pixels() -> None:
    scene = shapes.sample_scene(np.random.default_rng(0), "two")
    ours, theirs, other = (draw(scene, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert ours.dtype == np.uint8 and ours.shape == (64, 64, 3)
    np.testing.assert_array_equal(ours, theirs)
    assert np.any(ours != other)


@pytest.mark.parametrize("kind", KINDS)
def test_other_image_sizes_show_the_same_picture(kind: str) -> None:
    scene = shapes.sample_scene(np.random.default_rng(0), kind)
    small = draw(scene, np.random.default_rng(3), 64).astype(np.float32)
    large = draw(scene, np.random.default_rng(3), 128).astype(np.float32)
    assert np.abs(large.reshape(64, 2, 64, 2, 3).mean((1, 3)) - small).mean() < 2


def test_bytes_are_rounded_and_clipped() -> None:
    image = np.asarray([-0.1, 0.0, 0.4999 / 255, 0.5001 / 255, 1.0, 1.2]).reshape(1, 2, 3)
    np.testing.assert_array_equal(to_uint8(image).ravel(), [0, 0, 0, 1, 255, 255])
