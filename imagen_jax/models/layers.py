"""Convolution, dense, norm and residual blocks, with the logical axis names that sharding rules speak of.

Parameters are float32; `dtype` is the compute type. Norms are computed in float32.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any, no_type_check

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from imagen_jax.checks import check_count
from imagen_jax.errors import UserError
from imagen_jax.typing import Array, Float

Dtype = Any
DTYPES = ("float32", "bfloat16")
# Of a layer, and of blocks a level. A kernel of more would have more bytes than any device, and XLA ends the process
# where it has more than 2**63.
MAX_WIDTH, MAX_BLOCKS = 1 << 16, 1 << 10
Layer = Callable[[Array], Array]
# What the backward pass finds saved: everything; what enters a block; besides, what convolutions, dense layers and
# attention give, so that only norms, activations and the weights of attention are computed again; besides, kernels that
# were brought together over a mesh axis, which are then sent once; what enters a block, and on the host what its layers
# give.
REMATS = ("none", "block", "matmuls", "kernels", "offload")
# What `offload` calls the output of a convolution or dense layer.
_LAYER = "layer"
# What attention gives, and the sums of its weights.
ATTENDED = "attended"
_lecun = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
_default_bias = nn.initializers.zeros_init()
_gather_axis: contextvars.ContextVar[str | None] = contextvars.ContextVar("gather_axis", default=None)


@contextlib.contextmanager
def kernels_gathered_over(axis: str) -> Iterator[None]:
    """Layers that are traced inside hold a shard of their kernel on each device of a mesh axis, to be brought together.

    For use inside `jax.shard_map`, manual in `axis`. The backward pass sums gradients where it scatters them.
    """
    token = _gather_axis.set(axis)
    try:
        yield
    finally:
        _gather_axis.reset(token)


class _Gathered(nn.Module):
    """A layer that brings its kernel together when it is used, in its compute type: half the bytes of float32."""

    def param(self, name: str, init_fn: Any, *args: Any, unbox: bool = True, **options: Any) -> Any:
        axis = _gather_axis.get()
        if axis is None:
            return super().param(name, init_fn, *args, unbox=unbox, **options)
        stored: Array = self.get_variable("params", name)
        for dim, size in enumerate(args[0]):
            if stored.shape[dim] != size:
                stored = jax.lax.all_gather(stored.astype(self.dtype), axis, axis=dim, tiled=True)
        return stored


@no_type_check
class _Conv(_Gathered, nn.Conv):
    """nn.Conv whose kernel may be sharded (its own annotations cannot be checked while it runs)."""


@no_type_check
class _Dense(_Gathered, nn.Dense):
    """nn.Dense whose kernel may be sharded."""


def _save_layers(primitive: Any, *_: Any, **params: Any) -> bool:
    """Convolutions, and matmuls without batch dimensions: those of dense layers, not the far larger logits."""
    if primitive.name == "dot_general":
        _, (batched, _) = params["dimension_numbers"]
        return not batched
    # The last is cuDNN's attention, which gives the sums of its weights besides.
    return primitive.name in ("conv_general_dilated", "dot_product_attention_fwd_wrapper")


def _save_gathered(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive.name == "all_gather"


_save_matmuls = jax.checkpoint_policies.save_from_both_policies(
    _save_layers, jax.checkpoint_policies.save_only_these_names(ATTENDED)
)
_POLICIES = {
    "block": None,
    "matmuls": _save_matmuls,
    "kernels": jax.checkpoint_policies.save_from_both_policies(_save_matmuls, _save_gathered),
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[_LAYER],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


def check_remat(remat: str) -> None:
    """Raises UserError unless `remat` is one of REMATS."""
    if remat not in REMATS:
        raise UserError(f"remat ({remat!r}) must be one of {', '.join(REMATS)}")


def check_dtype(dtype: Dtype) -> None:
    """Raises UserError unless a network can compute in `dtype`: gradients of float16 underflow, and CPUs refuse it."""
    try:
        known = jnp.dtype(dtype).name in DTYPES
    except TypeError:  # No dtype at all.
        known = False
    if not known:
        raise UserError(f"dtype ({dtype!r}) must be one of {', '.join(DTYPES)}")


def check_sizes(network: nn.Module, *names: str, least: int = 1, most: int = MAX_WIDTH) -> None:
    """Raises UserError for a size of a network, or one in a tuple of sizes, that no array could have."""
    for name in names:
        value = getattr(network, name)
        for one in value if isinstance(value, tuple) else (value,):
            check_count(f"{type(network).__name__}.{name}", one, least, most=most)


def rematerialised(block: type[nn.Module], remat: str, in_scan: bool = False) -> type[nn.Module]:
    """A block whose inner values are computed again in the backward pass instead of saved.

    Args:
      block: a module class.
      remat: one of REMATS; "none" returns the class as it is.
      in_scan: the block is the body of a scan, which already keeps the two computations apart.
    """
    if remat == "none":
        return block
    return nn.remat(block, policy=_POLICIES[remat], prevent_cse=not in_scan)


def conv(features: int, kernel: int = 3, *, strides: int = 1, zero: bool = False, dtype: Dtype, name: str) -> Layer:
    """A square convolution, padded evenly on all sides; `zero` starts it at zero (residual branches, outputs).

    Not "SAME": with a stride of 2 that pads below and to the right alone, which shifts the picture.
    """
    init = nn.initializers.zeros_init() if zero else _lecun
    axes = ("conv_h", "conv_w", "conv_in", "conv_out")
    layer = _Conv(
        features,
        (kernel, kernel),
        strides=(strides, strides),
        padding=kernel // 2,
        dtype=dtype,
        kernel_init=nn.with_logical_partitioning(init, axes),
        bias_init=nn.with_logical_partitioning(_default_bias, axes[3:]),
        name=name,
    )
    return lambda x: checkpoint_name(layer(x), _LAYER)


def dense(
    features: int,
    *,
    axes: tuple[str, str] = ("embed", "mlp"),
    zero: bool = False,
    use_bias: bool = True,
    dtype: Dtype,
    name: str,
) -> Layer:
    """A dense layer; `axes` are the logical names of its kernel."""
    init = nn.initializers.zeros_init() if zero else _lecun
    layer = _Dense(
        features,
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=nn.with_logical_partitioning(init, axes),
        bias_init=nn.with_logical_partitioning(_default_bias, axes[1:]),
        name=name,
    )
    return lambda x: checkpoint_name(layer(x), _LAYER)


def group_norm(channels: int, *, name: str) -> nn.GroupNorm:
    """GroupNorm with up to 32 groups of at least 4 channels."""
    groups = min(32, max(channels // 4, 1))
    while channels % groups:
        groups -= 1
    return nn.GroupNorm(
        groups,
        dtype=jnp.float32,
        scale_init=nn.with_logical_partitioning(nn.initializers.ones_init(), ("norm",)),
        bias_init=nn.with_logical_partitioning(_default_bias, ("norm",)),
        name=name,
    )


def layer_norm(*, name: str) -> nn.LayerNorm:
    """LayerNorm in float32."""
    return nn.LayerNorm(
        dtype=jnp.float32,
        scale_init=nn.with_logical_partitioning(nn.initializers.ones_init(), ("norm",)),
        bias_init=nn.with_logical_partitioning(_default_bias, ("norm",)),
        name=name,
    )


def rms_norm(*, name: str, scale: bool = True) -> nn.RMSNorm:
    """RMSNorm in float32: x / sqrt(mean(x²) + 1e-6) over the last axis, times a learned scale (arXiv 1910.07467)."""
    return nn.RMSNorm(
        epsilon=1e-6,
        dtype=jnp.float32,
        use_scale=scale,
        scale_init=nn.with_logical_partitioning(nn.initializers.ones_init(), ("norm",)),
        name=name,
    )


def downsample(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Halves height and width by averaging 2x2 pixels."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))  # [b, h, w, c] -> [b, h/2, w/2, c]


def upsample(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Doubles height and width by repeating pixels."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)  # [b, h, w, c] -> [b, 2 h, 2 w, c]


def space_to_depth(x: Float[Array, "b h w c"], side: int) -> Float[Array, "b h2 w2 c2"]:
    """Gathers squares of side x side pixels into one position each; a side of 1 changes nothing."""
    if side == 1:
        return x
    b, h, w, c = x.shape
    # [b, h/p, p, w/p, p, c] -> [b, h/p, w/p, p, p, c]
    x = x.reshape(b, h // side, side, w // side, side, c).swapaxes(2, 3)
    return x.reshape(b, h // side, w // side, side * side * c)


def depth_to_space(x: Float[Array, "b h w c"], side: int) -> Float[Array, "b h2 w2 c2"]:
    """Undoes `space_to_depth`."""
    if side == 1:
        return x
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, side, side, c // side**2).swapaxes(2, 3)  # [b, h, w, p, p, c/p²] -> [b, h, p, w, p, c/p²]
    return x.reshape(b, h * side, w * side, c // side**2)


class ResBlock(nn.Module):
    """GroupNorm-swish-conv twice, scale-shift by the embedding, residual by conv 1x1 where channels change.

    With `resample` set it is BigGAN's resampling block: both the branch and the residual are resampled after
    the first activation (paper appendix F.1; arXiv 2105.05233).

    Attributes:
      features: output channels.
      resample: None, `downsample` or `upsample`.
      dtype: compute type.
    """

    features: int
    resample: Callable[[Array], Array] | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], emb: Float[Array, "b d"] | None) -> Float[Array, "b h2 w2 c2"]:
        h = jax.nn.swish(group_norm(x.shape[-1], name="norm_in")(x)).astype(self.dtype)
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)  # [b, h, w, c] -> [b, h2, w2, c]
        h = conv(self.features, dtype=self.dtype, name="conv_in")(h)
        h = group_norm(self.features, name="norm_out")(h)
        if emb is not None:
            h = scale_shift(h, emb, self.dtype)
        h = jax.nn.swish(h).astype(self.dtype)
        h = conv(self.features, zero=True, dtype=self.dtype, name="conv_out")(h)
        if x.shape[-1] != self.features:
            x = conv(self.features, 1, dtype=self.dtype, name="conv_residual")(x)
        return x + h


def scale_shift(h: Float[Array, "b h w c"], emb: Float[Array, "b d"], dtype: Dtype) -> Float[Array, "b h w c"]:
    """h (1 + scale) + shift with both read from the embedding; call it inside a compact module."""
    both = dense(2 * h.shape[-1], dtype=dtype, name="scale_shift")(jax.nn.swish(emb).astype(dtype))  # [b, 2 c]
    scale, shift = jnp.split(both[:, None, None, :], 2, axis=-1)  # 2 of [b, 1, 1, c]
    return h * (1.0 + scale) + shift
