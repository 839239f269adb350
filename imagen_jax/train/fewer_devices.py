"""A run on fewer devices than it was planned for, after hosts that do not come back: the same updates, more slowly."""

import dataclasses

from imagen_jax.train.config import TrainConfig


def on_devices(config: TrainConfig, num_devices: int) -> tuple[TrainConfig, str]:
    """The run on the devices that are here.

    The mesh shrinks (`MeshConfig.on_fewer`), and the same global batch is taken in so many more microbatches that a
    device has as many rows at a time as planned, and needs as much memory for them.

    Args:
      config: the run; only one with `planned_devices` changes, on fewer than those.
      num_devices: of all processes.

    Returns:
      The config whose mesh and accumulate_steps fit, and what changed in words; "" where nothing did.

    Raises:
      UserError: no mesh is made for so many.
    """
    planned = config.planned_devices
    if planned is None or num_devices >= planned:
        return config, ""
    mesh = config.mesh.on_fewer(planned, num_devices)
    before, now = (shape[0] * shape[1] for shape in (config.mesh.shape(planned), mesh.shape(num_devices)))
    microbatches = config.accumulate_steps * before // now
    axes = " x ".join(f"{name} {size}" for name, size in dataclasses.asdict(mesh).items())
    told = (
        f"{num_devices} of {planned} planned devices are here: mesh {axes}, {microbatches} microbatches an update "
        f"in place of {config.accumulate_steps}"
    )
    return dataclasses.replace(config, mesh=mesh, accumulate_steps=microbatches, planned_devices=None), told
