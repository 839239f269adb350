"""Training as the console command does it: previews beside the loop, errors of files told in one message."""

import dataclasses
import os
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from imagen_jax.checkpoints.folders import latest_step
from imagen_jax.commands.parts import training
from imagen_jax.errors import UserError, exit_code
from imagen_jax.sampling import preview_hook
from imagen_jax.sharding.rules import unbox
from imagen_jax.stage.sampling_config import SamplingConfig
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.text.encoders.t5 import T5Config
from imagen_jax.train import loop, setup
from imagen_jax.train.config import PreviewConfig, TrainConfig
from imagen_jax.train.hooks import Hook, StepInfo
from imagen_jax.train.metrics import MetricWriter
from imagen_jax.train.setup import TrainSetup, preview_text
from imagen_jax.train.state import init_state
from tests.train import tiny_run
from tests.train.tiny_run import LetterEncoder

# Nothing else has arrays of its vocabulary's size.
ODD_ENCODER = T5Config(vocab_size=271, embed_dim=tiny_run.TEXT_DIM, num_heads=2, head_dim=8, num_layers=1, mlp_dim=32)


@pytest.fixture(autouse=True)
def tiny_data(monkeypatch):
    tiny_run.use_tiny_data(monkeypatch.setattr)
    monkeypatch.setattr(loop, "check_text", lambda config: LetterEncoder())


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def hook_of(config: TrainConfig) -> preview_hook.PreviewHook:
    """The preview hook of a run that is about to begin."""
    run = loop.Run(
        config=config,
        setup=TrainSetup.build(config),
        encoder=LetterEncoder(),
        preview_text=preview_text(config, LetterEncoder()),
        null=None,
        writer=MetricWriter(config.model_dir, 0),
    )
    (hook,) = training.hooks_of(run)
    assert isinstance(hook, preview_hook.PreviewHook)
    return hook


def info_of(config: TrainConfig, step: int, params: object) -> StepInfo:
    setup = TrainSetup.build(config)
    state = init_state(setup.objective, setup.settings.optimizer, 0)
    return StepInfo(step=step, state=state.replace(ema_params=params))


def test_previews_of_the_averaged_parameters_are_drawn_on_their_steps_with_one_seed(tmp_path, monkeypatch):
    drawn, real = [], preview_hook.draw_preview

    def recorded(stage, params, *args, **values):
        drawn.append(jax.tree.map(np.array, params))
        return real(stage, params, *args, **values)

    monkeypatch.setattr(preview_hook, "draw_preview", recorded)
    settings = PreviewConfig(every=2, captions=("a", "bb", "ccc"))
    config = tiny_run.tiny_config(tmp_path, num_steps=4, sampling=SamplingConfig(num_steps=2), previews=settings)
    state = loop.train(config, hooks=training.hooks_of)
    samples = tmp_path / "samples"
    assert sorted(path.name for path in samples.iterdir()) == ["step_2.png", "step_4.png"]
    assert len(drawn) == 2 and tiny_run.leaves_equal(drawn[1], state.ema_params)
    first, second = read(samples / "step_2.png"), read(samples / "step_4.png")
    assert first.dtype == np.uint8 and first.ndim == 3 and first.shape[2] == 3
    assert (first != second).any()
    hook_of(config).before_step(info_of(config, 9, drawn[0]))
    np.testing.assert_array_equal(first, read(samples / "step_9.png"))


def test_super_resolution_draws_rows_of_the_first_batch(tmp_path, monkeypatch):
    asked: list[dict] = []
    given: list[tuple] = []
    low_res = np.linspace(-1, 1, 2 * 4 * 4 * 3, dtype=np.float32).reshape(2, 4, 4, 3)

    class FirstRows(tiny_run.TinyBatches):
        def __init__(self, config, **values):
            asked.append({name: value for name, value in values.items() if name != "encoder"})
            super().__init__(config, **values)

        def __next__(self):
            return super().__next__() | {"low_res": low_res}

    real = preview_hook.draw_preview

    def recorded(*args, **values):
        given.append(args)
        return real(*args, **values)

    monkeypatch.setattr(training, "BatchIterator", FirstRows)
    monkeypatch.setattr(preview_hook, "draw_preview", recorded)
    config = tiny_run.tiny_config(
        tmp_path,
        stage=tiny_run.tiny_stage(low_res_size=4),
        data=dataclasses.replace(tiny_run.tiny_config(tmp_path).data, low_res_size=4),
        seed=5,
        sampling=SamplingConfig(num_steps=1),
        previews=PreviewConfig(every=1, num_images=2),
    )
    params = unbox(config.stage.init(jax.random.key(0)))
    hook_of(config).before_step(info_of(config, 7, params))
    assert asked == [{"batch_size": 2, "seed": 5, "start_step": 0}]
    rows = given[0][2]
    np.testing.assert_array_equal(rows.low_res, low_res)
    np.testing.assert_array_equal(rows.text, tiny_run.tiny_batch(5, 0, 2)["text"])
    assert read(tmp_path / "samples" / "step_7.png").shape[2] == 3


@pytest.mark.parametrize("null_text", ["zeros", "empty"])
def test_an_encoder_of_fewer_tokens_than_the_stages_is_padded_as_in_training(tmp_path, monkeypatch, null_text):
    ours = tiny_run.tiny_config(tmp_path)
    config = tiny_run.with_changes(
        ours,
        stage=tiny_run.tiny_stage(null_text=null_text),
        text=dataclasses.replace(ours.text, max_length=tiny_run.TEXT_LENGTH - 1),
        data=dataclasses.replace(ours.data, store_dir=None),
        num_steps=1,
        sampling=SamplingConfig(num_steps=2),
        previews=PreviewConfig(every=1, captions=("a", "bb")),
    )
    encoder, given = TextEncoder(config.text), []
    monkeypatch.setattr(loop, "check_text", lambda config: encoder)
    loop.train(config, hooks=lambda run: given.append(run) or training.hooks_of(run))
    assert (tmp_path / "samples" / "step_1.png").exists()
    text, mask = given[0].preview_text
    # A byte is a token, and the end of the caption one more.
    np.testing.assert_array_equal(mask, [[True, True, False, False], [True, True, True, False]])
    np.testing.assert_array_equal(text[1, :3], encoder.encode(("bb",))[0][0])
    assert text.shape == (2, tiny_run.TEXT_LENGTH, tiny_run.TEXT_DIM) and not text[0, 2:].any()


def test_a_preview_longer_than_the_stages_text_is_refused(tmp_path):
    ours = tiny_run.tiny_config(tmp_path)
    text = dataclasses.replace(ours.text, max_length=9)
    config = tiny_run.with_changes(ours, text=text, previews=PreviewConfig(every=1, captions=("a", "bbbbb")))
    with pytest.raises(UserError, match=r"previews has 6 tokens, .* max_text_length is 4; raise it, or lower .*\(9\)"):
        preview_text(config, TextEncoder(text))


def test_the_text_encoder_leaves_the_device_once_the_captions_are_read(tmp_path, monkeypatch):
    config = tiny_run.tiny_config(
        tmp_path,
        num_steps=2,
        text=dataclasses.replace(tiny_run.tiny_config(tmp_path).text, encoder=ODD_ENCODER),
        sampling=SamplingConfig(num_steps=1),
        previews=PreviewConfig(every=1, captions=("a", "bb")),
    )
    encoder = TextEncoder(config.text)
    expected, _ = encoder.encode(("a", "bb"))
    table = (ODD_ENCODER.vocab_size, ODD_ENCODER.embed_dim)
    held, drawn = [], []

    def tables() -> int:
        return sum(one.shape == table for one in jax.live_arrays())

    class Watch(Hook):
        def wants(self, step):
            return True

        def before_step(self, info):
            held.append(tables())

    def hooks(run):
        (previews,) = training.hooks_of(run)
        drawn.append(previews.rows.text)
        return previews, Watch()

    monkeypatch.setattr(loop, "check_text", lambda config: encoder)
    assert tables() == 1
    loop.train(config, hooks=hooks)
    assert held == [0, 0]
    np.testing.assert_array_equal(drawn[0], expected)
    # What is asked of it later is answered all the same.
    np.testing.assert_array_equal(encoder.encode(("a", "bb"))[0], expected)


def test_a_run_says_that_its_previews_go_beyond_its_training(tmp_path, monkeypatch, capsys):
    class WithLowRes(tiny_run.TinyBatches):
        def __next__(self):
            return super().__next__() | {"low_res": np.zeros((16, 4, 4, 3), np.float32)}

    monkeypatch.setattr(setup, "BatchIterator", WithLowRes)
    ours = tiny_run.tiny_config(tmp_path, num_steps=1, sampling=SamplingConfig(aug_level=0.4))
    stage = tiny_run.tiny_stage(low_res_size=4, max_aug_level=0.3)
    training.run(tiny_run.with_changes(ours, stage=stage, data=dataclasses.replace(ours.data, low_res_size=4)))
    assert "aug_level (0.4) is above 0.3, the largest that stage 'base'" in capsys.readouterr().err


def test_non_finite_parameters_are_not_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny_run.TinyBatches, "poison_steps", {2})
    settings = PreviewConfig(every=3, captions=("a",))
    config = tiny_run.tiny_config(tmp_path, log_every=100, sampling=SamplingConfig(num_steps=1), previews=settings)
    config = tiny_run.with_changes(config, max_bad_steps=1)
    with pytest.raises(UserError, match="step 3: loss = nan"):
        training.run(config)
    assert not (tmp_path / "samples").exists()


def test_a_run_without_previews_has_no_hooks_of_its_own(tmp_path):
    config = tiny_run.tiny_config(tmp_path, num_steps=1)
    training.run(config)
    assert not (tmp_path / "samples").exists() and (tmp_path / "metrics.jsonl").exists()


def test_run_directory_that_cannot_be_written_is_told_in_one_message(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/run' cannot be written .*Not a directory.*; choose"):
        training.run(tiny_run.tiny_config(tmp_path / "file" / "run"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_run_that_is_asked_to_stop_saves_and_asks_to_be_started_again(tmp_path, monkeypatch, number, code):
    """Not 0: whoever started it would take the stage for trained."""

    class Asked(Hook):
        def after_step(self, info: StepInfo) -> None:
            if info.step == 3:
                os.kill(os.getpid(), number)

    config = tiny_run.tiny_config(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(training, "hooks_of", lambda run, operative_config: (Asked(),))
        assert exit_code(lambda: training.run(config)) == code
    stopped_at = latest_step(tmp_path)
    assert 3 <= stopped_at <= 4 < config.num_steps
    assert exit_code(lambda: training.run(config)) == 0
    assert latest_step(tmp_path) == config.num_steps
