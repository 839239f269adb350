"""The base U-Net (paper appendix F.1, 64x64 model; the architecture of arXiv 2105.05233 with text).

    conv_in → per level: [ResBlock (+ attention)] x num_res_blocks, BigGAN down-sampling block → middle
            → per level, upwards: [concat skip, ResBlock (+ attention)] x (num_res_blocks + 1), up-sampling block → out

Paper's 2B model: dim 512, dim_mults (1, 2, 3, 4), num_res_blocks 3, joint attention at 32, 16, 8
(configs/models/imagen_64_2b.gin).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from imagen_jax.models.attention import AttentionSpec, attend, check_kinds
from imagen_jax.models.backbone import CONDITIONS
from imagen_jax.models.denoiser import Conditioning, check_size
from imagen_jax.models.embeddings import Embedder, TextSpec
from imagen_jax.models.layers import (
    MAX_BLOCKS,
    Dtype,
    ResBlock,
    check_dtype,
    check_remat,
    check_sizes,
    conv,
    depth_to_space,
    downsample,
    group_norm,
    rematerialised,
    space_to_depth,
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
      patch: side of the squares of pixels that enter as one position, their values as channels; 2 leaves out a level at
        full size, where small networks spend most of their time (arXiv 2301.11093, section 4, "space-to-depth").
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
    patch: int = 1
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
        return self.patch * 2 ** (len(self.dim_mults) - 1)

    @property
    def conditions(self) -> tuple[str, ...]:
        """Conditioning that the network reads: all of it."""
        return CONDITIONS

    @property
    def attention_spec(self) -> AttentionSpec:
        """Settings of every attention layer."""
        return AttentionSpec(
            head_dim=self.head_dim,
            text_norm=self.text_norm,
            fused=self.fused_attention,
            remat=self.remat,
            dtype=self.dtype,
        )

    @property
    def text_spec(self) -> TextSpec:
        """Settings of the text's entry."""
        return TextSpec(dim=self.text_dim, pooling=self.text_pooling, norm=self.text_norm)

    @nn.compact
    def __call__(
        self, z_t: Float[Array, "b h w c"], log_snr: Float[Array, " b"], cond: Conditioning
    ) -> Float[Array, "b h w c2"]:
        check_size(z_t.shape[1], z_t.shape[2], self.size_factor)
        check_kinds(self.attention, len(self.dim_mults))
        check_remat(self.remat)
        check_dtype(self.dtype)
        check_sizes(self, "dim", "head_dim", "patch", "text_dim")
        check_sizes(self, "emb_dim", least=0)
        check_sizes(self, "dim_mults", most=MAX_BLOCKS)
        check_sizes(self, "num_res_blocks", least=0, most=MAX_BLOCKS)
        spec, emb_dim = self.attention_spec, self.emb_dim or 4 * self.dim
        emb, text = Embedder(emb_dim, self.text_spec, self.head_dim, self.dtype, name="embedder")(log_snr, cond)
        res_block = rematerialised(ResBlock, self.remat)

        def attention(level: int, h: Array, name: str) -> Array:
            return attend(self.attention[level], h, text, cond.text_mask, spec, name=name)

        def block(h: Array, features: int, name: str, resample=None) -> Array:
            return res_block(features, resample, self.dtype, name=name)(h, emb)

        x = jnp.concatenate([z_t, *cond.images()], axis=-1)  # [b, h, w, c] -> [b, h, w, c times the images]
        x = space_to_depth(x.astype(self.dtype), self.patch)  # [b, h, w, c] -> [b, h/p, w/p, p p c]
        h = conv(self.dim, dtype=self.dtype, name="conv_in")(x)  # -> [b, h/p, w/p, dim]
        skips = [h]
        last = len(self.dim_mults) - 1
        for level, mult in enumerate(self.dim_mults):
            for i in range(self.num_res_blocks):
                h = block(h, self.dim * mult, f"down_{level}_{i}")
                h = attention(level, h, f"down_{level}_{i}_attention")
                skips.append(h)
            if level < last:
                h = block(h, self.dim * mult, f"down_{level}_resample", downsample)  # [b, h, w, c] -> [b, h/2, w/2, c]
                skips.append(h)

        h = block(h, h.shape[-1], "mid_in")
        h = attention(last, h, "mid_attention")
        h = block(h, h.shape[-1], "mid_out")

        for level, mult in reversed(list(enumerate(self.dim_mults))):
            for i in range(self.num_res_blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)  # [b, h, w, c] -> [b, h, w, c + c_skip]
                h = block(h, self.dim * mult, f"up_{level}_{i}")
                h = attention(level, h, f"up_{level}_{i}_attention")
            if level > 0:
                h = block(h, self.dim * mult, f"up_{level}_resample", upsample)  # [b, h, w, c] -> [b, 2 h, 2 w, c]

        h = jax.nn.swish(group_norm(h.shape[-1], name="norm_out")(h))
        # [b, h/p, w/p, dim] -> [b, h, w, c], or 2 c with a learned variance
        channels = (1 + self.learned_variance) * z_t.shape[-1] * self.patch**2
        return depth_to_space(conv(channels, zero=True, dtype=jnp.float32, name="conv_out")(h), self.patch)
