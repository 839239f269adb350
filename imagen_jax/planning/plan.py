"""The `plan` mode: compiles a run for a TPU slice that is not here, and says what it would take.

The program is the training step itself, with the run's optimizer, average and mesh. What the compiler answers (memory,
the program's text) is measured; times are a roofline over published figures, see `sharding.roofline`.
"""

import contextlib
import dataclasses
import math
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.sharding import Mesh

from imagen_jax.cost import hlo, topologies
from imagen_jax.cost.chips import Chip, chip_of
from imagen_jax.cost.collectives import by_kind_and_axis, largest_by_kind, read_collectives
from imagen_jax.cost.flops import jaxpr_flops
from imagen_jax.cost.hlo_work import hbm_bytes, layout_bytes, matmul_flops
from imagen_jax.cost.roofline import Work, days, mfu, roofline
from imagen_jax.errors import UserError
from imagen_jax.files import write_json
from imagen_jax.planning.text import plan_text
from imagen_jax.sampling.stage_sampler import trace_sampler
from imagen_jax.sharding import rules
from imagen_jax.train.config import TrainConfig
from imagen_jax.train.run_dir import num_parameters
from imagen_jax.train.setup import TrainSetup

GIB = 2.0**30
LEVELS = ("O0", "O1", "O2", "O3", "default")
# What is known only of a program that fits and that the compiler can print.
_FROM_TEXT = (
    "hardware_flops",
    "hbm_bytes",
    "layout_bytes",
    "collective_bytes",
    "largest_collective_bytes",
    "ici_bytes_sent",
    "dcn_bytes_sent",
    "roofline",
    "step_time_s",
    "roofline_mfu",
    "days",
)
_UNITS = {"": 1.0, "K": 2.0**10, "M": 2.0**20, "G": 2.0**30, "T": 2.0**40}
# "the total memory required … (223.59G) exceeds available HBM (15.75G)", "Used 17.2G of 15.75G hbm".
_OUT_OF_MEMORY = re.compile(r"([\d.]+)([KMGT]?)\)? (?:exceeds available HBM \(|of )([\d.]+)([KMGT]?)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """Options of a plan: slice, batch, compiler level.

    Args:
      topology: name of a TPU slice, or "local".
      num_slices: slices joined by the data-centre network.
      global_batch_size: replaces the run's batch_size.
      optimization_level: of the compiler, one of LEVELS: O1 is several times faster than the default to compile.
      sampler: plans the stage's guided sampling too.

    Raises:
      UserError: optimization_level is not known.
    """

    topology: str = topologies.LOCAL
    num_slices: int = 1
    global_batch_size: int | None = None
    optimization_level: str = "O1"
    sampler: bool = False

    def __post_init__(self) -> None:
        if self.optimization_level not in LEVELS:
            raise UserError(f"optimization_level ({self.optimization_level!r}) must be one of {', '.join(LEVELS)}")


def plan(config: TrainConfig, options: PlanOptions) -> dict[str, Any]:
    """Compiles `config` for the devices of `options` and returns what docs/planning.md lists.

    Args:
      config: the run.
      options: where it would run.

    Raises:
      UserError: the topology is not known, or mesh or batch do not fit the devices.
    """
    if options.global_batch_size is not None:
        config = dataclasses.replace(config, batch_size=options.global_batch_size)
    program = TrainSetup.build(config, topologies.devices(options.topology, options.num_slices))
    mesh = program.mesh
    device = mesh.devices.flat[0]
    useful = program.model_flops()
    found: dict[str, Any] = {
        "stage": config.stage.name,
        "topology": options.topology,
        "num_slices": options.num_slices,
        "device_kind": device.device_kind,
        "num_devices": mesh.size,
        "mesh": dict(mesh.shape),
        "batch_size": config.batch_size,
        "accumulate_steps": config.accumulate_steps,
        "per_device_batch": rules.per_device_batch(config.batch_size, mesh, config.accumulate_steps),
        "num_params": num_parameters(program.state),
        "state_gib": _device_bytes(program.state) / GIB,
        "remat": getattr(config.stage.model, "remat", "none"),
        "optimization_level": options.optimization_level,
    }
    if frozen := program.objective.frozen_spec(mesh):
        found["frozen_gib"] = _device_bytes(frozen) / GIB
    with _optimization_level(options.optimization_level):
        found |= measure(program.compile, useful, mesh, config.num_steps)
        if options.sampler and found["fits"]:
            rows = config.batch_size // config.accumulate_steps
            whole, sharded = (
                trace_sampler(config.stage, config.sampling, program.objective.network_spec(mesh), rows, where)
                for where in (None, mesh)
            )
            sampler = measure(sharded.lower().compile, round(jaxpr_flops(whole.jaxpr.jaxpr)), mesh, None)
            found["sampler"] = {"images": rows, "steps": config.sampling.num_steps} | sampler
    return found


def measure(
    compile_program: Callable[[], jax.stages.Compiled], useful: int, mesh: Mesh, num_steps: int | None
) -> dict[str, Any]:
    """Memory, work and times of one program.

    Args:
      compile_program: compiles it.
      useful: its FLOPs over all devices without recomputation.
      mesh: the devices it is compiled for.
      num_steps: steps of the run; None leaves the days out.
    """
    device = mesh.devices.flat[0]
    chip = chip_of(device.device_kind)
    limit = chip.hbm_limit_bytes if chip else None
    found: dict[str, Any]
    start = time.perf_counter()
    try:
        compiled = compile_program()
    except jax.errors.JaxRuntimeError as error:
        needed = _out_of_memory(error)
        if needed is None:
            raise
        found = {"fits": False, "peak_hbm_gib": needed[0] / GIB, "hbm_limit_gib": needed[1] / GIB}
        return found | {"model_flops": useful, "compile_s": time.perf_counter() - start} | dict.fromkeys(_FROM_TEXT)
    compile_s = time.perf_counter() - start
    memory: Any = compiled.memory_analysis()
    peak = memory.peak_memory_in_bytes
    found = {
        "fits": limit is None or peak <= limit,
        "peak_hbm_gib": peak / GIB,
        "hbm_limit_gib": limit and limit / GIB,
        "arguments_gib": memory.argument_size_in_bytes / GIB,
        "temporaries_gib": memory.temp_size_in_bytes / GIB,
        "host_gib": memory.host_temp_size_in_bytes / GIB,
        "model_flops": useful,
        "compile_s": compile_s,
    }
    return found | _work(compiled, useful, mesh, chip, num_steps)


def _work(
    compiled: jax.stages.Compiled, useful: int, mesh: Mesh, chip: Chip | None, num_steps: int | None
) -> dict[str, Any]:
    try:
        module = hlo.parse(compiled.as_text() or "")
    except jax.errors.JaxRuntimeError as error:
        # libtpu 0.0.51 cannot print some of its programs for tpu7x; their memory is known all the same.
        return dict.fromkeys(_FROM_TEXT) | {"unreadable": str(error).splitlines()[0]}
    collectives = read_collectives(module, mesh)
    work = Work(
        model_flops=useful / mesh.size,
        hardware_flops=float(matmul_flops(module)),
        hbm_bytes=float(hbm_bytes(module)),
        ici_bytes=math.fsum(one.sent for one in collectives if not one.over_dcn),
        dcn_bytes=math.fsum(one.sent for one in collectives if one.over_dcn),
    )
    found: dict[str, Any] = dict.fromkeys(_FROM_TEXT) | {
        "hardware_flops": work.hardware_flops * mesh.size,
        "hbm_bytes": work.hbm_bytes,
        "layout_bytes": float(layout_bytes(module)),
        "collective_bytes": by_kind_and_axis(collectives),
        "largest_collective_bytes": largest_by_kind(collectives),
        "ici_bytes_sent": work.ici_bytes,
        "dcn_bytes_sent": work.dcn_bytes,
    }
    if chip is None:
        return found
    line = roofline(work, chip)
    times = {"overlap": line.fastest_s, "no_overlap": line.slowest_s}
    found |= {
        "roofline": {f"{name}_s": seconds for name, seconds in line.times().items()} | {"bound": line.bound},
        "step_time_s": times,
        "roofline_mfu": {name: mfu(work.model_flops, seconds, chip) for name, seconds in times.items()},
    }
    if num_steps is not None:
        found["days"] = {name: days(seconds, num_steps) for name, seconds in times.items()} | {"num_steps": num_steps}
    return found


def _device_bytes(state: Any) -> int:
    """Bytes of one device's share of an abstract tree."""
    shards = ((leaf, leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(state))
    return sum(jax.ShapeDtypeStruct(shape, leaf.dtype).size * leaf.dtype.itemsize for leaf, shape in shards)


@contextlib.contextmanager
def _optimization_level(level: str) -> Iterator[None]:
    before = jax.config.values["jax_optimization_level"]
    jax.config.update("jax_optimization_level", "UNKNOWN" if level == "default" else level)
    try:
        yield
    finally:
        jax.config.update("jax_optimization_level", before)


def _out_of_memory(error: Exception) -> tuple[float, float] | None:
    """(bytes needed, bytes allowed) where the compiler says that a program does not fit a device."""
    message = str(error)
    if "RESOURCE_EXHAUSTED" not in message or "hbm" not in message.lower():
        return None
    numbers = _OUT_OF_MEMORY.search(message)
    if numbers is None:
        return None
    needed, unit, allowed, allowed_unit = numbers.groups()
    return float(needed) * _UNITS[unit], float(allowed) * _UNITS[allowed_unit]


def does_not_fit(found: dict[str, Any]) -> str:
    """Explains a plan that does not fit: need, limit, and remedies, the most telling first."""
    mesh, rows, state = found["mesh"], found["per_device_batch"], found["state_gib"]
    limit = found["hbm_limit_gib"]
    wider = mesh["fsdp"] * 2
    fixes = []
    if state > limit / 2:
        fixes.append(
            f"the state alone takes {state:.2f} GiB: shard it more ways (--gin.MeshConfig.fsdp={wider}), "
            f"or take --gin.OptimizerConfig.name=adafactor"
        )
    if rows > 1:
        fixes.append(
            f"per-device batch {rows}: halve it with --gin.TrainConfig.accumulate_steps={found['accumulate_steps'] * 2}"
        )
    if state <= limit / 2 and mesh["data"] > 1:
        fixes.append(f"fsdp axis {mesh['fsdp']}: --gin.MeshConfig.fsdp={wider} halves {state:.2f} GiB of state")
    fixes.append("let the network recompute its blocks (its remat option), or choose a larger slice")
    return (
        f"the step of stage {found['stage']!r} does not fit a device of {found['topology']}: it needs "
        f"{found['peak_hbm_gib']:.2f} GiB, {limit:.2f} GiB are allowed; " + "; ".join(fixes)
    )


def run(
    config: TrainConfig, options: PlanOptions = PlanOptions(), json_path: str | None = None, search: bool = False
) -> None:
    """Prints a plan and writes it to `json_path`.

    Args:
      config: the run.
      options: where it would run.
      json_path: file to write, or None.
      search: looks for the fastest mesh and accumulate_steps first.

    Raises:
      UserError: see `plan`; also when the plan does not fit, after it was written.
    """
    if search:
        # It plans with this module, so it loads after it.
        from imagen_jax.planning.search import search as search_plans
        from imagen_jax.planning.search import search_text

        tried = search_plans(config, dataclasses.replace(options, sampler=False))
        found = tried[0] | {"search": tried}
        print(search_text(tried), end="\n\n")
    else:
        found = plan(config, options)
    if json_path is not None:
        write_json(json_path, found, end="\n")
    print(plan_text(found))
    if not found["fits"]:
        raise UserError(does_not_fit(found))
