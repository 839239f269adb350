"""What is asked of a cascade: numbers that agree, masks that say something, images at every stage's size."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from imagen_jax.cost import memory
from imagen_jax.errors import UserError
from imagen_jax.sampling.loading import size_unit, stage_sizes
from imagen_jax.sampling.request import EditRequest, Request, seeds_and_ids, with_border
from imagen_jax.stage.spec import Stage
from tests.tiny import BASE, SR

# BASE halves once (8 pixels), SR twice (4 → 8): together 8-pixel base images and 16-pixel ones above.
WIDER = dataclasses.replace(SR, low_res_size=4, image_size=8, full_size=16)


def test_sizes_of_all_stages_follow_from_the_last() -> None:
    assert size_unit([BASE, WIDER]) == 4
    assert stage_sizes([BASE, WIDER], None) == [(8, 8), (16, 16)]
    assert stage_sizes([BASE, WIDER], (12, 20)) == [(6, 10), (12, 20)]
    assert stage_sizes([BASE], (6, 2)) == [(6, 2)]
    with pytest.raises(UserError, match=r"width \(18\) must be a multiple of 4.*16 or 20"):
        stage_sizes([BASE, WIDER], (12, 18))
    for side in (1 << 17, 2**31, 10**30):
        with pytest.raises(UserError, match=rf"width \({side}\) must be at most 65536 pixels"):
            stage_sizes([BASE, WIDER], (12, side))


def test_full_size_is_the_whole_of_what_is_trained_on() -> None:
    assert WIDER.draw_size == 16 and SR.draw_size == 8 and WIDER.scale == 2
    with pytest.raises(UserError, match="full_size"):
        dataclasses.replace(SR, full_size=4)
    with pytest.raises(UserError, match="full_size"):
        dataclasses.replace(SR, full_size=10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": []}, "no prompts"),
        ({"prompts": "a cube"}, r"write \['a cube'\]"),
        ({"seed": [1]}, "1 seeds for 2 images"),
        ({"seed": -1}, r"seed \(-1\)"),
        ({"seed": [3, 2**32]}, r"seed \(4294967296\)"),
        ({"negative_prompts": ["x"]}, "1 negative_prompts for 2 prompts"),
        ({"low_res": np.zeros((1, 4, 4, 3), np.float32)}, "1 low_res for 2 prompts"),
        ({"low_res": np.zeros((2, 4, 4, 3), np.uint8)}, "uint8"),
        ({"low_res": np.full((2, 4, 4, 3), 255.0, np.float32)}, "go from 0 to 255"),
        ({"low_res": np.zeros((2, 4, 4, 4), np.float32)}, r"expected float \[n, h, w, 3\]"),
    ],
)
def test_requests_that_do_not_agree_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Request(**{"prompts": ["a cube", "a ring"], **change})


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (np.zeros((1, 8, 8), bool), "all zeros"),
        (np.ones((1, 8, 8), bool), "all ones"),
        (np.zeros((1, 4, 8), bool), "must have its image's height and width"),
    ],
)
def test_masks_that_say_nothing_are_refused(masks: np.ndarray, message: str) -> None:
    with pytest.raises(UserError, match=message):
        EditRequest(images=np.zeros((1, 8, 8, 3), np.float32), masks=masks)


def test_one_seed_for_all_or_one_for_each() -> None:
    seeds, ids = seeds_and_ids(7, 3)
    assert seeds.tolist() == [7, 7, 7] and ids.tolist() == [0, 1, 2]
    seeds, ids = seeds_and_ids([7, 2**32 - 1], 2)
    assert seeds.tolist() == [7, 2**32 - 1] and ids.tolist() == [0, 0]


def test_smaller_stages_see_smaller_images_and_every_marked_pixel() -> None:
    images = np.full((2, 8, 8, 3), -0.5, np.float32)
    images[1] = 0.25
    masks = np.zeros((2, 8, 8), bool)
    masks[:, 3, 5] = True
    edit = EditRequest(images=images, masks=masks).at(np.array([1, 0]), 4)
    np.testing.assert_allclose(edit.image[0], 0.25, atol=1e-6)
    np.testing.assert_allclose(edit.image[1], -0.5, atol=1e-6)
    assert np.argwhere(np.asarray(edit.mask)[0, :, :, 0]).tolist() == [[0, 1]]


def test_a_border_is_what_is_to_be_drawn() -> None:
    image = np.linspace(-1, 1, 48, dtype=np.float32).reshape(1, 4, 4, 3)
    canvas, masks = with_border(image, (0, 2, 3, 1))
    assert canvas.shape == (1, 6, 8, 3)
    np.testing.assert_array_equal(canvas[:, :4, 3:7], image)
    assert masks.sum() == 6 * 8 - 16 and not masks[0, :4, 3:7].any()
    for border in ((0, 0, 0, 0), (1, -1, 0, 0), (1, 2, 3), (0, 0, 2**31, 0), (1 << 16, 0, 0, 0)):
        with pytest.raises(UserError, match="border"):
            with_border(image, border)


@pytest.mark.parametrize("stage", [BASE, SR])
def test_estimated_memory_is_near_what_the_compiler_takes(stage: Stage) -> None:
    from imagen_jax.sampling.drawing import activation_bytes
    from imagen_jax.sampling.stage_sampler import trace_sampler
    from imagen_jax.sharding.rules import unbox
    from imagen_jax.stage.guided import lay_out_steps
    from imagen_jax.stage.sampling_config import SamplingConfig

    stage = dataclasses.replace(stage, image_size=64, low_res_size=None if stage is BASE else 16)
    config = SamplingConfig(num_steps=4, guidance_weight=2.0)
    _, settings = lay_out_steps(stage, config, (64, 64), None)
    estimate = activation_bytes(stage, settings, 16)
    params = unbox(jax.eval_shape(stage.init, jax.random.key(0)))
    stats = trace_sampler(stage, config, params, 16).lower().compile().memory_analysis()
    assert 0.5 < estimate / stats.temp_size_in_bytes < 2.5


def test_bytes_of_intermediate_values() -> None:
    def chain(x):
        y = x @ x  # 4 bytes x 64 x 64
        z = y @ y
        return (z @ z).sum()

    side = 4 * 64 * 64
    x = jax.ShapeDtypeStruct((64, 64), np.float32)
    # Two of y, z and z @ z at a time, never all three.
    assert memory.peak_bytes(chain, x) == 2 * side
    assert memory.peak_bytes(jax.jit(chain), x) == 2 * side
    assert memory.tree_bytes({"a": x, "b": [x]}) == 2 * side
    assert memory.device_bytes() > 2**20
