"""The Efficient U-Net for super-resolution (paper section 2.5, appendix B.1, figures A.27 to A.30).

    DBlock  strided conv → combine embeddings → ResNetBlock x N → attention
    UBlock  input + skip / sqrt(2) → combine embeddings → ResNetBlock x N → attention → up-sampling conv

Down-sampling comes before and up-sampling after the convolutions of a block, and most blocks sit at low
resolution. The output, a dense layer, is modulated by the embedding as the blocks are, which the paper leaves open.
Paper's 64→256 model: dims (128, 256, 512, 1024), num_res_blocks (2, 4, 8, 8), attention in the last.
"""

import math

import flax.linen as nn
import jax.numpy as jnp

from imagen_jax.errors import UserError
from imagen_jax.models.attention import TextSelfAttention
from imagen_jax.models.denoiser import Conditioning, check_size
from imagen_jax.models.embeddings import Embedder
from imagen_jax.models.layers import Dtype, ResBlock, conv, scale_shift, upsample
from imagen_jax.typing import Array, Bool, Float


class EfficientBlock(nn.Module):
    """What DBlock and UBlock share: combine embeddings, residual blocks, optional attention.

    Attributes:
      features: channels.
      num_res_blocks: residual blocks.
      attention: whether attention over positions and text follows.
      head_dim: width of an attention head.
      dtype: compute type.
    """

    features: int
    num_res_blocks: int
    attention: bool
    head_dim: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        emb: Float[Array, "b d"],
        text: Float[Array, "b n e"],
        text_mask: Bool[Array, "b n"],
    ) -> Float[Array, "b h w c"]:
        h = scale_shift(x, emb, self.dtype)
        for i in range(self.num_res_blocks):
            h = ResBlock(self.features, None, self.dtype, name=f"res_{i}")(h, None)
        if self.attention:
            h = TextSelfAttention(self.head_dim, self.dtype, name="attention")(h, text, text_mask)
        return h


class EfficientUNet(nn.Module):
    """Efficient U-Net.

    Attributes:
      dims: channels of each block; every block halves height and width.
      num_res_blocks: residual blocks of each block.
      attention: for each block, whether it ends with attention over positions and text.
      head_dim: width of an attention head.
      emb_dim: width of the embedding of log-SNR, aug_level and pooled text; 0 means 4 * dims[0].
      text_dim: width that the text tokens are projected to.
      dtype: compute type.
    """

    dims: tuple[int, ...]
    num_res_blocks: tuple[int, ...]
    attention: tuple[bool, ...]
    head_dim: int = 64
    emb_dim: int = 0
    text_dim: int = 512
    dtype: Dtype = jnp.float32

    @property
    def size_factor(self) -> int:
        """Height and width must be multiples of this."""
        return 2 ** len(self.dims)

    @nn.compact
    def __call__(
        self, z_t: Float[Array, "b h w c"], log_snr: Float[Array, " b"], cond: Conditioning
    ) -> Float[Array, "b h w c"]:
        check_size(z_t.shape[1], z_t.shape[2], self.size_factor)
        if not len(self.dims) == len(self.num_res_blocks) == len(self.attention):
            raise UserError(
                f"dims {self.dims}, num_res_blocks {self.num_res_blocks} and attention {self.attention} "
                "must have one entry a block each"
            )
        emb, text = Embedder(
            self.emb_dim or 4 * self.dims[0], self.text_dim, self.head_dim, self.dtype, name="embedder"
        )(log_snr, cond)

        def block(h: Array, level: int, name: str) -> Array:
            return EfficientBlock(
                self.dims[level],
                self.num_res_blocks[level],
                self.attention[level],
                self.head_dim,
                self.dtype,
                name=name,
            )(h, emb, text, cond.text_mask)

        x = z_t if cond.low_res is None else jnp.concatenate([z_t, cond.low_res], axis=-1)
        h = conv(self.dims[0], dtype=self.dtype, name="conv_in")(x.astype(self.dtype))
        first, skips = h, []
        for level, features in enumerate(self.dims):
            h = conv(features, strides=2, dtype=self.dtype, name=f"down_{level}_conv")(h)
            h = block(h, level, f"down_{level}")
            skips.append(h)
        for level in reversed(range(len(self.dims))):
            h = block(h + skips[level] / math.sqrt(2), level, f"up_{level}")
            h = conv(self.dims[max(level - 1, 0)], dtype=self.dtype, name=f"up_{level}_conv")(upsample(h))
        # No norm here: it would take the picture's mean and contrast away, which x0 and v have to carry. The gain
        # on z_t that a prediction needs depends on the noise level alone, which is what the embedding tells.
        h = scale_shift(h + first / math.sqrt(2), emb, jnp.float32)
        return conv(z_t.shape[-1], 1, zero=True, dtype=jnp.float32, name="conv_out")(h)
