"""The console command from corpus to report on a cascade of two tiny stages."""

import contextlib
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagen_jax import gin_config
from imagen_jax.checkpoints import folders
from imagen_jax.data.pipeline import BatchIterator
from imagen_jax.errors import UserError
from imagen_jax.main import main
from imagen_jax.sampling.cascade import Cascade
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.train.config import TrainConfig
from imagen_jax.train.loop import train
from tests.integration.running import flags_of, one_error, train_stage


def test_run_directories_hold_what_they_should(root: Path) -> None:
    for stage in ("base", "sr"):
        run = root / stage
        steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert steps == [2, 4]
        assert folders.saved_steps(run) == [2, 4]
        assert (run / "samples" / "step_4.png").is_file() and (run / "model-info.txt").is_file()
        assert "NUM_STEPS = 4" in (run / "config.gin").read_text()


def test_sampling_writes_pictures_that_carry_their_origin(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "drawn"
    draw = ["sample", "--checkpoint", str(root), "--output", str(out), "--seed", "3", "--guidance_weight", "2.5"]
    assert main([*draw, "a red cube", "a blue ring"]) == 0
    with Image.open(out / "00001.png") as image:
        assert image.size == (64, 64)
        assert image.text["prompt"] == "a blue ring" and image.text["seed"] == "3"
        assert json.loads(image.text["guidance_weight"]) == [2.5, 1.0]
    with Image.open(out / "00001_base.png") as image:
        assert image.size == (16, 16)
    assert (tmp_path / "drawn.png").is_file()
    assert main([*draw, "a green cube"]) == 2  # Nothing is overwritten unasked.
    assert main([*draw, "--overwrite", "--stage", "base", "a red cube"]) == 0
    with Image.open(out / "00000.png") as image:
        assert image.size == (16, 16)


@pytest.mark.slow
def test_a_distilled_stage_is_drawn_as_it_was_taught(root: Path, tmp_path: Path, capsys) -> None:
    """No flag says how to draw a student."""
    run, macros = tmp_path / "student", {"TrainConfig.previews": None}
    flags = flags_of(root, MODEL_DIR=run, TEACHER_DIR=root / "base", **macros)
    assert main(["train", "--gin_file=tests/integration/tiny_distill.gin", *flags]) == 0
    assert f"starts from the averaged parameters of {root / 'base'}" in capsys.readouterr().err
    (loaded,) = Cascade.load(str(run)).stages
    assert (loaded.sampling.num_steps, loaded.sampling.guidance_weight) == (2, 1.0)
    assert main(["sample", "--checkpoint", str(run), "--output", str(run / "drawn"), "a red cube"]) == 0
    with Image.open(run / "drawn" / "00000.png") as image:
        assert json.loads(image.text["guidance_weight"]) == [1.0]
    flags = flags_of(root, MODEL_DIR=tmp_path / "none", TEACHER_DIR=tmp_path / "nowhere", **macros)
    assert main(["train", "--gin_file=tests/integration/tiny_distill.gin", *flags]) == 2
    assert "no checkpoint under" in one_error(capsys)


@pytest.mark.slow
def test_captions_may_be_encoded_as_they_are_read(root: Path, tmp_path: Path, capsys) -> None:
    """STORE_DIR = None: the batches, and so the whole run, are those of the store."""
    bindings, _ = gin_config.split_gin_flags(flags_of(root, MODEL_DIR=tmp_path / "base", STORE_DIR=None))
    config = gin_config.load(TrainConfig, ["tests/integration/tiny_base.gin"], bindings)
    assert config.data.store_dir is None
    options = {"batch_size": 16, "seed": 3, "start_step": 2, "encoder": TextEncoder(config.text)}
    stored = dataclasses.replace(config.data, store_dir=str(root / "store"))
    batches = [BatchIterator(data, **options) for data in (config.data, stored)]
    for one in batches:
        with contextlib.closing(one):
            one.rows = [next(one) for _ in range(2)]
    for live, cached in zip(*(one.rows for one in batches), strict=True):
        np.testing.assert_array_equal(live["text_mask"], cached["text_mask"])
        np.testing.assert_allclose(live["text"], cached["text"], atol=2e-5)
        np.testing.assert_array_equal(live["x0"], cached["x0"])
    train(config)
    runs = (root / "base", tmp_path / "base")
    losses = [[json.loads(line)["loss"] for line in (run / "metrics.jsonl").open()] for run in runs]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    with pytest.raises(UserError, match="there is no encoder"):
        BatchIterator(config.data, **options | {"encoder": None})
    with pytest.raises(UserError, match="max_length \\(24\\) must be at most"):
        short = {"stage": dataclasses.replace(config.stage, max_text_length=9)}
        dataclasses.replace(config, data=dataclasses.replace(config.data, max_text_length=9), **short)


@pytest.mark.slow
def test_null_text_may_be_the_embedding_of_no_words_and_negative_prompts_take_its_place(
    root: Path, tmp_path: Path, capsys
) -> None:
    flags = {"MODEL_DIR": tmp_path / "base", "spec.Stage.null_text": "empty", "Stage.cond_drop_rate": 0.9}
    assert train_stage(root, "base", **flags) == 0
    runs = (root / "base", tmp_path / "base")
    losses = [json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["loss"] for run in runs]
    assert losses[0] != losses[1]
    cascade = Cascade.load(str(tmp_path / "base")).configure(lambda _, s: dataclasses.replace(s, guidance_weight=3.0))
    prompts = ["a red cube", "a red cube"]
    (plain,) = cascade.sample(prompts, seed=1)
    (empty,) = cascade.sample(prompts, seed=1, negative_prompts=["", ""])
    np.testing.assert_array_equal(plain, empty)
    unguided = cascade.configure(lambda _, s: dataclasses.replace(s, guidance_weight=1.0))
    (same,) = cascade.sample(prompts, seed=1, negative_prompts=prompts)
    assert np.abs(same.astype(int) - unguided.sample(prompts, seed=1)[0]).max() <= 1
    with pytest.raises(UserError, match="guidance_weight 1"):
        unguided.sample(prompts, negative_prompts=prompts)
    out = tmp_path / "drawn"
    draw = ["sample", "--checkpoint", str(tmp_path / "base"), "--output", str(out), "--negative_prompt", "a blue ring"]
    assert main([*draw, "--guidance_weight", "3", "a red cube"]) == 0
    with Image.open(out / "00000.png") as image:
        assert image.text["negative_prompt"] == "a blue ring"
    assert train_stage(root, "base", **flags | {"spec.Stage.null_text": "nothing"}) == 2
    assert "one of ('zeros', 'empty')" in one_error(capsys)


@pytest.mark.slow
def test_flow_prediction_learned_variance_and_self_conditioning_from_config_to_picture(
    root: Path, tmp_path: Path
) -> None:
    file = tmp_path / "other.gin"
    file.write_text(
        """
from __gin__ import dynamic_registration
from imagen_jax.stage import spec
from imagen_jax.diffusion import guidance
from imagen_jax.diffusion import losses
from imagen_jax.diffusion import samplers
from imagen_jax.diffusion import schedules
from imagen_jax.models import unet
from imagen_jax.stage import sampling_config
include 'tests/integration/tiny_base.gin'
spec.Stage.prediction = 'flow'
spec.Stage.schedule = @schedules.FlowSchedule()
spec.Stage.weighting = @losses.MinSNRWeighting()
spec.Stage.self_cond_rate = 0.5
unet.UNet.learned_variance = True
sampling_config.SamplingConfig.sampler = @samplers.DDPMSampler()
sampling_config.SamplingConfig.guidance_weight = 2.0
sampling_config.SamplingConfig.guidance_schedule = @guidance.IntervalGuidance()
guidance.IntervalGuidance.t_min = 0.2
guidance.IntervalGuidance.t_max = 0.9
"""
    )
    flags = flags_of(root, MODEL_DIR=tmp_path / "base", **{"TrainConfig.previews": None})
    assert main(["train", f"--gin_file={file}", *flags]) == 0
    assert (
        main(["sample", "--checkpoint", str(tmp_path / "base"), "--output", str(tmp_path / "out"), "a red cube"]) == 0
    )
    with Image.open(tmp_path / "out" / "00000.png") as image:
        assert image.size == (16, 16) and "DDPMSampler" in image.text["sampler"]


def test_an_image_depends_on_seed_and_place_alone(root: Path) -> None:
    cascade = Cascade.load(str(root))
    prompts = ["a red cube", "a blue ring", "a green star"]
    together = cascade.sample(prompts, seed=1, batch_size=3)
    in_pairs = cascade.sample(prompts, seed=1, batch_size=2)
    for a, b in zip(together, in_pairs, strict=True):
        assert np.abs(a.astype(int) - b).max() <= 1
    other = cascade.sample(prompts, seed=2, batch_size=3)
    assert np.abs(together[-1].astype(int) - other[-1]).max() > 1


def test_super_resolution_alone_takes_the_users_images(root: Path) -> None:
    cascade = Cascade.load(str(root / "sr"))
    low_res = np.zeros((2, 16, 16, 3), np.float32)
    (drawn,) = cascade.sample(["a red cube", ""], low_res=low_res)
    assert drawn.shape == (2, 64, 64, 3)
    assert main(["sample", "--checkpoint", str(root / "sr"), "--output", str(root / "none"), "a red cube"]) == 2


def test_evaluation_and_report(root: Path) -> None:
    flags = [f"--gin.RUN_DIR={root}", "--gin.GUIDANCE_WEIGHTS=(1.0, 2.0)"]
    small = [f"--gin.Alignment.num_{kind}=2" for kind in ("single", "two", "count", "heldout")]
    assert main(["eval", "--gin_file=configs/experiments/demo_eval.gin", *flags, *small]) == 0
    result = json.loads((root / "eval.json").read_text())
    assert set(result["alignment"]) == {"1", "2"} and result["num_prompts"] == 8
    assert set(result["alignment"]["1"]) >= {"single_both", "two_colour_binding", "two_relation", "heldout_both"}
    assert main(["report", "--run_dir", str(root)]) == 0
    assert "Alignment" in (root / "report.html").read_text()
