"""A run small enough for a test: two convolutions, on batches that are a function of (seed, step)."""

import dataclasses
import json
from pathlib import Path
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.checkpoints import plain_data
from imagen_jax.data.config import DataConfig
from imagen_jax.data.pipeline import BatchIterator
from imagen_jax.models.backbone import CONDITIONS
from imagen_jax.models.layers import conv, dense
from imagen_jax.sharding.mesh import MeshConfig
from imagen_jax.stage.spec import Stage
from imagen_jax.text.encoder import TextConfig, TextEncoder
from imagen_jax.text.encoders.t5 import T5Config
from imagen_jax.train import loop, setup
from imagen_jax.train.config import TrainConfig
from imagen_jax.train.optimizer import OptimizerConfig

SIZE, TEXT_DIM, TEXT_LENGTH = 8, 16, 4


@plain_data.register
class TinyNet(nn.Module):
    """Two convolutions that see text and log-SNR."""

    dim: int = 16
    size_factor: ClassVar[int] = 1
    learned_variance: ClassVar[bool] = False
    conditions: ClassVar[tuple[str, ...]] = CONDITIONS

    @nn.compact
    def __call__(self, z_t, log_snr, cond):
        text = (cond.text * cond.text_mask[..., None]).sum(1)
        context = dense(self.dim, dtype=jnp.float32, name="Dense_0")(jnp.concatenate([text, log_snr[:, None] / 10], -1))
        hidden = conv(self.dim, dtype=jnp.float32, name="Conv_0")(z_t) + context[:, None, None]
        return conv(3, dtype=jnp.float32, name="Conv_1")(nn.silu(hidden))


def tiny_stage(**changes: Any) -> Stage:
    """The stage of the tests."""
    values: dict[str, Any] = {
        "name": "base",
        "model": TinyNet(),
        "image_size": SIZE,
        "text_embed_dim": TEXT_DIM,
        "max_text_length": TEXT_LENGTH,
    }
    return Stage(**values | changes)


def text_config(embed_dim: int, max_length: int) -> TextConfig:
    """A tiny random encoder of bytes; the batches here do not come from it."""
    encoder = T5Config(vocab_size=259, embed_dim=embed_dim, num_heads=2, head_dim=8, num_layers=1, mlp_dim=32)
    return TextConfig(encoder=encoder, vocabulary_path="bytes", max_length=max_length)


def tiny_config(model_dir: Any, **changes: Any) -> TrainConfig:
    """A run of 12 steps that logs every 2 and saves every 4."""
    values: dict[str, Any] = {
        "stage": tiny_stage(),
        "data": DataConfig(corpus_dir="none", store_dir="none", image_size=SIZE, max_text_length=TEXT_LENGTH),
        "text": text_config(TEXT_DIM, TEXT_LENGTH),
        "model_dir": str(model_dir),
        "num_steps": 12,
        "batch_size": 16,
        "optimizer": OptimizerConfig(name="adam", learning_rate=1e-2, warmup_steps=2),
        "ema_decay": 0.9,
        "log_every": 2,
        "save_every": 4,
    }
    return TrainConfig(**values | changes)


def tiny_batch(seed: int, step: int, num: int) -> dict[str, np.ndarray]:
    """Rows of one batch."""
    rng = np.random.default_rng([seed, step])
    return {
        "x0": rng.uniform(-1, 1, (num, SIZE, SIZE, 3)).astype(np.float32),
        "text": rng.normal(size=(num, TEXT_LENGTH, TEXT_DIM)).astype(np.float32),
        "text_mask": rng.uniform(size=(num, TEXT_LENGTH)) < 0.8,
    }


class TinyBatches(BatchIterator):
    """The data pipeline's interface over `tiny_batch`; records the steps it was asked for."""

    steps_read: ClassVar[list[int]] = []
    poison_steps: ClassVar[frozenset[int]] = frozenset()
    bad_records = frozenset()
    text_dtype = np.dtype(np.float32)

    def __init__(self, config, *, batch_size, seed, start_step, rows=None, encoder=None):
        self._seed, self._step, self._num = seed, start_step, batch_size

    def __iter__(self):
        return self

    def __next__(self):
        batch = tiny_batch(self._seed, self._step, self._num)
        if self._step in self.poison_steps:
            batch["x0"][0] = np.nan
        self.steps_read.append(self._step)
        self._step += 1
        return batch

    def close(self):
        """Nothing reads ahead here."""

    def epochs(self, step):
        """No mixture."""
        return {}

    def examples_of(self, step):
        return {"train": [step * self._num + row for row in range(self._num)]}

    def position(self):
        return {"seed": self._seed, "step": self._step, "batch_size": self._num}


class LetterEncoder(TextEncoder):
    """Tells captions apart without a vocabulary."""

    def __init__(self):
        super().__init__(text_config(TEXT_DIM, TEXT_LENGTH))

    def encode(self, captions):
        rows = [np.random.default_rng(len(caption)) for caption in captions]
        text = np.stack([row.normal(size=(TEXT_LENGTH, TEXT_DIM)) for row in rows])
        return text.astype(np.float32), np.ones(text.shape[:2], bool)

    def fingerprint(self, dtype="float32"):
        return {"encoder": "ours", "dtype": dtype}


def use_tiny_data(setattr_: Any = setattr) -> None:
    """Puts `TinyBatches` in the place of the corpus and the embedding store, and one device in that of all.

    Args:
      setattr_: a pytest monkeypatch's setattr, or the built-in one in a subprocess.
    """
    setattr_(setup, "BatchIterator", TinyBatches)
    setattr_(loop, "check_text", lambda config: TextEncoder(config.text))
    build = MeshConfig.build
    setattr_(MeshConfig, "build", lambda self, devices=None: build(self, devices or jax.devices()[:1]))


def leaves_equal(one: Any, two: Any) -> bool:
    """Bit-for-bit equality of two trees."""
    same = jax.tree.map(
        lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes() and a.dtype == b.dtype, one, two
    )
    return all(jax.tree.leaves(same))


def with_changes(config: TrainConfig, **changes: Any) -> TrainConfig:
    """A copy of a config."""
    return dataclasses.replace(config, **changes)


def lines_of(model_dir: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics."""
    return [json.loads(line) for line in (model_dir / "metrics.jsonl").read_text().splitlines()]
