"""The T5 encoder (v1.0 and v1.1) in Flax Linen, with t5x's parameter names.

Imagen conditions on the token outputs of a frozen T5-XXL v1.1 encoder (section 2.1). One layer computes

    x <- x + out(softmax(q kᵀ + bias[key - query] + mask) v)      q, k, v of RMSNorm(x)
    x <- x + wo(gelu(wi_0(y)) * wi_1(y))                          y = RMSNorm(x); v1.0: wo(relu(wi(y)))

with no 1/sqrt(head_dim) on the logits (the query's initialiser carries it), no biases, one relative position
bias shared by all layers, tanh GELU, and RMSNorm (1e-6) and softmax in float32 whatever the compute dtype.

Parameters: token_embedder/embedding, encoder/relpos_bias/rel_embedding (heads, buckets),
encoder/layers_i/{pre_attention_layer_norm, attention/{query,key,value,out}, pre_mlp_layer_norm,
mlp/{wi_0,wi_1,wo}}, encoder/encoder_norm; v1.0 has mlp/wi in place of wi_0 and wi_1. Two variants: a bias of
each layer's own, encoder/layers_i/relative_posemb/rel_embedding (umT5), and scanned layers, whose parameters stand
stacked on a first axis under encoder/layers.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from imagen_jax.errors import UserError
from imagen_jax.text.encoders.config import DTYPES, EncoderConfig, check_positive
from imagen_jax.typing import Array, Bool, Float, Int

MASKED_LOGIT = -1e10
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": functools.partial(nn.gelu, approximate=True),
    "gelu_exact": functools.partial(nn.gelu, approximate=False),
    "relu": nn.relu,
    "silu": nn.silu,
    "linear": lambda x: x,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Config(EncoderConfig):
    """Sizes of a T5 encoder; the random demo encoder's initialisation too.

    Args:
      vocab_size: rows of the token embedding, >= the vocabulary's pieces.
      embed_dim: width of the token outputs.
      num_heads: attention heads.
      head_dim: width of one head; num_heads * head_dim need not be embed_dim.
      num_layers: encoder layers.
      mlp_dim: hidden width of the feed-forward block.
      activations: ("gelu", "linear") for v1.1 (gated), ("relu",) for v1.0.
      num_relative_buckets: relative position buckets, both directions together; even.
      relative_max_distance: offsets in tokens from this on share the last bucket.
      relpos_per_layer: every layer has a relative position bias of its own, as umT5's.
      norm_epsilon: added to the mean square in RMSNorm.
      scan_layers: one compiled layer run num_layers times: large encoders compile in a fraction of the time.
      dtype: compute dtype, "float32" or "bfloat16" (float16 overflows in T5); parameters are float32.
      relpos_init_std: standard deviation of the random relative position bias, >= 0; a trained checkpoint
        replaces it. The frozen random encoder's usefulness hangs on it: each head's largest draw lies at a
        near offset (heads 0, 1, 2, ... at -1, +1, -2, ...), and a wide draw makes the head attend to that
        offset alone. A linear read-out at the noun of "a red cube above a blue ball" finds its own colour
        (of 10) in 58 % of captions at 0.2 without that placement (T5's usual draw), in 96 % at 4 and in
        99.6 % at 8 with it, and whether the noun comes first or second in 99.9 % (8 heads of 16, 2 layers,
        width 128, worst of the two or three seeds tried).
    """

    architecture: ClassVar[str] = "t5"

    vocab_size: int
    embed_dim: int
    num_heads: int
    head_dim: int
    num_layers: int
    mlp_dim: int
    activations: tuple[str, ...] = ("gelu", "linear")
    num_relative_buckets: int = 32
    relative_max_distance: int = 128
    relpos_per_layer: bool = False
    norm_epsilon: float = 1e-6
    scan_layers: bool = False
    dtype: str = "float32"
    relpos_init_std: float = 8.0

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "embed_dim", "num_heads", "head_dim", "num_layers", "mlp_dim")
        check_positive(self, *sizes, "num_relative_buckets", "relative_max_distance")
        buckets, distance = self.num_relative_buckets, self.relative_max_distance
        if buckets % 4 or buckets < 8:
            raise UserError(
                f"T5Config.num_relative_buckets ({buckets}) must be at least 8 and divisible by 4; T5 uses 32"
            )
        if distance <= buckets // 4:
            raise UserError(
                f"T5Config.relative_max_distance ({distance}) must exceed num_relative_buckets / 4 "
                f"({buckets // 4}); T5 uses 128"
            )
        activations = self.activations
        if isinstance(activations, str) or not activations or any(a not in ACTIVATIONS for a in activations):
            raise UserError(
                f"T5Config.activations must be a tuple of names among {sorted(ACTIVATIONS)}; got "
                f"{activations!r}; "
                'choose ("gelu", "linear") for v1.1 or ("relu",) for v1.0'
            )
        object.__setattr__(self, "activations", tuple(activations))  # gin may hand over a list: not hashable
        for name in ("relpos_per_layer", "scan_layers"):
            if not isinstance(getattr(self, name), bool):
                raise UserError(f"T5Config.{name} must be True or False; got {getattr(self, name)!r}")
        if not isinstance(self.norm_epsilon, float) or not 0 < self.norm_epsilon < 1:
            raise UserError(f"T5Config.norm_epsilon must be in (0, 1); got {self.norm_epsilon!r}; T5 uses 1e-6")
        if self.dtype not in DTYPES:
            raise UserError(f"T5Config.dtype must be one of {DTYPES}; got {self.dtype!r} (float16 overflows in T5)")
        std = self.relpos_init_std
        if isinstance(std, bool) or not isinstance(std, int | float) or not 0 <= std < math.inf:
            raise UserError(f"T5Config.relpos_init_std must be a finite number >= 0; got {std!r}")

    def network(self, param_dtype: Any = jnp.float32) -> nn.Module:
        """See EncoderConfig."""
        return T5Encoder(self, param_dtype)

    def fingerprint(self) -> dict[str, Any]:
        """See EncoderConfig; the architecture is left out, as stores made when there was no other have it."""
        return self.embedding_fields()


def relative_position_buckets(num_tokens: int, num_buckets: int, max_distance: int) -> Int[np.ndarray, "n n"]:
    """Bucket of each (query, key) pair: half the buckets for keys before, half for keys after the query.

    In each half the first half is exact offsets, the rest grows logarithmically up to max_distance.
    """
    offset = np.arange(num_tokens)[None, :] - np.arange(num_tokens)[:, None]
    half = num_buckets // 2
    exact = half // 2
    distance = np.abs(offset)
    # The tiny addend keeps exact powers (16, 32, 64 of 8) out of the bucket below, as in t5x.
    ratio = np.maximum(distance, 1) / exact + np.finfo(np.float32).eps
    log_bucket = exact + (np.log(ratio) / np.log(max_distance / exact) * (half - exact)).astype(np.int32)
    bucket = np.where(distance < exact, distance, np.minimum(log_bucket, half - 1))
    return (bucket + half * (offset > 0)).astype(np.int32)


class RMSNorm(nn.Module):
    """T5's layer norm: no mean, no bias, computed in float32."""

    config: T5Config
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        init: Any = nn.with_logical_partitioning(nn.initializers.ones, ("embed",))
        scale = self.param("scale", init, (x.shape[-1],), self.param_dtype)
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.config.norm_epsilon)
        return (y * scale.astype(jnp.float32)).astype(self.config.dtype)


class Dense(nn.Module):
    """Matrix product without bias; `axes` are the logical names of the kernel's dimensions."""

    features: int
    axes: tuple[str, str]
    dtype: Any
    param_dtype: Any
    init_scale: float = 1.0
    init_distribution: Literal["normal", "truncated_normal"] = "normal"

    @nn.compact
    def __call__(self, x: Float[Array, "b n i"]) -> Float[Array, "b n o"]:
        init: Any = nn.initializers.variance_scaling(self.init_scale, "fan_in", self.init_distribution)
        init = nn.with_logical_partitioning(init, self.axes)
        kernel = self.param("kernel", init, (x.shape[-1], self.features), self.param_dtype)
        # Without HIGHEST, accelerators would run float32 products at TF32 or bfloat16 precision.
        return jnp.dot(x, kernel.astype(self.dtype), precision=jax.lax.Precision.HIGHEST)


def near_offset_init(std: float) -> nn.initializers.Initializer:
    """Normal draws; in each head the largest changes places with a near offset's.

    Left to chance, most draws have no head that attends to the word before, and adjectives come loose.
    """

    def init(key: Array, shape: tuple[int, int], dtype: Any) -> Float[Array, "k buckets"]:
        num_heads, num_buckets = shape
        table = nn.initializers.normal(std)(key, shape, dtype)
        heads = jnp.arange(num_heads)  # Made by the program: a damaged config may say billions.
        pairs = heads % (2 * (num_buckets // 4 - 1))  # -1, +1, -2, +2, ... up to the last exact offset
        near = pairs // 2 + 1 + num_buckets // 2 * (pairs % 2)
        largest = jnp.argmax(table, axis=1)
        swapped = table.at[heads, largest].set(table[heads, near])
        return swapped.at[heads, near].set(table[heads, largest])

    return init


class RelativePositionBias(nn.Module):
    """One learned bias per head and bucket of key position minus query position."""

    config: T5Config
    param_dtype: Any

    @nn.compact
    def __call__(self, num_tokens: int) -> Float[Array, "1 k n n"]:
        c = self.config
        shape = (c.num_heads, c.num_relative_buckets)
        init = nn.with_logical_partitioning(near_offset_init(c.relpos_init_std), ("heads", "buckets"))
        table = self.param("rel_embedding", init, shape, self.param_dtype)
        buckets = relative_position_buckets(num_tokens, c.num_relative_buckets, c.relative_max_distance)
        return jnp.asarray(table, jnp.float32)[:, buckets][None]


class Attention(nn.Module):
    """Self-attention over the unpadded keys, logits unscaled."""

    config: T5Config
    param_dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], mask: Bool[Array, "b n"], bias: Float[Array, "1 k n n"]
    ) -> Float[Array, "b n d"]:
        c = self.config
        dtype = jnp.dtype(c.dtype)
        width = c.num_heads * c.head_dim
        dense = functools.partial(Dense, dtype=dtype, param_dtype=self.param_dtype)
        heads = (*x.shape[:2], c.num_heads, c.head_dim)
        into = ("embed", "heads")
        q = dense(width, into, init_scale=1 / c.head_dim, name="query")(x).reshape(heads)
        k = dense(width, into, name="key")(x).reshape(heads)
        v = dense(width, into, name="value")(x).reshape(heads)
        einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
        logits = einsum("bqke,bpke->bkqp", q, k, preferred_element_type=jnp.float32) + bias
        logits = jnp.where(mask[:, None, None, :], logits, MASKED_LOGIT)
        weights = jax.nn.softmax(logits, axis=-1).astype(dtype)
        y = einsum("bkqp,bpke->bqke", weights, v).reshape(*x.shape[:2], width)
        return dense(x.shape[-1], ("heads", "embed"), name="out")(y)


class Mlp(nn.Module):
    """Feed-forward block: product of the activated projections, then back to embed_dim."""

    config: T5Config
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        c = self.config
        dense = functools.partial(
            Dense,
            dtype=jnp.dtype(c.dtype),
            param_dtype=self.param_dtype,
            init_distribution="truncated_normal",
        )
        names = ["wi"] if len(c.activations) == 1 else [f"wi_{i}" for i in range(len(c.activations))]
        parts = [
            ACTIVATIONS[activation](dense(c.mlp_dim, ("embed", "mlp"), name=name)(x))
            for activation, name in zip(c.activations, names, strict=True)
        ]
        return dense(x.shape[-1], ("mlp", "embed"), name="wo")(functools.reduce(jnp.multiply, parts))


class EncoderLayer(nn.Module):
    """Attention and feed-forward block, each normed before and added to the residual stream."""

    config: T5Config
    param_dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], mask: Bool[Array, "b n"], bias: Float[Array, "1 k n n"] | None
    ) -> tuple[Float[Array, "b n d"], None]:
        """The stream after this layer, and nothing (what `nn.scan` collects)."""
        if bias is None:
            bias = RelativePositionBias(self.config, self.param_dtype, name="relative_posemb")(x.shape[1])
        norm = functools.partial(RMSNorm, self.config, self.param_dtype)
        y = norm(name="pre_attention_layer_norm")(x)
        x = x + Attention(self.config, self.param_dtype, name="attention")(y, mask, bias)
        y = norm(name="pre_mlp_layer_norm")(x)
        return x + Mlp(self.config, self.param_dtype, name="mlp")(y), None


class EncoderStack(nn.Module):
    """All layers, sharing one relative position bias unless each has its own, and the last norm."""

    config: T5Config
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], mask: Bool[Array, "b n"]) -> Float[Array, "b n d"]:
        c = self.config
        bias = None
        if not c.relpos_per_layer:
            bias = RelativePositionBias(c, self.param_dtype, name="relpos_bias")(x.shape[1])
        if c.scan_layers:
            scanned = nn.scan(
                EncoderLayer,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=nn.broadcast,
                length=c.num_layers,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            x, _ = scanned(c, self.param_dtype, name="layers")(x, mask, bias)
        else:
            for i in range(c.num_layers):
                x, _ = EncoderLayer(c, self.param_dtype, name=f"layers_{i}")(x, mask, bias)
        return RMSNorm(c, self.param_dtype, name="encoder_norm")(x)


class TokenEmbedder(nn.Module):
    """Token embedding table."""

    config: T5Config
    param_dtype: Any

    @nn.compact
    def __call__(self, tokens: Int[Array, "b n"]) -> Float[Array, "b n d"]:
        shape = (self.config.vocab_size, self.config.embed_dim)
        init: Any = nn.with_logical_partitioning(nn.initializers.normal(1.0), ("vocab", "embed"))
        table = self.param("embedding", init, shape, self.param_dtype)
        return jnp.take(table, tokens, axis=0).astype(self.config.dtype)


class T5Encoder(nn.Module):
    """Token ids to token outputs.

    Args:
      config: sizes.
      param_dtype: dtype of the parameters that `init` draws.
    """

    config: T5Config
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: Int[Array, "b n"], mask: Bool[Array, "b n"]) -> Float[Array, "b n d"]:
        """Encodes; `mask` is True at unpadded tokens; the outputs elsewhere carry no meaning."""
        x = TokenEmbedder(self.config, self.param_dtype, name="token_embedder")(tokens)
        x = EncoderStack(self.config, self.param_dtype, name="encoder")(x, mask)
        return x.astype(jnp.float32)
