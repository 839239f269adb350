"""`plan --search`: every way to lay a run over a slice, the fastest that fits first."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from imagen_jax.cost import topologies
from imagen_jax.errors import UserError
from imagen_jax.planning.plan import PlanOptions, plan
from imagen_jax.progress import Progress
from imagen_jax.sharding import rules
from imagen_jax.sharding.mesh import MeshConfig
from imagen_jax.train.config import TrainConfig

# More ways would split a head's width, and exchange activations at every layer.
MAX_TENSOR = 4
MAX_ACCUMULATE = 64


def splits(num_devices: int, num_slices: int = 1) -> list[MeshConfig]:
    """Meshes over `num_devices`: fsdp any divisor of a slice, tensor 1, 2 or 4, data the rest."""
    inside = num_devices // num_slices
    return [
        MeshConfig(data=num_devices // (fsdp * tensor), fsdp=fsdp, tensor=tensor)
        for tensor in range(1, MAX_TENSOR + 1)
        for fsdp in range(1, inside + 1)
        if tensor & (tensor - 1) == 0 and inside % (fsdp * tensor) == 0
    ]


def search(config: TrainConfig, options: PlanOptions) -> list[dict[str, Any]]:
    """Plans of every split with the fewest microbatches that fit it, and those that were tried before.

    Where a network's `remat` is "matmuls" and there are kernels to gather, "kernels" is tried too.

    Args:
      config: the run; its mesh and accumulate_steps are what is searched.
      options: where it would run.

    Returns:
      Those that fit by predicted step time, then the others by the memory they lack.

    Raises:
      UserError: the batch divides over no split.
    """
    devices = topologies.devices(options.topology, options.num_slices)
    meshes = splits(len(devices), options.num_slices)
    found: list[dict[str, Any]] = []
    with Progress(len(meshes), "plan", "mesh") as progress:
        for mesh in meshes:
            for laid_out in _microbatched(config, mesh, options, devices):
                found.append(plan(laid_out, options))
                if found[-1]["fits"]:
                    found += [plan(kept, options) for kept in _keeping_kernels(laid_out)]
                    break
            progress.update()
    if not found:
        batch = options.global_batch_size or config.batch_size
        raise UserError(
            f"batch_size ({batch}) divides over no mesh of {len(devices)} devices; choose a multiple of {len(devices)}"
        )
    return sorted(found, key=_rank)


def _microbatched(config: TrainConfig, mesh: MeshConfig, options: PlanOptions, devices: Any) -> Iterator[TrainConfig]:
    batch = options.global_batch_size or config.batch_size
    built = mesh.build(devices)
    for accumulate in (2**power for power in range(int(math.log2(MAX_ACCUMULATE)) + 1)):
        try:
            rules.per_device_batch(batch, built, accumulate)
        except UserError:
            return
        yield dataclasses.replace(config, batch_size=batch, mesh=mesh, accumulate_steps=accumulate)


def _keeping_kernels(config: TrainConfig) -> Iterator[TrainConfig]:
    """The same run with kernels sent once instead of twice, where that is a choice."""
    model: Any = config.stage.model
    if config.mesh.fsdp > 1 and getattr(model, "remat", None) == "matmuls":
        stage = dataclasses.replace(config.stage, model=dataclasses.replace(model, remat="kernels"))
        yield dataclasses.replace(config, stage=stage)


def _rank(found: dict[str, Any]) -> tuple[float, ...]:
    """Sorts by fit, then time; where the device's figures are not known, by work and memory."""
    if not found["fits"]:
        return (1.0, found["peak_hbm_gib"])
    times = found["step_time_s"]
    if times is None:
        return (0.0, float(found["hardware_flops"] or math.inf), found["peak_hbm_gib"])
    return (0.0, times["overlap"], times["no_overlap"])


def search_text(found: list[dict[str, Any]]) -> str:
    """The table of a search."""
    rows: list[tuple[str, ...]] = [
        ("data", "fsdp", "tensor", "accumulate", "rows", "remat", "peak GiB", "ms, all overlaps", "ms, nothing does")
        + ("MFU",)
    ]
    for one in found:
        mesh, times, mfu = one["mesh"], one["step_time_s"], one["roofline_mfu"]
        shape = (*(mesh[axis] for axis in ("data", "fsdp", "tensor")), one["accumulate_steps"], one["per_device_batch"])
        timed = ("-", "-", "-")
        if times:
            timed = (f"{1e3 * times['overlap']:.4g}", f"{1e3 * times['no_overlap']:.4g}", f"{mfu['overlap']:.1%}")
        fit = "" if one["fits"] else " does not fit"
        rows.append((*map(str, shape), one["remat"], f"{one['peak_hbm_gib']:.2f}{fit}", *timed))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
