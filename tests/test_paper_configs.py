"""The configs at the paper's sizes: they resolve, and have the parameters that their headers and the docs state."""

import pathlib
import re

import jax
import numpy as np
import pytest

from imagen_jax import gin_config
from imagen_jax.models.attention import KINDS
from imagen_jax.sharding.rules import unbox
from imagen_jax.train.config import TrainConfig

# Experiment: parameters, and what the paper says, in millions.
SIZES = {
    "imagen_base": (2143.9, 2000),
    "imagen_base_300m": (312.6, 300),
    "imagen_sr256": (538.6, 600),
    "imagen_sr1024": (415.8, 400),
}
PATHS = [f"{name}='nowhere'" for name in ("CORPUS_DIR", "STORE_DIR", "MODEL_DIR", "T5_PATH", "VOCABULARY_PATH")]


def load(name: str) -> TrainConfig:
    return gin_config.load(TrainConfig, [f"configs/experiments/{name}.gin"], PATHS)


@pytest.mark.parametrize("name", SIZES)
def test_parameters_are_as_stated(name: str) -> None:
    config = load(name)
    shapes = jax.tree.leaves(unbox(jax.eval_shape(config.stage.init, jax.random.key(0))))
    millions = sum(int(np.prod(leaf.shape)) for leaf in shapes) / 1e6
    stated, paper = SIZES[name]
    assert abs(millions - stated) < 0.05
    assert abs(millions / paper - 1) < 0.11
    files = re.findall(r"configs/models/\w+\.gin", pathlib.Path(f"configs/experiments/{name}.gin").read_text())
    header = pathlib.Path(files[0]).read_text().splitlines()[1]
    assert f"{stated:,.1f}M" in header and f"{stated:,.1f}M" in pathlib.Path("docs/deviations.md").read_text()


def test_stages_chain_and_train_as_the_paper_says() -> None:
    base, sr256, sr1024 = (load(name) for name in ("imagen_base", "imagen_sr256", "imagen_sr1024"))
    assert (base.stage.image_size, sr256.stage.low_res_size, sr256.stage.image_size) == (64, 64, 256)
    assert {config.batch_size for config in (base, sr256, sr1024)} == {2048}
    assert [config.optimizer.name for config in (base, sr256, sr1024)] == ["adafactor", "adam", "adam"]
    assert sr1024.data.crop == "random" and type(sr1024.stage.schedule).__name__ == "LinearSchedule"
    assert all(set(config.stage.model.attention) <= set(KINDS) for config in (base, sr256, sr1024))
