"""The smallest stages that are whole: shared by the tests of several rooms."""

import jax
import jax.numpy as jnp

from imagen_jax.models.efficient_unet import EfficientUNet
from imagen_jax.models.transformer import PixelTransformer
from imagen_jax.models.unet import UNet
from imagen_jax.stage.spec import Stage

BASE = Stage(
    name="base",
    model=UNet(
        dim=8, dim_mults=(1, 2), num_res_blocks=1, attention=("none", "joint"), head_dim=8, emb_dim=16, text_dim=8
    ),
    image_size=8,
    text_embed_dim=12,
    max_text_length=6,
)
TRANSFORMER = Stage(
    name="base",
    model=PixelTransformer(dim=16, depth=2, patch=2, head_dim=8),
    image_size=8,
    text_embed_dim=12,
    max_text_length=6,
    prediction="x0",
)
SR = Stage(
    name="sr",
    model=EfficientUNet(
        dims=(8, 16), num_res_blocks=(1, 1), attention=("none", "joint"), head_dim=8, emb_dim=16, text_dim=8
    ),
    image_size=8,
    low_res_size=4,
    text_embed_dim=12,
    max_text_length=6,
)


def batch(stage: Stage, rows: int) -> dict[str, jax.Array]:
    """A random training batch of a stage; captions of 1 to 6 tokens."""
    keys = jax.random.split(jax.random.key(7), 3)
    lengths = jnp.arange(rows) % stage.max_text_length + 1
    mask = jnp.arange(stage.max_text_length)[None] < lengths[:, None]
    text = jax.random.normal(keys[1], (rows, stage.max_text_length, stage.text_embed_dim))
    size, low = stage.image_size, stage.low_res_size
    made = {
        "x0": jax.random.uniform(keys[0], (rows, size, size, 3), minval=-1),
        "text": text * mask[..., None],
        "text_mask": mask,
    }
    if low is not None:
        made["low_res"] = jax.random.uniform(keys[2], (rows, low, low, 3), minval=-1)
    return made
