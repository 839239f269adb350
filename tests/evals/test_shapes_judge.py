"""The shapes judge: says yes to what was drawn, also blurred, and no to what was spoilt."""

import dataclasses
from collections.abc import Callable, Sequence, Set

import numpy as np
import pytest
from scipy import ndimage

from imagen_jax.data import shapes
from imagen_jax.data.shapes import COLOURS, HUES, SHAPES, Object, Scene
from imagen_jax.data.shapes_draw import BACKGROUNDS, Placed, background, layout, paint, to_uint8
from imagen_jax.errors import UserError
from imagen_jax.evals.shapes_judge import Verdict, alignment, category, chance_both, judge, read

Picture = tuple[Scene, list[Placed], np.ndarray]
NUM_PICTURES = 1040


def _render(canvas: np.ndarray, places: Sequence[Placed], seed: int = 0) -> np.ndarray:
    image, rng = canvas.copy(), np.random.default_rng(seed)
    for placed in places:
        paint(image, placed, rng)
    return to_uint8(image)


@pytest.fixture(scope="module")
def pictures() -> list[Picture]:
    """Scenes of all kinds, held-out ones among them, on all backgrounds."""
    rng = np.random.default_rng(11)
    drawn = []
    for index in range(NUM_PICTURES):
        kind = shapes.KINDS[index % 4]
        scene = shapes.sample_scene(rng, kind, heldout=index % 8 < 2)
        drawn.append((scene, layout(scene, rng), background(rng, 64, BACKGROUNDS[index % 5])))
    return drawn


def _blur(image: np.ndarray) -> np.ndarray:
    halved = image.astype(np.float64).reshape(32, 2, 32, 2, 3).mean((1, 3))
    doubled = ndimage.zoom(halved, (2, 2, 1), order=1, grid_mode=True, mode="nearest")
    return np.round(doubled).astype(np.uint8)


@pytest.mark.parametrize("change, at_least", [(lambda image: image, 0.995), (_blur, 0.97)])
def test_it_reads_what_was_drawn(
    pictures: list[Picture], change: Callable[[np.ndarray], np.ndarray], at_least: float
) -> None:
    parts: dict[str, list[bool]] = {}
    for index, (scene, places, canvas) in enumerate(pictures):
        verdict = judge(change(_render(canvas, places, index)), scene)
        for name, value in dataclasses.asdict(verdict).items():
            if value is not None:
                parts.setdefault(name, []).append(value)
    rates = {name: np.mean(values) for name, values in parts.items()}
    assert set(rates) == {"colour", "shape", "both", "count", "binding", "relation", "matches"}
    assert min(rates.values()) >= at_least, rates


def test_it_finds_places_and_sizes(pictures: list[Picture]) -> None:
    for index, (_, places, canvas) in enumerate(pictures[:120]):
        seen = read(_render(canvas, places, index)).objects
        for placed in places:
            nearest = min(seen, key=lambda one: np.hypot(one.x - placed.x, one.y - placed.y))
            assert nearest.pair == placed.object.pair
            # The triangle's and the star's bounding boxes are not centred on their circumcircles.
            assert np.hypot(nearest.x - placed.x, nearest.y - placed.y) < 1 + 0.12 * placed.radius
            assert 1.7 * placed.radius - 1 < nearest.size < 2 * placed.radius + 2


@pytest.mark.parametrize("size", [48, 128])
def test_it_reads_other_image_sizes(size: int) -> None:
    found = [judge(image, scene).matches for _, image, _, scene in shapes.examples(1, "val", 60, image_size=size)]
    assert np.mean(found) >= 0.97


def _replaced(places: list[Placed], index: int, **changes: str) -> list[Placed]:
    new = dataclasses.replace(places[index], object=dataclasses.replace(places[index].object, **changes))
    return [*places[:index], new, *places[index + 1 :]]


def _others(names: Sequence[str], name: str, index: int) -> str:
    return [other for other in names if other != name][index % (len(names) - 1)]


def _said_no(verdicts: list[Verdict], no: Set[str], yes: Set[str] = frozenset()) -> None:
    assert len(verdicts) >= 120
    for name in no:
        assert np.mean([bool(getattr(one, name)) for one in verdicts]) <= 0.01, name
    for name in yes:
        assert np.mean([getattr(one, name) for one in verdicts]) >= 0.99, name


def test_an_erased_object_is_missed(pictures: list[Picture]) -> None:
    verdicts = [judge(_render(canvas, places[1:]), scene) for scene, places, canvas in pictures[:200]]
    _said_no(verdicts, {"colour", "shape", "both", "count", "binding", "relation", "matches"})


def test_a_wrong_colour_is_seen(pictures: list[Picture]) -> None:
    verdicts = []
    for index, (scene, places, canvas) in enumerate(pictures[:240]):
        colour = _others(COLOURS, places[-1].object.colour, index)
        verdicts.append(judge(_render(canvas, _replaced(places, -1 % len(places), colour=colour)), scene))
    _said_no(verdicts, {"colour", "both", "binding", "relation", "matches"}, {"shape", "count"})


def test_a_wrong_shape_is_seen(pictures: list[Picture]) -> None:
    verdicts = []
    for index, (scene, places, canvas) in enumerate(pictures[:240]):
        shape = _others(SHAPES, places[0].object.shape, index)
        verdicts.append(judge(_render(canvas, _replaced(places, 0, shape=shape)), scene))
    _said_no(verdicts, {"shape", "both", "binding", "relation", "matches"}, {"colour", "count"})


def test_swapped_colours_break_the_binding_alone(pictures: list[Picture]) -> None:
    verdicts = []
    for scene, places, canvas in pictures:
        if scene.kind == "two" and len({one.object.colour for one in places}) == 2:
            colours = [one.object.colour for one in places]
            if places[0].object.shape != places[1].object.shape:
                swapped = _replaced(_replaced(places, 0, colour=colours[1]), 1, colour=colours[0])
                verdicts.append(judge(_render(canvas, swapped), scene))
    _said_no(verdicts, {"both", "binding", "relation", "matches"}, {"colour", "shape", "count"})


def test_swapped_places_break_the_relation_alone(pictures: list[Picture]) -> None:
    verdicts = []
    for scene, places, canvas in pictures:
        if scene.kind == "two":
            first, second = places
            swapped = [
                dataclasses.replace(first, x=second.x, y=second.y, radius=second.radius),
                dataclasses.replace(second, x=first.x, y=first.y, radius=first.radius),
            ]
            verdicts.append(judge(_render(canvas, swapped), scene))
    _said_no(verdicts, {"relation", "matches"}, {"colour", "shape", "both", "binding", "count"})


def test_beside_is_not_above(pictures: list[Picture]) -> None:
    verdicts = []
    for scene, places, canvas in pictures:
        if scene.kind == "two":
            turned = [dataclasses.replace(one, x=one.y, y=one.x) for one in places]
            verdicts.append(judge(_render(canvas, turned), scene))
    _said_no(verdicts, {"relation", "matches"}, {"both", "binding"})


def test_an_object_too_many_is_seen(pictures: list[Picture]) -> None:
    rng = np.random.default_rng(0)
    verdicts = []
    for index, (scene, places, canvas) in enumerate(pictures[:320]):
        for x, y in rng.uniform(9, 55, (60, 2)):
            if all(max(abs(one.x - x), abs(one.y - y)) > one.radius + 10 for one in places):
                # Every other one is a copy: repeating what was asked for once is wrong, too.
                other = Object(colour=COLOURS[index % 8], shape=SHAPES[index % 6])
                extra = Placed(object=places[0].object if index % 2 else other, x=x, y=y, radius=7.5)
                verdicts.append(judge(_render(canvas, [*places, extra]), scene))
                break
    _said_no(verdicts, {"colour", "shape", "both", "count", "binding", "relation", "matches"})


def test_a_half_recoloured_object_is_not_its_colour(pictures: list[Picture]) -> None:
    verdicts = []
    for index, (scene, places, canvas) in enumerate(pictures[:200]):
        colour = _others(COLOURS, places[0].object.colour, index)
        right, wrong = _render(canvas, places), _render(canvas, _replaced(places, 0, colour=colour))
        verdicts.append(judge(np.where(np.arange(64)[None, :, None] < places[0].x, right, wrong), scene))
    _said_no(verdicts, {"colour", "shape", "both", "matches"})


def test_a_half_erased_object_is_not_its_shape(pictures: list[Picture]) -> None:
    verdicts = []
    for scene, places, canvas in pictures[:200]:
        right, without = _render(canvas, places), _render(canvas, places[1:])
        # Cut aslant: half a triangle cut level is a triangle still.
        kept = np.add.outer(np.arange(64) - places[0].y, np.arange(64) - places[0].x) < 0
        verdicts.append(judge(np.where(kept[..., None], right, without), scene))
    _said_no(verdicts, {"shape", "both", "matches"})


def test_heavy_noise_hides_everything(pictures: list[Picture]) -> None:
    rng = np.random.default_rng(0)
    verdicts = []
    for scene, places, canvas in pictures[:120]:
        noisy = _render(canvas, places) / 255 + rng.normal(0, 0.5, (64, 64, 3))
        verdicts.append(judge(to_uint8(noisy), scene))
    _said_no(verdicts, {"both", "matches"})


def test_noise_alone_shows_nothing(pictures: list[Picture]) -> None:
    rng = np.random.default_rng(0)
    verdicts = []
    for index, (scene, _, _) in enumerate(pictures[:120]):
        noise = rng.uniform(0, 1, (64, 64, 3))
        # Blobs of all sizes: the scale of objects is the hardest.
        smooth = ndimage.gaussian_filter(noise, (index % 6, index % 6, 0))
        spread = (smooth - smooth.mean()) / smooth.std() * 0.3 + 0.5
        verdicts.append(judge(to_uint8(spread), scene))
    _said_no(verdicts, {"shape", "both", "matches"})


@pytest.mark.parametrize("kind", BACKGROUNDS)
def test_a_blank_background_shows_nothing(kind: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        assert read(to_uint8(background(rng, 64, kind))).objects == ()


@pytest.mark.parametrize("colour", COLOURS)
def test_a_picture_full_of_colour_is_no_shape(colour: str) -> None:
    canvas = np.full((64, 64, 3), 0.8, np.float32)
    paint(
        canvas,
        Placed(object=Object(colour=colour, shape="cube"), x=32.0, y=32.0, radius=60.0),
        np.random.default_rng(0),
    )
    assert [one.shape for one in read(to_uint8(canvas)).objects] in ([None], [])


def _outline(name: str) -> np.ndarray:
    """Signed distances of outlines that the corpus does not hold."""
    y, x = np.mgrid[:64, :64] + 0.5 - 32.2
    if name == "saltire":
        arms = np.abs(x + y) / np.sqrt(2), np.abs(x - y) / np.sqrt(2)
        return np.maximum(np.minimum(*arms) - 4, np.maximum(*arms) - 14)
    return {
        "diamond": (np.abs(x) + np.abs(y) - 15) / np.sqrt(2),
        "bar": np.maximum(np.abs(x) - 14, np.abs(y) - 6),
        "ellipse": (np.hypot(x / 15, y / 9) - 1) * 9,
        "half disc": np.maximum(np.hypot(x, y) - 14, y),
        "crescent": np.maximum(np.hypot(x, y) - 14, 11 - np.hypot(x - 8, y)),
        "frame": np.abs(np.maximum(np.abs(x), np.abs(y)) - 10) - 3,
        "upside-down triangle": np.maximum(np.maximum((2 * x + y - 10) / 2.2, (y - 2 * x - 10) / 2.2), -y - 10),
    }[name]


@pytest.mark.parametrize(
    "name", ["diamond", "bar", "ellipse", "half disc", "crescent", "frame", "saltire", "upside-down triangle"]
)
def test_unknown_outlines_are_no_shape(name: str) -> None:
    coverage = np.clip(0.5 - _outline(name), 0, 1)[..., None]
    image = to_uint8((1 - coverage) * 0.8 + coverage * np.asarray([0.1, 0.2, 0.9]))
    (seen,) = read(image).objects
    assert seen.pair == ("blue", None)


def test_a_hue_between_two_is_no_colour() -> None:
    between = (HUES["yellow"] + HUES["green"]) / 2
    y, x = np.mgrid[:64, :64] + 0.5 - 32
    coverage = np.clip(12 - np.hypot(x, y), 0, 1)[..., None]
    lime = np.asarray([1 - (between - 60) / 60, 1.0, 0.0])
    (seen,) = read(to_uint8((1 - coverage) * 0.7 + coverage * lime)).objects
    assert seen.pair == (None, "sphere")


@pytest.mark.parametrize(
    "shape, dtype",
    [((64, 64, 3), np.float32), ((64, 64, 4), np.uint8), ((64, 64), np.uint8), ((16, 16, 3), np.uint8)],
)
def test_other_arrays_are_refused(shape: tuple[int, ...], dtype: type) -> None:
    with pytest.raises(UserError, match="expected"):
        read(np.zeros(shape, dtype))


def test_alignment_counts_each_part_in_its_category() -> None:
    yes = Verdict(colour=True, shape=True, both=True, count=True, binding=True, relation=True, matches=True)
    no = Verdict(colour=True, shape=False, both=False, count=False, binding=False, relation=False, matches=False)
    half = dataclasses.replace(yes, relation=False, matches=False)
    got = alignment({"single": [yes, yes, yes, no], "two": [half, yes], "count": [no], "heldout": [no, no, yes, no]})
    assert got == {
        "single_colour": 1.0,
        "single_shape": 0.75,
        "single_both": 0.75,
        "two_colour_binding": 1.0,
        "two_relation": 0.5,
        "count": 0.0,
        "heldout_both": 0.25,
    }
    assert alignment({"count": [yes], "two": []}) == {"count": 1.0}


def test_categories() -> None:
    prompts = shapes.eval_prompts(0, 3, 2, 1, 2)
    assert [category(scene) for _, scene in prompts] == [
        *["single"] * 3,
        *["two"] * 2,
        "count",
        *["heldout"] * 2,
    ]


def test_chance_is_that_of_drawing_the_same_pair_twice() -> None:
    scenes, images = [], []
    rng = np.random.default_rng(9)
    for _ in range(600):
        scenes.append(shapes.sample_scene(rng, "single"))
        images.append(shapes.draw(scenes[-1], rng))
    # 42 equally likely pairs; three standard deviations of 600 trials are 0.019.
    assert chance_both(images, scenes, seed=0) == pytest.approx(1 / 42, abs=0.019)
    with pytest.raises(UserError, match="scenes"):
        chance_both(images[:2], scenes[:1], seed=0)
