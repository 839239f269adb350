"""Convolution, dense, norm and residual blocks, with the logical axis names that sharding rules speak of.

Parameters are float32; `dtype` is the compute type. Norms are computed in float32.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Sharding

from imagen_jax.errors import UserError
from imagen_jax.typing import Array, Float

Dtype = Any
Layer = Callable[[Array], Array]
# What the backward pass finds saved: everything; what enters a block; besides, what convolutions and matmuls give,
# so that only norms and activations are computed again.
REMATS = ("none", "block", "matmuls")
_lecun = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
_default_bias = nn.initializers.zeros_init()


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where a network's values lie while it is traced.

    Left to itself, XLA may bring activations to where a kernel is sharded, and do the same work on many devices.

    Attributes:
      activation: sharding of a layer's output by its shape, rows first, and the logical name of its last dimension.
      stored: sharding of a kernel between its uses, by its shape and the logical names of its dimensions.
      in_use: the same while a layer computes with it.
    """

    activation: Callable[[tuple[int, ...], str], Sharding]
    stored: Callable[[tuple[int, ...], tuple[str, ...]], Sharding]
    in_use: Callable[[tuple[int, ...], tuple[str, ...]], Sharding]


_placement: contextvars.ContextVar[Placement | None] = contextvars.ContextVar("placement", default=None)


@contextlib.contextmanager
def placed(placement: Placement) -> Iterator[None]:
    """Networks that are traced inside lie as `placement` says."""
    token = _placement.set(placement)
    try:
        yield
    finally:
        _placement.reset(token)


def _place(x: Array, name: str) -> Array:
    placement = _placement.get()
    return x if placement is None else jax.lax.with_sharding_constraint(x, placement.activation(x.shape, name))


def _with_kernel_placed(operation: Callable[..., Array], names: tuple[str, ...]) -> Callable[..., Array]:
    """A convolution or matmul whose kernel is brought together first, in the compute type and one layer at a time."""

    def run(x: Array, kernel: Array, *args: Any, **options: Any) -> Array:
        placement = _placement.get()
        if placement is not None:
            # Both: else XLA may bring the float32 parameter together and cast the whole.
            kernel = jax.lax.with_sharding_constraint(kernel, placement.stored(kernel.shape, names))
            kernel = jax.lax.with_sharding_constraint(kernel, placement.in_use(kernel.shape, names))
        return operation(x, kernel, *args, **options)

    return run


def _save_matmuls(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive.name in ("conv_general_dilated", "dot_general")


def check_remat(remat: str) -> None:
    """Raises UserError unless `remat` is one of REMATS."""
    if remat not in REMATS:
        raise UserError(f"remat ({remat!r}) must be one of {', '.join(REMATS)}")


def rematerialised(block: type[nn.Module], remat: str, in_scan: bool = False) -> type[nn.Module]:
    """A block whose inner values are computed again in the backward pass instead of saved.

    Args:
      block: a module class.
      remat: one of REMATS; "none" returns the class as it is.
      in_scan: the block is the body of a scan, which already keeps the two computations apart.
    """
    if remat == "none":
        return block
    policy = None if remat == "block" else _save_matmuls
    return nn.remat(block, policy=policy, prevent_cse=not in_scan)


def conv(features: int, kernel: int = 3, *, strides: int = 1, zero: bool = False, dtype: Dtype, name: str) -> Layer:
    """A square convolution, padded evenly on all sides; `zero` starts it at zero (residual branches, outputs).

    Not "SAME": with a stride of 2 that pads below and to the right alone, which shifts the picture.
    """
    init = nn.initializers.zeros_init() if zero else _lecun
    axes = ("conv_h", "conv_w", "conv_in", "conv_out")
    layer = nn.Conv(
        features,
        (kernel, kernel),
        strides=(strides, strides),
        padding=kernel // 2,
        dtype=dtype,
        kernel_init=nn.with_logical_partitioning(init, axes),
        bias_init=nn.with_logical_partitioning(_default_bias, axes[3:]),
        conv_general_dilated=_with_kernel_placed(jax.lax.conv_general_dilated, axes),
        name=name,
    )
    return lambda x: _place(layer(x), "conv_out")


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
    layer = nn.Dense(
        features,
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=nn.with_logical_partitioning(init, axes),
        bias_init=nn.with_logical_partitioning(_default_bias, axes[1:]),
        dot_general=_with_kernel_placed(jax.lax.dot_general, axes),
        name=name,
    )
    return lambda x: _place(layer(x), axes[1])


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


def downsample(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Halves height and width by averaging 2x2 pixels."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))


def upsample(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Doubles height and width by repeating pixels."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


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
            h, x = self.resample(h), self.resample(x)
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
    both = dense(2 * h.shape[-1], dtype=dtype, name="scale_shift")(jax.nn.swish(emb).astype(dtype))
    scale, shift = jnp.split(both[:, None, None, :], 2, axis=-1)
    return h * (1.0 + scale) + shift
