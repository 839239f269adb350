"""Embeddings of noise level, augmentation level and pooled text.

The text enters twice (paper section 2.5 and appendix D.3.1): attention-pooled into the embedding that every residual
block reads, and as a token sequence for attention. LayerNorm is applied in both places.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from imagen_jax.errors import UserError
from imagen_jax.models.denoiser import Conditioning
from imagen_jax.models.layers import Dtype, dense, layer_norm
from imagen_jax.typing import Array, Bool, Float


def sinusoid(x: Float[Array, " b"], dim: int, max_period: float = 1e4) -> Float[Array, "b d"]:
    """[cos, sin] features of x at dim/2 geometrically spaced frequencies from 1 down to 1/max_period."""
    freqs = jnp.exp(-jnp.log(max_period) * jnp.arange(dim // 2) / (dim // 2))
    angle = x[:, None] * freqs[None, :]  # [b] -> [b, d/2]
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def masked_mean(tokens: Float[Array, "b n d"], mask: Bool[Array, "b n"]) -> Float[Array, "b d"]:
    """Mean of the real tokens; zero where there is none."""
    weight = mask[..., None].astype(tokens.dtype)
    return (tokens * weight).sum(1) / jnp.maximum(weight.sum(1), 1.0)


# SDXL's width for one number.
_FRAMING_DIM = 256


class AttentionPool(nn.Module):
    """Pools a token sequence to one vector by attention from the masked mean (paper appendix F: attention pooling).

    Attributes:
      head_dim: width of one head; must divide the token width.
      dtype: compute type.
    """

    head_dim: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: Float[Array, "b n d"], mask: Bool[Array, "b n"]) -> Float[Array, "b d"]:
        b, n, d = tokens.shape
        if d % self.head_dim:
            raise UserError(f"head_dim ({self.head_dim}) must divide text_dim ({d}), whose tokens it pools")
        heads = d // self.head_dim
        mean = masked_mean(tokens, mask)
        query = dense(d, axes=("embed", "heads"), dtype=self.dtype, name="query")(mean)  # [b, d]
        key_value = dense(2 * d, axes=("embed", "heads"), dtype=self.dtype, name="key_value")(tokens)
        key, value = jnp.split(key_value.reshape(b, n, 2 * heads, self.head_dim), 2, axis=2)  # 2 of [b, n, k, e]
        pooled = jax.nn.dot_product_attention(
            query.reshape(b, 1, heads, self.head_dim), key, value, mask=mask[:, None, None, :]
        )
        return pooled.reshape(b, d) + mean  # [b, 1, k, e] -> [b, d]


POOLINGS = ("attention", "mean")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextSpec:
    """Settings of the text's entry into a network.

    Args:
      dim: width that the tokens are projected to.
      pooling: how they become one vector: one of POOLINGS.
      norm: LayerNorm on the tokens and on the pooled vector.

    Raises:
      UserError: there is no such pooling.
    """

    dim: int
    pooling: str = "attention"
    norm: bool = True

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise UserError(f"text_pooling ({self.pooling!r}) must be one of {', '.join(POOLINGS)}")


class Embedder(nn.Module):
    """Gives the vector that residual blocks read and the normalised text tokens that attention reads.

    Attributes:
      emb_dim: width of the vector.
      text: how the text enters it, and the width of the tokens given to attention.
      head_dim: head width of the attention pooling.
      dtype: compute type.
    """

    emb_dim: int
    text: TextSpec
    head_dim: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, log_snr: Float[Array, " b"], cond: Conditioning
    ) -> tuple[Float[Array, "b d"], Float[Array, "b n e"]]:
        emb = self._mlp("noise", sinusoid(50.0 * log_snr, self.emb_dim))
        if cond.aug_level is not None:
            emb = emb + self._mlp("aug", sinusoid(1000.0 * cond.aug_level, self.emb_dim))
        if cond.framing is not None:
            # As SDXL does: features of each of the six numbers beside each other, added to the embedding.
            features = sinusoid(cond.framing.reshape(-1), _FRAMING_DIM)
            emb = emb + self._mlp("framing", features.reshape(cond.framing.shape[0], -1))
        # The mask zeroes padding after the bias of the projection, so null text is exactly zero everywhere.
        tokens = layer_norm(name="text_norm")(cond.text) if self.text.norm else cond.text
        tokens = dense(self.text.dim, axes=("text", "embed"), dtype=self.dtype, name="text_proj")(tokens)
        tokens = tokens * cond.text_mask[..., None]  # [b, n, e] -> [b, n, text.dim]
        if self.text.pooling == "attention":
            pooled = AttentionPool(self.head_dim, self.dtype, name="text_pool")(tokens, cond.text_mask)
        else:
            pooled = masked_mean(tokens, cond.text_mask)
        # [b, text.dim] -> [b, emb_dim]
        pooled = self._mlp("pooled", layer_norm(name="pooled_norm")(pooled) if self.text.norm else pooled)
        has_text = cond.text_mask.any(axis=1)[:, None]
        return emb + jnp.where(has_text, pooled, 0.0), tokens

    def _mlp(self, name: str, x: Float[Array, "b c"]) -> Float[Array, "b d"]:
        h = dense(self.emb_dim, dtype=self.dtype, name=f"{name}_in")(x.astype(self.dtype))
        return dense(self.emb_dim, axes=("mlp", "embed"), dtype=self.dtype, name=f"{name}_out")(jax.nn.swish(h))
