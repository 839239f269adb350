"""The base U-Net (paper appendix F.1, 64x64 model; the architecture of arXiv 2105.05233 with text).

    conv_in → per level: [ResBlock (+ attention)] x num_res_blocks, BigGAN down-sampling block → middle
            → per level, upwards: [concat skip, ResBlock (+ attention)] x (num_res_blocks + 1), up-sampling block → out

Paper's 2B model: dim 512, dim_mults (1, 2, 3, 4), num_res_blocks 3, joint attention at 32, 16, 8
(configs/models/imagen_64_2b.gin).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from imagen_jax.models.attention import attend, check_kinds
from imagen_jax.models.denoiser import Conditioning, check_size
from imagen_jax.models.embeddings import Embedder
from imagen_jax.models.layers import (
    Dtype,
    ResBlock,
    check_remat,
    conv,
    downsample,
    group_norm,
    rematerialised,
    upsample,
)
from imagen_jax.typing import Array, Float


class UNet(nn.Module):
    """Base U-Net.

    Attributes:
      dim: channels of the first level.
      dim_mults: channel multiplier of each level; each level after the first halves height and width.
      num_res_blocks: residual blocks a level.
      attention: for each level, what the attention after each of its blocks is over: one of `attention.KINDS`. The
        middle has that of the last level.
      head_dim: width of an attention head.
      emb_dim: width of the embedding of log-SNR and pooled text; 0 means 4 * dim.
      text_dim: width that the text tokens are projected to.
      text_pooling: how the text enters the embedding: "attention" or "mean" (ablation of appendix D.3.1).
      text_norm: LayerNorm on the text wherever it enters; the paper finds that it "considerably improves" results.
      fused_attention: attention by cuDNN's kernel (NVIDIA GPUs, bfloat16) in place of this library's own.
      remat: what the backward pass computes again: one of `layers.REMATS`.
      learned_variance: the output has a variance for each value besides (`Stage.vlb_weight`), in as many channels more.
      dtype: compute type, "float32" or "bfloat16".
    """

    dim: int
    dim_mults: tuple[int, ...]
    num_res_blocks: int
    attention: tuple[str, ...]
    head_dim: int = 64
    emb_dim: int = 0
    text_dim: int = 512
    text_pooling: str = "attention"
    text_norm: bool = True
    fused_attention: bool = False
    remat: str = "none"
    learned_variance: bool = False
    dtype: Dtype = jnp.float32

    @property
    def size_factor(self) -> int:
        """Height and width must be multiples of this."""
        return 2 ** (len(self.dim_mults) - 1)

    @nn.compact
    def __call__(
        self, z_t: Float[Array, "b h w c"], log_snr: Float[Array, " b"], cond: Conditioning
    ) -> Float[Array, "b h w c2"]:
        check_size(z_t.shape[1], z_t.shape[2], self.size_factor)
        check_kinds(self.attention, len(self.dim_mults))
        check_remat(self.remat)
        emb, text = Embedder(
            self.emb_dim or 4 * self.dim,
            self.text_dim,
            self.head_dim,
            self.text_pooling,
            self.text_norm,
            self.dtype,
            name="embedder",
        )(log_snr, cond)
        settings: dict[str, Any] = {
            "head_dim": self.head_dim,
            "text_norm": self.text_norm,
            "dtype": self.dtype,
            "fused": self.fused_attention,
        }
        res_block = rematerialised(ResBlock, self.remat)

        def attention(level: int, h: Array, name: str) -> Array:
            kind = self.attention[level]
            return attend(kind, h, text, cond.text_mask, **settings, remat=self.remat, name=name)

        def block(h: Array, features: int, name: str, resample=None) -> Array:
            return res_block(features, resample, self.dtype, name=name)(h, emb)

        x = jnp.concatenate([z_t, *cond.images()], axis=-1)
        h = conv(self.dim, dtype=self.dtype, name="conv_in")(x.astype(self.dtype))
        skips = [h]
        last = len(self.dim_mults) - 1
        for level, mult in enumerate(self.dim_mults):
            for i in range(self.num_res_blocks):
                h = block(h, self.dim * mult, f"down_{level}_{i}")
                h = attention(level, h, f"down_{level}_{i}_attention")
                skips.append(h)
            if level < last:
                h = block(h, self.dim * mult, f"down_{level}_resample", downsample)
                skips.append(h)

        h = block(h, h.shape[-1], "mid_in")
        h = attention(last, h, "mid_attention")
        h = block(h, h.shape[-1], "mid_out")

        for level, mult in reversed(list(enumerate(self.dim_mults))):
            for i in range(self.num_res_blocks + 1):
                h = block(jnp.concatenate([h, skips.pop()], axis=-1), self.dim * mult, f"up_{level}_{i}")
                h = attention(level, h, f"up_{level}_{i}_attention")
            if level > 0:
                h = block(h, self.dim * mult, f"up_{level}_resample", upsample)

        h = jax.nn.swish(group_norm(h.shape[-1], name="norm_out")(h))
        return conv((1 + self.learned_variance) * z_t.shape[-1], zero=True, dtype=jnp.float32, name="conv_out")(h)
