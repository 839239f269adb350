"""Configs refuse what cannot be trained, and say what to do."""

import dataclasses

import pytest

from imagen_jax.errors import UserError
from imagen_jax.train.config import PreviewConfig
from tests.train.tiny_run import tiny_config, tiny_stage


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_steps": 0}, r"num_steps \(0\) must be an integer >= 1"),
        ({"batch_size": True}, "batch_size"),
        ({"keep_checkpoints": 0}, "keep_checkpoints"),
        ({"seed": -1}, "seed"),
        ({"ema_decay": 1.0}, r"ema_decay \(1.0\) must be in \[0, 1\)"),
        ({"resume": "a", "init_from": "b"}, "exclude each other"),
        ({"stage": tiny_stage(image_size=16)}, r"image_size \(8\) differs from the stage's \(16\)"),
        ({"stage": tiny_stage(max_text_length=5)}, r"max_text_length \(4\) differs from the stage's \(5\)"),
        ({"stage": tiny_stage(low_res_size=4)}, r"low_res_size \(None\) differs from the stage's \(4\)"),
        ({"stage": tiny_stage(text_embed_dim=8)}, "set it to 16"),
    ],
)
def test_bad_values_are_refused(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        tiny_config(tmp_path, **changes)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"every": 0, "captions": ("a",)}, "previews.every"),
        ({"every": 1, "num_images": 0}, "previews.num_images"),
    ],
)
def test_bad_grids_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        PreviewConfig(**values)


def test_one_string_is_no_list_of_captions():
    # gin passes wrong types; the type checks that the tests switch on would see this one first.
    config = PreviewConfig(every=1)
    object.__setattr__(config, "captions", "a red cube")
    with pytest.raises(UserError, match="must be a list of strings"):
        config.__post_init__()


def test_configs_are_frozen(tmp_path):
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiny_config(tmp_path).seed = 1  # type: ignore[misc]
