"""The bad input that people give the console command: each is told in one error."""

import shutil
from pathlib import Path

import pytest

from imagen_jax.checkpoints import folders
from imagen_jax.main import main
from tests.integration.running import one_error, train_stage


@pytest.mark.parametrize(
    ("macros", "parts"),
    [
        ({"IMAGE_SIZE": 17}, ["image_size (17)", "divisible by 2", "choose 16 or 18"]),
        ({"BATCH_SIZE": 0}, ["batch_size (0)", "must be an integer >= 1"]),
        ({"LEARNING_RAT": 1}, ["LEARNING_RAT", "LEARNING_RATE"]),
        ({"TrainConfig.num_step": 3}, ["num_step"]),
        ({"STORE_DIR": "/nowhere/store"}, ["/nowhere/store"]),
        ({"t5.T5Config.mlp_dim": 24}, ["mlp_dim"]),
        ({"encoder.TextConfig.seed": 5}, ["encoder"]),
    ],
)
def test_bad_settings_are_told_in_one_error(root: Path, tmp_path: Path, capsys, macros: dict, parts: list[str]) -> None:
    assert train_stage(root, "base", MODEL_DIR=tmp_path / "new", **macros) == 2
    error = one_error(capsys)
    for part in parts:
        assert part in error
    assert not (tmp_path / "new" / "checkpoints").exists()


def test_a_checkpoint_of_another_model_names_every_difference(root: Path, capsys) -> None:
    config = (root / "base" / "config.gin").read_bytes()
    assert train_stage(root, "base", **{"unet.UNet.emb_dim": 24, "NUM_STEPS": 6}) == 2
    assert (root / "base" / "config.gin").read_bytes() == config
    error = one_error(capsys)
    assert "params.embedder.noise_in.kernel" in error and "params.embedder.noise_out.bias" in error
    assert folders.saved_steps(root / "base")[-1] == 4


def test_a_flipped_byte_in_a_checkpoint_is_named(root: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(root / "base", tmp_path / "base")
    victim = max((tmp_path / "base" / "checkpoints" / "checkpoint_4").rglob("*"), key=lambda p: p.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    assert main(["sample", "--checkpoint", str(tmp_path / "base"), "--output", str(tmp_path / "x"), "a cube"]) == 2
    error = one_error(capsys)
    assert victim.name in error and "rename it to checkpoint_4.damaged" in error and "elete" not in error
    assert not (tmp_path / "x").exists()


def test_stages_that_do_not_fit_are_refused(root: Path, tmp_path: Path, capsys) -> None:
    assert main(["sample", "--checkpoint", str(tmp_path), "--output", str(tmp_path / "x"), "a cube"]) == 2
    assert "no trained stage" in one_error(capsys)
    assert main(["train", "--gin_file=configs/experiments/absent.gin"]) == 2
    assert "absent.gin" in one_error(capsys)
