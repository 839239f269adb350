"""Dry run: a run's config, size and cost, without running it."""

from imagen_jax.sharding import rules
from imagen_jax.train.config import TrainConfig
from imagen_jax.train.run_dir import mesh_text, num_parameters
from imagen_jax.train.setup import TrainSetup

GIB = 2.0**30


def dry_run(config: TrainConfig) -> str:
    """Parameter count, mesh, batch and memory a device and FLOPs of one update; reads no data.

    Args:
      config: the run.

    Raises:
      UserError: the mesh or the batch does not fit the devices.
    """
    program = TrainSetup.build(config)
    compiled, flops = program.compile(), program.model_flops()
    lines = [
        f"stage:             {config.stage.name}, {config.stage.image_size} pixels",
        f"parameters:        {num_parameters(program.state):,}",
        f"mesh:              {mesh_text(program.mesh)}",
        f"batch:             {config.batch_size} rows in {config.accumulate_steps} microbatches of "
        f"{rules.per_device_batch(config.batch_size, program.mesh, config.accumulate_steps)} rows a device",
        f"work of a step:    {flops:.3e} FLOPs over all devices",
    ]
    memory = compiled.memory_analysis()
    if memory is not None:
        lines += [
            f"memory a device:   {memory.argument_size_in_bytes / GIB:.3f} GiB arguments "
            f"+ {memory.temp_size_in_bytes / GIB:.3f} GiB temporaries; "
            f"peak {memory.peak_memory_in_bytes / GIB:.3f} GiB"
        ]
    return "\n".join(lines)


def run(config: TrainConfig) -> None:
    """Prints `dry_run(config)`."""
    print(dry_run(config))
