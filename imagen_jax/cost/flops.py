"""FLOPs of a program and the peak of the device it runs on.

XLA's cost analysis counts the body of a scan once, and this code scans over microbatches and blocks; so the
FLOPs are counted on the jaxpr: two per multiply-add of matmuls and convolutions, times the trip count.
Recomputed (rematerialised) work is counted by `count_flops`, as it is work done, and left out by `model_flops`.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.extend as jex

from imagen_jax.cost.chips import chip_of
from imagen_jax.cost.jaxprs import bodies
from imagen_jax.typing import PyTree

# Peak dense bfloat16 FLOP/s of one device as JAX counts devices.
#   TPU: cost/chips.py
#   GPU: NVIDIA datasheets, dense (half of the sparse figure): A100 312, H100 SXM and H200 989.5 TFLOPS
PEAK_FLOPS: tuple[tuple[str, float], ...] = (
    ("NVIDIA A100", 312e12),
    ("NVIDIA H100 80GB HBM3", 989.5e12),
    ("NVIDIA H200", 989.5e12),
)

# What jax.checkpoint is called in a traced program, by version.
REMAT = ("checkpoint", "remat", "remat2")


def peak_flops(device_kind: str) -> float | None:
    """Peak bfloat16 FLOP/s of a device kind, None when it is not in the table (every CPU)."""
    chip = chip_of(device_kind)
    if chip is not None:
        return chip.peak_flops
    return next((peak for name, peak in PEAK_FLOPS if device_kind.startswith(name)), None)


def count_flops(function: Callable[..., Any], *args: Any) -> int:
    """FLOPs of `function(*args)` over all devices; traces it and runs nothing.

    Args:
      function: jitted or not.
      args: its arguments, real or abstract.
    """
    return round(jaxpr_flops(jax.make_jaxpr(function)(*args).jaxpr))


def model_flops(loss: Callable[..., Any], params: PyTree, *args: Any, taken: float = 1.0) -> int:
    """FLOPs of the gradient of `loss(params, *args)` without what rematerialisation repeats; runs nothing.

    Args:
      loss: what is minimised; returns a scalar, or a tuple that starts with it.
      params: what the gradient is taken for, real or abstract.
      args: the rest of its arguments, real or abstract.
      taken: how often the dearest branch of a conditional is taken, in [0, 1]; otherwise it is the cheapest.
    """

    def scalar(params: PyTree, *args: Any) -> Any:
        value = loss(params, *args)
        return value[0] if isinstance(value, tuple) else value

    traced = jax.make_jaxpr(scalar)(params, *args)
    kept = traced.replace(jaxpr=_without_remat(traced.jaxpr))

    def flat(leaves: list[Any], rest: list[Any]) -> Any:
        return jex.core.jaxpr_as_fun(kept)(*leaves, *rest)[0]

    gradient = jax.make_jaxpr(jax.grad(flat))(jax.tree.leaves(params), jax.tree.leaves(args))
    return round(jaxpr_flops(gradient.jaxpr, taken))


def _without_remat(jaxpr: Any) -> Any:
    """The same program, in which every checkpointed part keeps all its intermediate values."""
    equations = []
    for equation in jaxpr.eqns:
        params = {name: _map_bodies(value) for name, value in equation.params.items()}
        if equation.primitive.name in REMAT:
            params["policy"] = jax.checkpoint_policies.everything_saveable
        equations.append(equation.replace(params=params))
    return jaxpr.replace(eqns=equations)


def _map_bodies(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(map(_map_bodies, value)) if type(value) in (tuple, list) else value
    if hasattr(value, "eqns") and not hasattr(value, "consts"):
        return _without_remat(value)
    return value.replace(jaxpr=_without_remat(value.jaxpr)) if hasattr(value, "jaxpr") else value


def jaxpr_flops(jaxpr: Any, taken: float = 1.0) -> float:
    """FLOPs of a traced program over all devices; `taken` as in `model_flops`."""

    def inside(params: Any) -> float:
        return sum((jaxpr_flops(body, taken) for body in bodies(params)), start=0.0)

    total = 0.0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            lhs = equation.invars[0].aval.shape
            out = math.prod(equation.outvars[0].aval.shape)
            total += 2 * out * math.prod(lhs[dim] for dim in contracted)
        elif name == "conv_general_dilated":
            total += _convolution(equation)
        elif name.startswith("dot_product_attention_"):
            total += _fused_attention(equation)
        elif name == "scan":
            total += params["length"] * inside(params)
        elif name == "cond":
            branches = [jaxpr_flops(branch.jaxpr, taken) for branch in params["branches"]]
            total += taken * max(branches) + (1.0 - taken) * min(branches)
        elif name == "shard_map":
            # Its body is one device's program.
            devices = math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
            total += devices * inside(params)
        else:
            total += inside(params)
    return total


def _convolution(equation: Any) -> float:
    numbers = equation.params["dimension_numbers"]
    kernel = equation.invars[1].aval.shape
    taps = math.prod(kernel[dim] for dim in numbers.rhs_spec[1:])
    # A strided convolution's gradient multiplies mostly inserted zeros: those are no work.
    return 2 * math.prod(equation.outvars[0].aval.shape) * taps / math.prod(equation.params["lhs_dilation"])


def _fused_attention(equation: Any) -> float:
    """cuDNN's attention, forward or backward: two or four products; the logits that it computes again are no work."""
    (rows, queries, heads, width), (_, keys, _, _) = (value.aval.shape for value in equation.invars[:2])
    products = 4 if "bwd" in equation.primitive.name else 2
    return products * 2.0 * rows * queries * keys * heads * width
