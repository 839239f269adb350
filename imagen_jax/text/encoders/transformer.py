"""Layers of the CLIP text and BERT encoders: those of a transformer with biases and learnt positions.

Attention is softmax(q kᵀ / sqrt(e) + mask) v. Norms and softmax are computed in float32 whatever the compute dtype,
and norms and biases are held in float32.

Parameters carry the T5 encoder's names where they are the same thing: token_embedder/embedding,
encoder/layers_i/{attention/{query,key,value,out}, mlp/{wi,wo}, …_layer_norm}, each dense with kernel and bias, each
norm with scale and bias; scanned layers stand stacked on a first axis under encoder/layers.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from imagen_jax.errors import UserError
from imagen_jax.text.encoders import t5
from imagen_jax.text.encoders.config import DTYPES, EncoderConfig, check_positive
from imagen_jax.typing import Array, Bool, Float, Int

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
    **{name: t5.ACTIVATIONS[name] for name in ("gelu", "gelu_exact", "relu", "silu")},
}
_INIT_STD = 0.02


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig(EncoderConfig):
    """Sizes of a transformer with learnt positions.

    Args:
      vocab_size: rows of the token embedding, >= the vocabulary's pieces.
      embed_dim: width of the token outputs; num_heads divides it.
      num_heads: attention heads.
      num_layers: layers of the published model.
      mlp_dim: hidden width of the feed-forward block.
      max_positions: rows of the position embedding: the most tokens of a caption.
      activation: "quick_gelu" (x sigmoid(1.702 x)), "gelu_exact", "gelu" (by tanh), "relu" or "silu".
      norm_epsilon: added to the variance in the norms, in (0, 1).
      scan_layers: one compiled layer run num_layers times: large encoders compile in a fraction of the time.
      dtype: compute dtype, "float32" or "bfloat16".
    """

    vocab_size: int
    embed_dim: int
    num_heads: int
    num_layers: int
    mlp_dim: int
    max_positions: int
    activation: str
    norm_epsilon: float
    scan_layers: bool = False
    dtype: str = "float32"

    def __post_init__(self) -> None:
        name = type(self).__name__
        check_positive(self, "vocab_size", "embed_dim", "num_heads", "num_layers", "mlp_dim", "max_positions")
        if self.embed_dim % self.num_heads:
            raise UserError(
                f"{name}.embed_dim ({self.embed_dim}) must be divisible by num_heads ({self.num_heads}); heads of 64 "
                "are usual"
            )
        if self.activation not in ACTIVATIONS:
            raise UserError(f"{name}.activation must be one of {sorted(ACTIVATIONS)}; got {self.activation!r}")
        if not isinstance(self.norm_epsilon, float) or not 0 < self.norm_epsilon < 1:
            raise UserError(
                f"{name}.norm_epsilon must be in (0, 1); got {self.norm_epsilon!r}; CLIP uses 1e-5, BERT 1e-12"
            )
        if not isinstance(self.scan_layers, bool):
            raise UserError(f"{name}.scan_layers must be True or False; got {self.scan_layers!r}")
        if self.dtype not in DTYPES:
            raise UserError(f"{name}.dtype must be one of {DTYPES}; got {self.dtype!r}")


class LayerNorm(nn.Module):
    """Norm over the width, with scale and bias, computed in float32."""

    config: TransformerConfig
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        def param(name: str, init: nn.initializers.Initializer) -> Array:
            named: Any = nn.with_logical_partitioning(init, ("embed",))
            return self.param(name, named, (x.shape[-1],), self.param_dtype).astype(jnp.float32)

        y = x.astype(jnp.float32)
        y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.config.norm_epsilon)
        y = y * param("scale", nn.initializers.ones) + param("bias", nn.initializers.zeros)
        return y.astype(self.config.dtype)


class Dense(nn.Module):
    """Matrix product and bias; `axes` are the logical names of the kernel's dimensions."""

    features: int
    axes: tuple[str, str]
    config: TransformerConfig
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b n i"]) -> Float[Array, "b n o"]:
        kernel_init: Any = nn.with_logical_partitioning(nn.initializers.normal(_INIT_STD), self.axes)
        kernel = self.param("kernel", kernel_init, (x.shape[-1], self.features), self.param_dtype)
        bias_init: Any = nn.with_logical_partitioning(nn.initializers.zeros, self.axes[1:])
        bias = self.param("bias", bias_init, (self.features,), self.param_dtype)
        # Without HIGHEST, accelerators would run float32 products at TF32 or bfloat16 precision.
        y = jnp.dot(x, kernel.astype(self.config.dtype), precision=jax.lax.Precision.HIGHEST)
        return y + bias.astype(self.config.dtype)


class Attention(nn.Module):
    """Self-attention."""

    config: TransformerConfig
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], mask: Bool[Array, "b 1 _q n"]) -> Float[Array, "b n d"]:
        """Attends; `mask` is True where a query may see a key, of all queries alike when _q is 1."""
        c = self.config
        head_dim = c.embed_dim // c.num_heads
        dense = functools.partial(Dense, c.embed_dim, config=c, param_dtype=self.param_dtype)
        heads = (*x.shape[:2], c.num_heads, head_dim)
        q, k, v = (dense(("embed", "heads"), name=name)(x).reshape(heads) for name in ("query", "key", "value"))
        einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
        logits = einsum("bqke,bpke->bkqp", q, k, preferred_element_type=jnp.float32) * head_dim**-0.5
        weights = jax.nn.softmax(jnp.where(mask, logits, t5.MASKED_LOGIT), axis=-1).astype(c.dtype)
        y = einsum("bkqp,bpke->bqke", weights, v).reshape(x.shape)
        return dense(("heads", "embed"), name="out")(y)


class Mlp(nn.Module):
    """Feed-forward block."""

    config: TransformerConfig
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        c = self.config
        y = Dense(c.mlp_dim, ("embed", "mlp"), c, self.param_dtype, name="wi")(x)
        return Dense(c.embed_dim, ("mlp", "embed"), c, self.param_dtype, name="wo")(ACTIVATIONS[c.activation](y))


class Embedder(nn.Module):
    """Rows of a learnt table; `axis` is the logical name of its first dimension."""

    num_rows: int
    axis: str
    config: TransformerConfig
    param_dtype: Any

    @nn.compact
    def __call__(self, indices: Int[Array, "*b n"]) -> Float[Array, "*b n d"]:
        init: Any = nn.with_logical_partitioning(nn.initializers.normal(_INIT_STD), (self.axis, "embed"))
        table = self.param("embedding", init, (self.num_rows, self.config.embed_dim), self.param_dtype)
        return jnp.take(table, indices, axis=0).astype(self.config.dtype)


class Stack(nn.Module):
    """Layers one after the other.

    Args:
      config: sizes.
      layer: module of one: (config, param_dtype) and (x, mask) → (x, None), what `nn.scan` takes.
      num_layers: how many are run; >= 1.
      param_dtype: dtype of the parameters that `init` draws.
    """

    config: TransformerConfig
    layer: Callable[..., Any]
    num_layers: int
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], mask: Bool[Array, "b 1 _q n"]) -> Float[Array, "b n d"]:
        if not self.config.scan_layers:
            for i in range(self.num_layers):
                x, _ = self.layer(self.config, self.param_dtype, name=f"layers_{i}")(x, mask)
            return x
        scanned = nn.scan(
            self.layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=self.num_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        x, _ = scanned(self.config, self.param_dtype, name="layers")(x, mask)
        return x
