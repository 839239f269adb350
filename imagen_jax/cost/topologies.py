"""Names of TPU slices, as Cloud TPU users write them, and devices to compile for without having them.

A v4-2N, v5p-2N or tpu7x-2N slice has N chips: the number counts TensorCores, two a chip. A v5e-N or v6e-N slice has N
chips of one. v4 and v5p join both cores to one device; tpu7x shows each as a device of its own.
"""

import importlib.util
import os
from collections.abc import Sequence
from typing import Any

import jax

from imagen_jax.checks import check_count
from imagen_jax.errors import UserError

LOCAL = "local"

# Shapes of the slices that Cloud TPU offers, by chips (docs.cloud.google.com/tpu/docs, pages v4, v5e, v5p, v6e, tpu7x).
CUBES = {
    4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4",
    128: "4x4x8", 256: "4x8x8", 512: "8x8x8", 1024: "8x8x16",
}  # fmt: skip
SQUARES = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}

# Generation: (name in libtpu, cores that its slice names count per chip, shapes, chip configuration).
GENERATIONS: dict[str, tuple[str, int, dict[int, str], str]] = {
    "v4": ("v4", 2, CUBES, "megacore"),
    "v5p": ("v5", 2, CUBES, "megacore"),
    "v5e": ("v5e", 1, SQUARES, "default"),
    "v6e": ("v6e", 1, SQUARES, "default"),
    "tpu7x": ("tpu7x", 2, CUBES, "default"),
}


def known_topologies() -> list[str]:
    """Every name that `describe` takes."""
    names = [
        f"{generation}-{chips * cores}" for generation, (_, cores, shapes, _) in GENERATIONS.items() for chips in shapes
    ]
    return [LOCAL, *names]


def describe(name: str, num_slices: int = 1) -> dict[str, Any]:
    """Arguments of `jax.experimental.topologies.get_topology_desc` for a slice.

    Args:
      name: e.g. "v4-512"; not "local".
      num_slices: slices joined by the data-centre network.

    Raises:
      UserError: no slice has that name.
    """
    if name not in known_topologies() or name == LOCAL:
        raise UserError(f"topology ({name!r}) is not known; choose one of {', '.join(known_topologies())}")
    check_count("num_slices", num_slices)
    generation, number = name.split("-")
    libtpu_name, cores, shapes, chip_config = GENERATIONS[generation]
    shape = shapes[int(number) // cores]
    return {
        "platform": "tpu",
        "topology_name": f"{libtpu_name}:{shape}",
        "chip_config_name": chip_config,
        "chips_per_host_bounds": (1, 1, 1) if shape == "1x1" else (2, 2, 1),
        "num_slices": num_slices,
    }


def devices(name: str, num_slices: int = 1) -> Sequence[Any]:
    """The devices of a slice: the ones here for "local", otherwise descriptions that programs can be compiled for.

    Args:
      name: one of `known_topologies()`.
      num_slices: slices joined by the data-centre network.

    Raises:
      UserError: no slice has that name, or the TPU compiler is not installed.
    """
    if name == LOCAL:
        if num_slices != 1:
            raise UserError(f"num_slices ({num_slices}) needs the name of a slice; --topology=local is what is here")
        return jax.devices()
    arguments = describe(name, num_slices)
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"--topology={name} needs the TPU compiler, which is not installed (no TPU is needed): "
            f"pip install 'jax[tpu]=={jax.__version__}'"
        )
    # libtpu asks a TPU machine's metadata server for these; here there is none. Several plans may run at once.
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v4-8")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    # With libtpu installed jax would look for a TPU here, and programs are traced on the host anyway.
    jax.config.update("jax_platforms", "cpu")
    from jax.experimental import topologies

    # The TPU compiler ends the process at a flag that it does not know, as it does not the CPU's.
    flags = os.environ.get("XLA_FLAGS", "").split()
    os.environ["XLA_FLAGS"] = " ".join(flag for flag in flags if not flag.startswith("--xla_cpu_"))
    return topologies.get_topology_desc(**arguments).devices
