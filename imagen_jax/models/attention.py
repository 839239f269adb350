"""Attention of image positions over themselves and the text tokens."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from imagen_jax.errors import UserError
from imagen_jax.models.layers import Dtype, dense, group_norm, layer_norm
from imagen_jax.typing import Array, Bool, Float


class TextSelfAttention(nn.Module):
    """Self-attention with the text tokens as extra keys and values (paper appendix D.3.1: base and 64→256 models).

    Attributes:
      head_dim: width of one head; must divide the channels.
      dtype: compute type; the softmax is float32.
    """

    head_dim: int = 64
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], text: Float[Array, "b n d"], text_mask: Bool[Array, "b n"]
    ) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        if c % self.head_dim:
            raise UserError(f"head_dim ({self.head_dim}) must divide the channels ({c}) of every attention level")
        heads = c // self.head_dim
        flat = group_norm(c, name="norm")(x).reshape(b, h * w, c).astype(self.dtype)
        qkv = dense(3 * c, axes=("embed", "heads"), use_bias=False, dtype=self.dtype, name="qkv")(flat)
        query, key, value = jnp.split(qkv.reshape(b, h * w, 3 * heads, self.head_dim), 3, axis=2)
        # A LayerNorm of its own in each attention layer: "in the attention and pooling layers" (paper section 2.5).
        tokens = layer_norm(name="text_norm")(text).astype(self.dtype)
        text_kv = dense(2 * c, axes=("text", "heads"), use_bias=False, dtype=self.dtype, name="text_kv")(tokens)
        text_key, text_value = jnp.split(text_kv.reshape(b, -1, 2 * heads, self.head_dim), 2, axis=2)
        mask = jnp.concatenate([text_mask, jnp.ones((b, h * w), bool)], axis=1)
        out = jax.nn.dot_product_attention(
            query,
            jnp.concatenate([text_key, key], axis=1),
            jnp.concatenate([text_value, value], axis=1),
            mask=mask[:, None, None, :],
        ).reshape(b, h * w, c)
        out = dense(c, axes=("heads", "embed"), zero=True, dtype=self.dtype, name="out")(out)
        return x + out.reshape(b, h, w, c)
