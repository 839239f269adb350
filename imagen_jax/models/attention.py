"""Attention of image positions over themselves and the text tokens.

What a level of a U-Net attends to is one of

    none         nothing
    joint        positions and text at once: the text tokens are extra keys and values of self-attention (paper
                 appendix D.3.1: base and 64→256 models)
    cross        the text alone (256→1024 model, which has no self-attention)
    self         positions alone: the text enters by pooling only (ablation of appendix D.3.1)
    self_cross   positions, then the text in a layer of its own (ablation of appendix D.3.1: cross-attention)
"""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from imagen_jax.errors import UserError
from imagen_jax.models.layers import ATTENDED, Dtype, dense, group_norm, layer_norm, rematerialised
from imagen_jax.typing import Array, Bool, Float, Int

# Added to the logits of keys that are not there; finite, so that a row without any key is no NaN.
_MASKED = -1e30
# Kind: the layers it is made of, as (suffix of the name, over positions, over text).
KINDS: dict[str, tuple[tuple[str, bool, bool], ...]] = {
    "none": (),
    "joint": (("", True, True),),
    "cross": (("", False, True),),
    "self": (("", True, False),),
    "self_cross": (("", True, False), ("_cross", False, True)),
}


def check_kinds(attention: tuple[str, ...], num_levels: int) -> None:
    """Raises UserError unless there is one kind of KINDS for each level."""
    if len(attention) != num_levels or any(kind not in KINDS for kind in attention):
        raise UserError(
            f"attention {tuple(attention)} must have one entry for each of the {num_levels} levels, each one of "
            f"{', '.join(KINDS)}"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionSpec:
    """Settings that all attention layers of a network share.

    Args:
      head_dim: width of one head; must divide the channels.
      text_norm: LayerNorm on the text, of each layer's own: "in the attention and pooling layers" (section 2.5).
      fused: by `fused_attention`.
      remat: what the backward pass computes again: one of `layers.REMATS`.
      dtype: compute type; the softmax is float32.
    """

    head_dim: int
    text_norm: bool = True
    fused: bool = False
    remat: str = "none"
    dtype: Dtype = jnp.float32


class Attention(nn.Module):
    """One attention layer with its residual connection.

    Attributes:
      spec: its settings; `spec.remat` is for whoever makes the layer (`attend`).
      over_image: keys and values come from the image positions.
      over_text: keys and values come from the text tokens. A row without text is left as it is where there are no
        other keys.
    """

    spec: AttentionSpec
    over_image: bool
    over_text: bool

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], text: Float[Array, "b n d"], text_mask: Bool[Array, "b n"]
    ) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        head_dim, dtype = self.spec.head_dim, self.spec.dtype
        if c % head_dim:
            raise UserError(f"head_dim ({head_dim}) must divide the channels ({c}) of every attention level")
        heads = c // head_dim
        flat = group_norm(c, name="norm")(x).reshape(b, h * w, c).astype(dtype)  # [b, h, w, c] -> [b, s, c]
        names = ["query", "key", "value"] if self.over_image else ["query"]
        width = len(names) * c
        own = dense(width, axes=("embed", "heads"), use_bias=False, dtype=dtype, name="qkv")(flat)  # [b, s, 3 c]
        own = own.reshape(b, h * w, len(names) * heads, head_dim)  # -> [b, s, 3 k, e]
        query, *own_key_value = jnp.split(own, len(names), axis=2)  # -> 3 of [b, s, k, e]
        keys, values, masks = [], [], []
        if self.over_text:
            if self.spec.fused:
                text, text_mask = real_first(text, text_mask)
            tokens = layer_norm(name="text_norm")(text) if self.spec.text_norm else text
            both = dense(2 * c, axes=("text", "heads"), use_bias=False, dtype=dtype, name="text_kv")(
                tokens.astype(dtype)
            )  # [b, n, d] -> [b, n, 2 c]
            key, value = jnp.split(both.reshape(b, -1, 2 * heads, head_dim), 2, axis=2)  # -> 2 of [b, n, k, e]
            keys, values, masks = [key], [value], [text_mask]
        if self.over_image:
            keys, values = [*keys, own_key_value[0]], [*values, own_key_value[1]]
            masks.append(jnp.ones((b, h * w), bool))
        if self.spec.fused:
            # The image before the text, whose padding is then at the end.
            keys, values, masks = keys[::-1], values[::-1], masks[::-1]
        key, value, mask = (jnp.concatenate(parts, axis=1) for parts in (keys, values, masks))  # -> [b, n + s, …]
        if self.spec.fused:
            out = fused_attention(query, key, value, mask.sum(axis=1)).reshape(b, h * w, c)
        else:
            out = softmax_attention(query, key, value, mask, dtype).reshape(b, h * w, c)  # [b, s, k, e] -> [b, s, c]
        out = dense(c, axes=("heads", "embed"), zero=True, dtype=dtype, name="out")(out)
        if not self.over_image:
            out = out * text_mask.any(axis=1)[:, None, None]
        return x + out.reshape(b, h, w, c)  # [b, s, c] -> [b, h, w, c]


def softmax_attention(
    query: Float[Array, "b s k e"],
    key: Float[Array, "b n k e"],
    value: Float[Array, "b n k e"],
    mask: Bool[Array, "b n"],
    dtype: Dtype,
) -> Float[Array, "b s k e"]:
    """softmax(query keyᵀ / sqrt(e)) value over the keys that `mask` keeps, with a float32 softmax.

    The weights are divided by their sum after they have met the values, where a column of ones gives that sum: so the
    array of weights, by far the largest, is not read and written again for it. On CPU this is faster than
    `jax.nn.dot_product_attention` (docs/performance.md).
    """
    # [b, s, k, e] -> [b, k, s, e], and n for s
    query, key, value = (x.transpose(0, 2, 1, 3) for x in (query / math.sqrt(query.shape[-1]), key, value))
    return _attended(query, key, value, mask, dtype).transpose(0, 2, 1, 3)  # [b, k, s, e] -> [b, s, k, e]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attended(query: Array, key: Array, value: Array, mask: Array, dtype: Dtype) -> Array:
    return _attend_forward(query, key, value, mask, dtype)[0]


def _attend_forward(
    query: Array, key: Array, value: Array, mask: Array, dtype: Dtype
) -> tuple[Array, tuple[Array, ...]]:
    logits = jnp.einsum("bkse,bkne->bksn", query, key, preferred_element_type=jnp.float32)
    logits = logits + jnp.where(mask, 0.0, _MASKED)[:, None, None, :]
    weights = jnp.exp(logits - logits.max(-1, keepdims=True)).astype(dtype)
    ones = jnp.concatenate([value, jnp.ones_like(value[..., :1])], axis=-1)  # -> [b, k, n, e + 1]
    summed = jnp.einsum("bksn,bkne->bkse", weights, ones, preferred_element_type=jnp.float32)
    # Where blocks are computed again, these two are not: the products above are then needed once more, but once alone.
    sums = checkpoint_name(summed[..., -1:], ATTENDED)
    out = checkpoint_name((summed[..., :-1] / sums).astype(dtype), ATTENDED)
    return out, (query, key, value, weights, sums, out)


def _attend_backward(dtype: Dtype, kept: tuple[Array, ...], given: Array) -> tuple[Array | None, ...]:
    """Gradients by matmuls of the compute type: left to jax, the float32 of the logits would be theirs too.

    With P the weights before their division by the sums S, O the output and dO its gradient: dV = Pᵀ (dO / S),
    d logits = P ((dO / S) Vᵀ - (dO · O) / S), dQ = d logits K, dK = d logitsᵀ Q.
    """
    query, key, value, weights, sums, out = kept

    def product(equation: str, left: Array, right: Array) -> Array:
        return jnp.einsum(equation, left, right, preferred_element_type=jnp.float32)

    wide = given.astype(jnp.float32) / sums
    scaled = wide.astype(dtype)
    flow = product("bkse,bkne->bksn", scaled, value) - (wide * out).sum(-1, keepdims=True)
    d_logits = (weights * flow).astype(dtype)
    d_query = product("bksn,bkne->bkse", d_logits, key).astype(dtype)
    d_key = product("bksn,bkse->bkne", d_logits, query).astype(dtype)
    d_value = product("bksn,bkse->bkne", weights, scaled).astype(dtype)
    return d_query, d_key, d_value, None


_attended.defvjp(_attend_forward, _attend_backward)


def fused_attention(
    query: Float[Array, "b s k e"],
    key: Float[Array, "b n k e"],
    value: Float[Array, "b n k e"],
    num_keys: Int[Array, " b"],
) -> Float[Array, "b s k e"]:
    """The same over the first `num_keys` keys of each row, by cuDNN, which holds no array of all weights.

    Without any key a row has the first, as cuDNN has no answer then; `Attention` discards it.

    Raises:
      UserError: no NVIDIA GPU, or a compute type, head width or odd number of queries that cuDNN has no kernel for.
    """
    # Its backward pass wants even numbers of keys; this one is never among the first.
    odd = ((0, 0), (0, key.shape[1] % 2), (0, 0), (0, 0))
    try:
        return jax.nn.dot_product_attention(
            query,
            jnp.pad(key, odd),
            jnp.pad(value, odd),
            key_value_seq_lengths=jnp.maximum(num_keys, 1).astype(jnp.int32),
            implementation="cudnn",
        )
    except (RuntimeError, NotImplementedError) as error:
        raise UserError(
            f"fused_attention cannot be had: {error} It wants an NVIDIA GPU, dtype bfloat16 (got {query.dtype}) and a "
            f"head_dim ({query.shape[-1]}) that is a multiple of 8, at most 128; without, set fused_attention = False"
        ) from error


def real_first(
    text: Float[Array, "b n d"], text_mask: Bool[Array, "b n"]
) -> tuple[Float[Array, "b n d"], Bool[Array, "b n"]]:
    """The same tokens, padding last; attention does not see their order."""
    order = jnp.argsort(~text_mask, axis=1, stable=True)
    return jnp.take_along_axis(text, order[..., None], axis=1), jnp.take_along_axis(text_mask, order, axis=1)


def attend(
    kind: str,
    x: Float[Array, "b h w c"],
    text: Float[Array, "b n d"],
    text_mask: Bool[Array, "b n"],
    spec: AttentionSpec,
    *,
    name: str,
) -> Float[Array, "b h w c"]:
    """The attention layers of one kind; call it inside a compact module.

    Args:
      kind: of KINDS.
      x: feature maps.
      text, text_mask: tokens, and which of them are real.
      spec: settings of all of them.
      name: of the layers.
    """
    layer = rematerialised(Attention, spec.remat)
    for suffix, over_image, over_text in KINDS[kind]:
        x = layer(spec, over_image, over_text, name=name + suffix)(x, text, text_mask)
    return x
