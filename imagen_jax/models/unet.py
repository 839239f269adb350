"""The base U-Net (paper appendix F.1, 64x64 model; the architecture of arXiv 2105.05233 with text).

    conv_in → per level: [ResBlock (+ attention)] x num_res_blocks, BigGAN down-sampling block → middle
            → per level, upwards: [concat skip, ResBlock (+ attention)] x (num_res_blocks + 1), up-sampling block → out

Paper's 2B model: dim 512, dim_mults (1, 2, 3, 4), num_res_blocks 3, attention at 32, 16, 8.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from imagen_jax.errors import UserError
from imagen_jax.models.attention import TextSelfAttention
from imagen_jax.models.denoiser import Conditioning, check_size
from imagen_jax.models.embeddings import Embedder
from imagen_jax.models.layers import Dtype, ResBlock, conv, downsample, group_norm, upsample
from imagen_jax.typing import Array, Float


class UNet(nn.Module):
    """Base U-Net.

    Attributes:
      dim: channels of the first level.
      dim_mults: channel multiplier of each level; each level after the first halves height and width.
      num_res_blocks: residual blocks a level.
      attention: for each level, whether its blocks are followed by attention over positions and text.
      head_dim: width of an attention head.
      emb_dim: width of the embedding of log-SNR and pooled text; 0 means 4 * dim.
      text_dim: width that the text tokens are projected to.
      dtype: compute type, "float32" or "bfloat16".
    """

    dim: int
    dim_mults: tuple[int, ...]
    num_res_blocks: int
    attention: tuple[bool, ...]
    head_dim: int = 64
    emb_dim: int = 0
    text_dim: int = 512
    dtype: Dtype = jnp.float32

    @property
    def size_factor(self) -> int:
        """Height and width must be multiples of this."""
        return 2 ** (len(self.dim_mults) - 1)

    @nn.compact
    def __call__(
        self, z_t: Float[Array, "b h w c"], log_snr: Float[Array, " b"], cond: Conditioning
    ) -> Float[Array, "b h w c"]:
        check_size(z_t.shape[1], z_t.shape[2], self.size_factor)
        if len(self.attention) != len(self.dim_mults):
            raise UserError(
                f"attention ({self.attention}) must have one entry a level: dim_mults has {len(self.dim_mults)}"
            )
        emb, text = Embedder(self.emb_dim or 4 * self.dim, self.text_dim, self.head_dim, self.dtype, name="embedder")(
            log_snr, cond
        )

        def attend(h: Array, name: str) -> Array:
            return TextSelfAttention(self.head_dim, self.dtype, name=name)(h, text, cond.text_mask)

        def block(h: Array, features: int, name: str, resample=None) -> Array:
            return ResBlock(features, resample, self.dtype, name=name)(h, emb)

        x = z_t if cond.low_res is None else jnp.concatenate([z_t, cond.low_res], axis=-1)
        h = conv(self.dim, dtype=self.dtype, name="conv_in")(x.astype(self.dtype))
        skips = [h]
        last = len(self.dim_mults) - 1
        for level, mult in enumerate(self.dim_mults):
            for i in range(self.num_res_blocks):
                h = block(h, self.dim * mult, f"down_{level}_{i}")
                if self.attention[level]:
                    h = attend(h, f"down_{level}_{i}_attention")
                skips.append(h)
            if level < last:
                h = block(h, self.dim * mult, f"down_{level}_resample", downsample)
                skips.append(h)

        h = block(h, h.shape[-1], "mid_in")
        h = attend(h, "mid_attention")
        h = block(h, h.shape[-1], "mid_out")

        for level, mult in reversed(list(enumerate(self.dim_mults))):
            for i in range(self.num_res_blocks + 1):
                h = block(jnp.concatenate([h, skips.pop()], axis=-1), self.dim * mult, f"up_{level}_{i}")
                if self.attention[level]:
                    h = attend(h, f"up_{level}_{i}_attention")
            if level > 0:
                h = block(h, self.dim * mult, f"up_{level}_resample", upsample)

        h = jax.nn.swish(group_norm(h.shape[-1], name="norm_out")(h))
        return conv(z_t.shape[-1], zero=True, dtype=jnp.float32, name="conv_out")(h)
