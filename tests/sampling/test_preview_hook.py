"""Previews drawn by the loop, and the store's fingerprint compared before it."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from imagen_jax.errors import UserError
from imagen_jax.sampling import preview_hook
from imagen_jax.sharding.rules import unbox
from imagen_jax.stage.sampling_config import SamplingConfig
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.text.store.reader import EmbeddingStore
from imagen_jax.train import loop
from imagen_jax.train.config import PreviewConfig
from imagen_jax.train.metrics import MetricWriter
from tests.train import tiny_run


class LetterEncoder(TextEncoder):
    """Tells captions apart without a vocabulary."""

    def __init__(self):
        pass

    def encode(self, captions):
        rows = [np.random.default_rng(len(caption)) for caption in captions]
        text = np.stack([row.normal(size=(tiny_run.TEXT_LENGTH, tiny_run.TEXT_DIM)) for row in rows])
        return text.astype(np.float32), np.ones(text.shape[:2], bool)

    def fingerprint(self, dtype="float32"):
        return {"encoder": "ours", "dtype": dtype}


@pytest.fixture(autouse=True)
def tiny_data(monkeypatch):
    tiny_run.use_tiny_data(monkeypatch.setattr)
    monkeypatch.setattr(loop, "check_text", lambda config: LetterEncoder())


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_grids_of_the_averaged_parameters_are_drawn_on_their_steps_with_one_seed(tmp_path, monkeypatch):
    drawn, real = [], preview_hook.draw_preview

    def recorded(stage, params, *args, **values):
        drawn.append(jax.tree.map(np.array, params))
        return real(stage, params, *args, **values)

    monkeypatch.setattr(preview_hook, "draw_preview", recorded)
    settings = PreviewConfig(every=2, captions=("a", "bb", "ccc"))
    config = tiny_run.tiny_config(tmp_path, num_steps=4, sampling=SamplingConfig(num_steps=2), previews=settings)
    state = loop.train(config)
    samples = tmp_path / "samples"
    assert sorted(path.name for path in samples.iterdir()) == ["step_2.png", "step_4.png"]
    assert len(drawn) == 2 and tiny_run.leaves_equal(drawn[1], state.ema_params)
    first, second = read(samples / "step_2.png"), read(samples / "step_4.png")
    assert first.dtype == np.uint8 and first.ndim == 3 and first.shape[2] == 3
    assert (first != second).any()
    again = preview_hook.PreviewHook(config, settings, LetterEncoder(), MetricWriter(tmp_path, 4))
    again.draw(9, drawn[0])
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

    monkeypatch.setattr(preview_hook, "BatchIterator", FirstRows)
    monkeypatch.setattr(preview_hook, "draw_preview", recorded)
    settings = PreviewConfig(every=1, num_images=2)
    config = tiny_run.tiny_config(
        tmp_path,
        stage=tiny_run.tiny_stage(low_res_size=4),
        data=dataclasses.replace(tiny_run.tiny_config(tmp_path).data, low_res_size=4),
        seed=5,
        sampling=SamplingConfig(num_steps=1),
        previews=settings,
    )
    params = unbox(config.stage.init(jax.random.key(0)))
    preview_hook.PreviewHook(config, settings, LetterEncoder(), MetricWriter(tmp_path, 0)).draw(7, params)
    assert asked == [{"batch_size": 2, "seed": 5, "start_step": 0}]
    np.testing.assert_array_equal(given[0][4], low_res)
    np.testing.assert_array_equal(given[0][2], tiny_run.tiny_batch(5, 0, 2)["text"])
    assert read(tmp_path / "samples" / "step_7.png").shape[2] == 3


def test_store_of_another_encoder_is_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.undo()
    store = object.__new__(EmbeddingStore)
    store._directory = "store"
    monkeypatch.setattr(loop, "TextEncoder", lambda config: LetterEncoder())
    monkeypatch.setattr(EmbeddingStore, "open", classmethod(lambda cls, directory: store))
    store.fingerprint = {"encoder": "ours", "dtype": "bfloat16"}
    assert isinstance(loop.check_text(tiny_run.tiny_config(tmp_path)), LetterEncoder)
    store.fingerprint = {"encoder": "theirs", "dtype": "bfloat16"}
    with pytest.raises(UserError, match="(?s)store.*encoder.*theirs"):
        loop.train(tiny_run.tiny_config(tmp_path))
    assert not any(tmp_path.iterdir())
