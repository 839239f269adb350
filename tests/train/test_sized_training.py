"""Training on several sizes: one program each, and a resumed run ends as one that was never stopped."""

import dataclasses

import numpy as np
import pytest

from imagen_jax.data.config import DataConfig
from imagen_jax.errors import UserError
from imagen_jax.train import loop, setup
from imagen_jax.train.setup import TrainSetup
from tests.train import tiny_run
from tests.train.tiny_run import TinyBatches, leaves_equal, lines_of, tiny_config, tiny_stage

SIZES = ((8, 8), (6, 10))


class SizedBatches(TinyBatches):
    """Batches whose size is a function of the step."""

    def __next__(self):
        step, batch = self._step, super().__next__()
        rng, (height, width) = np.random.default_rng(step), SIZES[step % 2]
        batch["x0"] = rng.uniform(-1, 1, (self._num, height, width, 3)).astype(np.float32)
        framing = np.array([height, width, 0, 0, height, width], np.float32)
        return {**batch, "framing": np.tile(framing, (self._num, 1))}


def _config(model_dir, **changes):
    data = DataConfig(
        corpus_dir="none",
        store_dir="none",
        image_size=tiny_run.SIZE,
        max_text_length=tiny_run.TEXT_LENGTH,
        sizes=SIZES,
    )
    return tiny_config(model_dir, num_steps=7, save_every=3, data=data, **changes)


@pytest.fixture(autouse=True)
def _sized_data(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_run.use_tiny_data(monkeypatch.setattr)
    monkeypatch.setattr(setup, "BatchIterator", SizedBatches)


def test_a_stopped_run_ends_as_one_that_went_on(tmp_path) -> None:
    whole = loop.train(_config(tmp_path / "whole"))
    loop.train(_config(tmp_path / "parts"), stop_at=4)
    parts = loop.train(_config(tmp_path / "parts"))
    assert int(parts.step) == 7 and leaves_equal(whole.params, parts.params)
    assert all(np.isfinite(line["loss"]) for line in lines_of(tmp_path / "whole"))


def test_each_size_has_a_program_and_the_plan_takes_the_largest(tmp_path) -> None:
    built = TrainSetup.build(_config(tmp_path))
    assert built.sizes == SIZES
    assert built.largest().objective.size == (8, 8)
    spec = built.of_size((6, 10)).objective.batch_spec(16)
    assert spec["x0"].shape == (16, 6, 10, 3) and spec["framing"].shape == (16, 6)
    work = [built.of_size(size).model_flops() for size in SIZES]
    assert work[1] < work[0] and built.model_flops() == sum(work) // 2


def test_framing_needs_sizes_and_sizes_must_suit_the_network(tmp_path) -> None:
    framed = dataclasses.replace(tiny_stage(), framing=True)
    assert _config(tmp_path, stage=framed).stage.framing
    with pytest.raises(UserError, match="DataConfig.sizes is empty"):
        tiny_config(tmp_path, stage=framed)
    halving = dataclasses.replace(tiny_stage(), model=_Halving())
    with pytest.raises(UserError, match="height .6. must be a multiple of 4"):
        _config(tmp_path, stage=halving)


class _Halving(tiny_run.TinyNet):
    size_factor = 4
