"""The batches of the tiny runs, and a base that was trained on them."""

from collections.abc import Iterator

import pytest

from imagen_jax.train import loop
from imagen_jax.train.config import TrainConfig
from tests.train import tiny_run


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainConfig]:
    """A run of the tiny network with checkpoints after 4 and 6 updates; runs of the module have its batches."""
    with pytest.MonkeyPatch.context() as patch:
        tiny_run.use_tiny_data(patch.setattr)
        config = tiny_run.tiny_config(tmp_path_factory.mktemp("base") / "run")
        loop.train(config, stop_at=6)
        yield config
