"""Rules from the logical name of a parameter's dimension to the mesh axis that shards it.

Models name the dimensions of their parameters (`nn.with_logical_partitioning`); the table below says which
names a mesh axis may shard, most wanted first. A mesh axis takes the first of its names that the parameter
has and that it divides; a dimension goes to one mesh axis at most. Names not in the table, vectors and
dimensions that do not divide are replicated: correct in every case, only less sharded.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax.core import meta
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from imagen_jax.errors import UserError
from imagen_jax.typing import Int, PyTree

# `tensor` first: a dimension that both may take (mlp) goes to it when it is larger than one.
RULES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("tensor", ("heads", "mlp")),
    ("fsdp", ("conv_out", "mlp", "embed", "conv_in", "time", "text", "heads", "head_dim", "vocab")),
)
# The outer axis first, so that the rows of a host stay together.
BATCH_AXES = ("data", "fsdp")


def is_boxed(leaf: Any) -> bool:
    """True for a parameter that carries the logical names of its dimensions."""
    return isinstance(leaf, meta.AxisMetadata)


def unbox(params: PyTree) -> PyTree:
    """The plain arrays of a tree whose leaves may carry logical names."""
    return jax.tree.map(lambda leaf: leaf.value if is_boxed(leaf) else leaf, params, is_leaf=is_boxed)


def partition_spec(names: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Mesh axis of every dimension of one parameter.

    Args:
      names: logical names of its dimensions.
      shape: its shape.
      mesh: mesh with the axes of `MeshConfig`.
    """
    taken: list[str | None] = [None] * len(shape)
    # Vectors are small beside the kernels, and gathering them costs more than holding them.
    if len(shape) < 2:
        return PartitionSpec()
    for axis, wanted in RULES:
        size = mesh.shape[axis]
        fits = [
            dim
            for name in wanted
            for dim, own in enumerate(names)
            if own == name and taken[dim] is None and shape[dim] % size == 0
        ]
        if size > 1 and fits:
            taken[fits[0]] = axis
    while taken and taken[-1] is None:
        taken.pop()
    return PartitionSpec(*taken)


def param_shardings(params: PyTree, mesh: Mesh) -> PyTree:
    """Sharding of every parameter, as a tree of the unboxed parameters' structure.

    Args:
      params: boxed parameters, real or abstract (`jax.eval_shape` of an init).
      mesh: mesh with the axes of `MeshConfig`.
    """

    def sharding(leaf: Any) -> NamedSharding:
        names = getattr(leaf, "names", None)
        if not is_boxed(leaf) or names is None:
            return replicated(mesh)
        return NamedSharding(mesh, partition_spec(tuple(names), leaf.value.shape, mesh))

    return jax.tree.map(sharding, params, is_leaf=is_boxed)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch are split over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def rows_of_process(
    placed: Mapping[Any, tuple[slice, ...]], batch_size: int, process_index: int
) -> Int[np.ndarray, " rows"]:
    """Numbers of the rows of a batch that the devices of a process hold, rising.

    The device map decides, not the number of the process: where `tensor` or `spatial` spans processes, several hold
    the same rows, and the devices of a process need not be neighbours in the mesh.

    Args:
      placed: the part of the rows that each device of all processes holds, from its sharding.
      batch_size: rows of the global batch.
      process_index: whose devices.
    """
    held = np.zeros(batch_size, bool)
    for device, index in placed.items():
        if device.process_index == process_index:
            held[index] = True
    return np.flatnonzero(held)


def per_device_batch(batch_size: int, mesh: Mesh, accumulate_steps: int = 1) -> int:
    """Rows of one microbatch on one device.

    Args:
      batch_size: global batch, in rows.
      mesh: mesh with the axes of `MeshConfig`.
      accumulate_steps: microbatches a step.

    Raises:
      UserError: the rows do not divide; names the nearest batch sizes that do.
    """
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    unit = ways * accumulate_steps
    if batch_size % unit == 0:
        return batch_size // unit
    below, above = batch_size // unit * unit, (batch_size // unit + 1) * unit
    nearest = f"{below} or {above}" if below else f"{above}"
    raise UserError(
        f"batch_size ({batch_size}) must be divisible by {unit}: {mesh.size} devices split it {ways} ways "
        f"(data {mesh.shape['data']} x fsdp {mesh.shape['fsdp']}) in {accumulate_steps} microbatches; "
        f"choose {nearest}"
    )
