"""The device mesh: four named axes, `data`, `fsdp`, `tensor` and `spatial`."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh

from imagen_jax.checks import check_count
from imagen_jax.errors import UserError

AXES = ("data", "fsdp", "tensor", "spatial")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Division of the devices among the mesh axes.

    Args:
      data: replicas of the parameters; -1 takes the devices the other axes leave.
      fsdp: ways the parameters and the optimizer state are sharded; the batch is split along it too.
      tensor: ways attention heads and MLP widths are sharded.
      spatial: ways the height of feature maps is sharded: for images so large that one must lie on several devices.

    Raises:
      UserError: an axis is neither -1 nor positive, or more than one is -1.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    spatial: int = 1

    def __post_init__(self) -> None:
        for name, size in self._sizes().items():
            if not isinstance(size, int) or size != -1:
                check_count(f"mesh axis {name}", size, hint="-1 takes the rest")
        if sum(size == -1 for size in self._sizes().values()) > 1:
            raise UserError(f"only one mesh axis may be -1; got {self._sizes()}: give the others a size")

    def _sizes(self) -> dict[str, int]:
        return {axis: getattr(self, axis) for axis in AXES}

    def shape(self, num_devices: int, num_slices: int = 1) -> tuple[int, ...]:
        """Sizes of AXES on `num_devices` devices.

        Args:
          num_devices: devices of all slices.
          num_slices: TPU slices; `data` is what crosses between them.

        Raises:
          UserError: the sizes do not multiply to `num_devices`, `data` does not hold whole slices, or both tensor
            and spatial are larger than one.
        """
        sizes = self._sizes()
        fixed = math.prod(size for size in sizes.values() if size != -1)
        if num_devices % fixed:
            raise UserError(
                f"mesh {sizes} does not fit {num_devices} devices: the fixed axes multiply to {fixed}; "
                f"choose sizes whose product divides {num_devices}, and -1 for one axis"
            )
        shape = tuple(num_devices // fixed if size == -1 else size for size in sizes.values())
        if math.prod(shape) != num_devices:
            raise UserError(
                f"mesh {sizes} uses {math.prod(shape)} of {num_devices} devices; "
                f"set one axis to -1 so that it takes the rest"
            )
        if min(shape[2:]) > 1:
            # XLA (jax 0.10.2, CPU) computes something else where fsdp is larger than one too.
            raise UserError(f"mesh {sizes}: tensor or spatial must be 1; give its devices to the other, or to fsdp")
        if shape[0] % num_slices:
            raise UserError(
                f"mesh axis data ({shape[0]}) must be divisible by the {num_slices} slices of the {num_devices} "
                f"devices, since no other axis may leave a slice; choose fsdp x tensor x spatial that divides "
                f"{num_devices // num_slices}"
            )
        return shape

    def on_fewer(self, planned: int, num_devices: int) -> "MeshConfig":
        """This mesh of `planned` devices on fewer: `data` shrinks first, which leaves a device's part of the state as
        it is; then `fsdp`, `tensor` and `spatial`.

        Args:
          planned: devices that the mesh was chosen for.
          num_devices: those that are left.

        Raises:
          UserError: `num_devices` does not divide `planned`, or the mesh does not fit `planned` devices.
        """
        if planned % num_devices:
            fits = max(number for number in range(1, num_devices) if planned % number == 0)
            raise UserError(
                f"{num_devices} devices are here, of {planned} planned ones; a mesh for fewer is made where their "
                f"number divides {planned}: start the run on {fits} of them"
            )
        ways, found = planned // num_devices, {}
        for axis, size in zip(AXES, self.shape(planned), strict=True):
            shrunk = math.gcd(size, ways)
            found[axis], ways = size // shrunk, ways // shrunk
        return MeshConfig(**found)

    def build(self, devices: Sequence[jax.Device] | None = None) -> Mesh:
        """The mesh over `devices` (all devices of all processes when None).

        Of several TPU slices, whole ones lie along `data`: only gradients cross the slow network between them.
        """
        devices = jax.devices() if devices is None else list(devices)
        slices = len({getattr(device, "slice_index", None) for device in devices})
        shape = self.shape(len(devices), slices)
        if slices > 1:
            inner, outer = (shape[0] // slices, *shape[1:]), (slices, 1, 1, 1)
            made = mesh_utils.create_hybrid_device_mesh(inner, outer, devices, allow_split_physical_axes=True)
            return Mesh(made, AXES)
        if len(devices) == 1:
            return Mesh(np.asarray(devices).reshape(shape), AXES)
        # Splitting: an axis of 8 over a torus of 4 x 4 x 4 takes one side and half of another.
        return Mesh(mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True), AXES)
