"""A network's call on a mesh: each device computes its rows of the batch, and brings kernels together layer by layer.

Rows lie over `data` and `fsdp`, and along both each device's program is explicit (`jax.shard_map`): left to choose,
XLA moves activations to where a kernel is sharded, does the same work on many devices, and sums whole gradients where a
shard of them is wanted. Forward, a layer gathers its kernel over `fsdp`; backward, its gradient is summed and scattered
over `fsdp`, and what is left of it summed over `data` in float32. `tensor` and `spatial` stay with XLA: alone, where
neither of the other axes is larger than one.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from imagen_jax.sharding.rules import BATCH_AXES
from imagen_jax.typing import Array, PyTree


def on_mesh(network: Callable[..., Array], mesh: Mesh, param_shardings: PyTree, params: PyTree, *rows: Any) -> Array:
    """network(params, *rows), where each device computes some of the rows.

    Args:
      network: gives one row for each row it is given, from `params` whose shards it brings together itself.
      mesh: mesh with the axes of `MeshConfig`.
      param_shardings: of `params`, over the mesh.
      params: parameters.
      rows: trees of arrays of the same number of rows. Where that does not divide over the devices, all compute all.
    """
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if ways == 1:
        # XLA (jax 0.10.2) cannot partition a `shard_map` over axes of one device.
        return _over_height(network(params, *_over_height(rows, mesh, False)), mesh, False)
    whole = jax.tree.leaves(rows)[0].shape[0] % ways != 0
    row = PartitionSpec() if whole else PartitionSpec(BATCH_AXES)

    def part(params: PyTree, *rows: Any) -> Array:
        return _over_height(network(params, *_over_height(rows, mesh, True)), mesh, True)

    run = jax.shard_map(
        part,
        mesh=mesh,
        in_specs=(jax.tree.map(_along_batch_axes, param_shardings), *(row for _ in rows)),
        out_specs=row,
        axis_names=set(BATCH_AXES),
        check_vma=False,
    )
    return run(params, *rows)


def _along_batch_axes(sharding: NamedSharding) -> PartitionSpec:
    return PartitionSpec(*(axis if axis in BATCH_AXES else None for axis in sharding.spec))


def _over_height(rows: PyTree, mesh: Mesh, inside: bool) -> PyTree:
    """Images lie over `spatial` by their height, where it divides; what is between them follows.

    Args:
      rows: trees of arrays.
      mesh: the mesh.
      inside: of `jax.shard_map`, which knows the mesh.
    """
    spec = PartitionSpec(None, "spatial")
    height = spec if inside else NamedSharding(mesh, spec)

    def placed(x: Array) -> Array:
        divides = x.ndim == 4 and x.shape[1] % mesh.shape["spatial"] == 0
        return jax.lax.with_sharding_constraint(x, height) if divides else x

    return jax.tree.map(placed, rows)
