"""Wide and tall drawings: the same objects as far apart as on a square, read by the judge, scored beside squares."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from imagen_jax.data import shapes
from imagen_jax.data.shapes_canvas import CANVASES, RELATIONS_ON, canvas_size, holds, pick_canvas
from imagen_jax.data.shapes_draw import draw, layout
from imagen_jax.errors import UserError
from imagen_jax.evals.drawn_sizes import DrawnSizes, enlarged
from imagen_jax.evals.shapes_judge import judge, read
from imagen_jax.sampling.cascade import Cascade


@pytest.mark.parametrize("canvas", ["wide", "tall"])
def test_objects_are_as_large_and_as_far_apart_as_on_a_square(canvas: str) -> None:
    rng = np.random.default_rng(0)
    height, width = CANVASES[canvas]
    found = 0
    while found < 200:
        scene = shapes.sample_scene(rng)
        if not holds(canvas, scene):
            continue
        found += 1
        seed = int(rng.integers(2**31))
        square = layout(scene, np.random.default_rng(seed))
        other = layout(scene, np.random.default_rng(seed), canvas=canvas)
        for one, two in zip(square, other, strict=True):
            assert one.radius == two.radius
            assert (two.x - one.x, two.y - one.y) == pytest.approx(((width - 64) / 2, (height - 64) / 2))
            assert min(two.x, two.y, width - two.x, height - two.y) >= two.radius + 1


@pytest.mark.parametrize("image_size", [32, 64])
def test_the_judge_reads_drawings_of_every_canvas(image_size: int) -> None:
    found: dict[tuple[int, ...], list[bool]] = {}
    drawn = shapes.examples(3, "val", 300, image_size=image_size, wide_and_tall=True)
    for _, image, _, scene in drawn:
        found.setdefault(image.shape[:2], []).append(judge(image, scene).matches)
    assert set(found) == {canvas_size(canvas, image_size) for canvas in CANVASES}
    assert all(len(ones) > 50 and np.mean(ones) >= 0.98 for ones in found.values()), found


def test_scenes_and_captions_are_those_of_square_drawings() -> None:
    square, other = (list(shapes.examples(3, "val", 60, wide_and_tall=flag)) for flag in (False, True))
    assert [one[0] for one in square] == [one[0] for one in other]
    assert [one[2:] for one in square] == [one[2:] for one in other]
    for one, two in zip(square, other, strict=True):
        if two[1].shape == one[1].shape:
            np.testing.assert_array_equal(one[1], two[1])


def test_a_canvas_holds_what_fits_and_each_is_drawn() -> None:
    rng = np.random.default_rng(1)
    for _ in range(300):
        scene = shapes.sample_scene(rng)
        canvas = pick_canvas(scene, rng)
        if scene.kind in ("count", "three"):
            assert canvas == "square"
        if scene.relation is not None:
            assert scene.relation in RELATIONS_ON[canvas]
    with pytest.raises(UserError, match="multiple of 4"):
        canvas_size("wide", 18)


def test_pictures_that_are_too_small_to_read_are_refused() -> None:
    for shape in ((24, 39, 3), (30, 31, 3), (24, 40), (24, 40, 4)):
        with pytest.raises(UserError, match="image is"):
            read(np.zeros(shape, np.uint8))
    assert read(np.zeros((24, 40, 3), np.uint8)).objects == ()


class _Painter(Cascade):
    """Draws wide pictures as their captions say, and of others only every second."""

    def __init__(self) -> None:
        object.__setattr__(self, "stages", (SimpleNamespace(stage=SimpleNamespace(draw_size=32), config_hash="abc"),))
        object.__setattr__(self, "asked", [])

    def sample(self, prompts, *, seed, size, batch_size, label):
        canvas = next(name for name in CANVASES if canvas_size(name, 32) == size)
        self.asked.append((canvas, len(prompts)))
        scenes = {caption: scene for relations in RELATIONS_ON.values()
                  for caption, scene in shapes.eval_prompts(seed, 6, 6, 0, 4, relations)}  # fmt: skip
        blank = np.full((*size, 3), 200, np.uint8)
        rng = np.random.default_rng(0)
        return [
            np.stack([
                draw(scenes[prompt], rng, 32, canvas=canvas) if canvas == "wide" or number % 2 else blank
                for number, prompt in enumerate(prompts)
            ])
        ]  # fmt: skip


def test_shares_are_those_of_the_pictures(tmp_path) -> None:
    painter = _Painter()
    DrawnSizes(num_single=6, num_two=6, num_heldout=4).evaluate(painter, str(tmp_path))
    assert painter.asked == [("wide", 16), ("square", 16), ("tall", 16), ("square", 16)]
    found = json.loads((tmp_path / "sizes.json").read_text())
    assert found["wide"]["size"] == [24, 40] and found["tall"]["size"] == [40, 24]
    assert found["wide"]["at_size"]["matches"] == 1.0
    assert found["wide"]["square"]["matches"] == found["tall"]["at_size"]["matches"] == 0.5
    assert (tmp_path / "sizes" / "wide_as_square.png").is_file()


def test_enlarged_pictures_keep_their_shape() -> None:
    images = np.arange(2 * 12 * 20 * 3, dtype=np.uint8).reshape(2, 12, 20, 3)
    assert enlarged(images, 4).shape == (2, 48, 80, 3)
    np.testing.assert_array_equal(enlarged(images, 1), images)
