"""A cascade of two tiny stages with random parameters: it draws without any training."""

import dataclasses
from pathlib import Path

import jax
import numpy as np

from imagen_jax.checkpoints.trained_stage import TrainedStage, Weights
from imagen_jax.sampling.cascade import Cascade
from imagen_jax.sharding import rules
from imagen_jax.stage.sampling_config import SamplingConfig
from imagen_jax.text.encoder import TextConfig, TextEncoder
from imagen_jax.text.encoders.t5 import T5Config
from tests import tiny


def untrained_cascade() -> Cascade:
    """Stages "base" and "sr" that draw 8 and 16 pixels in two steps."""
    text = TextConfig(
        encoder=T5Config(vocab_size=259, embed_dim=12, num_heads=2, head_dim=8, num_layers=1, mlp_dim=32),
        vocabulary_path="bytes",
        max_length=6,
    )
    stages = []
    for number, stage in enumerate((tiny.BASE, dataclasses.replace(tiny.SR, image_size=16, low_res_size=8))):
        shapes = rules.unbox(jax.eval_shape(stage.init, jax.random.key(0)))
        rng = np.random.default_rng(number)
        params = jax.tree.map(lambda one, rng=rng: 0.1 * rng.standard_normal(one.shape, np.float32), shapes)
        stages.append(
            TrainedStage(
                stage=stage,
                sampling=SamplingConfig(num_steps=2),
                text=text,
                text_fingerprint={},
                config_hash=f"hash{number}",
                weights=Weights(params, Path("none")),
                checkpoint=f"checkpoint_{number}",
            )
        )
    return Cascade(stages=tuple(stages), encoder=TextEncoder(text))
