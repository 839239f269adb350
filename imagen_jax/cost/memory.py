"""Memory of all stages of a cascade on one device: an estimate made before anything is compiled."""

from collections.abc import Callable
from typing import Any

import jax
import psutil

from imagen_jax.cost.jaxprs import bodies
from imagen_jax.typing import PyTree


def peak_bytes(function: Callable[..., Any], *args: Any) -> int:
    """Bytes of intermediate values alive at the worst moment of `function(*args)`, beside its arguments, on one device.

    Every value counts from the operation that makes it to the last that reads it. A compiler joins operations and so
    needs less; its scratch space is not counted.
    """
    return _peak(jax.make_jaxpr(function)(*args).jaxpr)


def _peak(jaxpr: Any) -> int:
    last_read: dict[Any, int] = {}
    for number, equation in enumerate(jaxpr.eqns):
        last_read.update(dict.fromkeys((v for v in equation.invars if not hasattr(v, "val")), number))
    last_read.update(dict.fromkeys((v for v in jaxpr.outvars if not hasattr(v, "val")), len(jaxpr.eqns)))
    dies: dict[int, int] = {}
    alive = worst = 0
    for number, equation in enumerate(jaxpr.eqns):
        made = sum(_bytes(v.aval) for v in equation.outvars)
        inside = max((_peak(body) for body in bodies(equation.params)), default=0)
        worst = max(worst, alive + max(made, inside))
        for variable in equation.outvars:
            last = last_read.get(variable, number)
            if last > number:
                alive += _bytes(variable.aval)
                dies[last] = dies.get(last, 0) + _bytes(variable.aval)
        alive -= dies.pop(number, 0)
    return worst


def _bytes(aval: Any) -> int:
    return aval.size * aval.dtype.itemsize if hasattr(aval, "shape") else 0


def tree_bytes(tree: PyTree, shardings: PyTree | None = None) -> int:
    """Bytes of a tree of arrays on one device."""
    shapes = jax.tree.map(lambda leaf: leaf.shape, tree)
    if shardings is not None:
        shapes = jax.tree.map(lambda leaf, sharding: sharding.shard_shape(leaf.shape), tree, shardings)
    sizes = jax.tree.map(
        lambda leaf, shape: jax.ShapeDtypeStruct(shape, leaf.dtype).size * leaf.dtype.itemsize,
        tree,
        shapes,
    )
    return sum(jax.tree.leaves(sizes))


def device_bytes() -> int:
    """Memory of one device that a program may use; of a CPU what the machine has free."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return int(stats["bytes_limit"]) if "bytes_limit" in stats else int(psutil.virtual_memory().available)
