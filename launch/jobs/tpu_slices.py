"""TPU slices as gcloud and GKE name them: hosts, chips of each, topology, node label.

Shapes are those of `imagen_jax.cost.topologies`. Names of node labels: GKE's page "About TPUs in GKE".
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from imagen_jax.checks import check_count
from imagen_jax.cost.topologies import GENERATIONS, LOCAL, describe, known_topologies
from imagen_jax.errors import UserError
from launch.jobs.local_job import takes_several_hosts
from launch.jobs.phases import Phase

_GKE_LABELS = {
    "v4": "tpu-v4-podslice",
    "v5p": "tpu-v5p-slice",
    "v5e": "tpu-v5-lite-podslice",
    "v6e": "tpu-v6e-slice",
    "tpu7x": "tpu7x",
}
# Cloud TPU says v5litepod-N where everybody says v5e-N. It makes no tpu7x: that is for GKE alone.
_GCLOUD_NAMES = {"v4": "v4", "v5p": "v5p", "v5e": "v5litepod", "v6e": "v6e"}


@dataclass(frozen=True)
class TpuSlice:
    """One slice.

    Args:
      name: as in `imagen_jax plan --topology`, e.g. "v4-256".
      hosts: machines of it.
      chips_per_host: of each.
      topology: chips along each side, as "4x4x8".
      gke_label: the value of cloud.google.com/gke-tpu-accelerator.
    """

    name: str
    hosts: int
    chips_per_host: int
    topology: str
    gke_label: str

    @property
    def accelerator_type(self) -> str:
        """The name for gcloud.

        Raises:
          UserError: Cloud TPU offers no such machines but through GKE.
        """
        generation, number = self.name.split("-")
        if generation not in _GCLOUD_NAMES:
            raise UserError(f"accelerator ({self.name}) is offered by GKE alone; use launch/gke.py")
        return f"{_GCLOUD_NAMES[generation]}-{number}"


def find_slice(name: str) -> TpuSlice:
    """The slice of a name.

    Raises:
      UserError: there is none.
    """
    if name not in known_topologies() or name == LOCAL:
        known = ", ".join(f"{generation}-N" for generation in GENERATIONS)
        raise UserError(f"accelerator ({name!r}) is not known; the names are {known}, as imagen_jax plan has them")
    arguments = describe(name)
    topology = arguments["topology_name"].split(":")[1]
    chips = 1
    for side in topology.split("x"):
        chips *= int(side)
    per_host = 1
    for side in arguments["chips_per_host_bounds"]:
        per_host *= side
    per_host = min(per_host, chips)
    return TpuSlice(name, chips // per_host, per_host, topology, _GKE_LABELS[name.split("-")[0]])


def slices_of(config: Mapping[str, Any], phase: Phase) -> tuple[TpuSlice, int]:
    """The kind of slice that a phase runs on, and how many of them.

    Raises:
      UserError: the config has no such machine, or it has several hosts and the phase takes one.
    """
    if phase.machine not in config["machines"]:
        raise UserError(f"phase {phase.name} runs on {phase.machine!r}, which config.machines does not have")
    machine = config["machines"][phase.machine]
    found, num_slices = find_slice(machine["accelerator"]), machine["num_slices"]
    check_count(f"--config.machines.{phase.machine}.num_slices", num_slices)
    alone = [command for command in phase.commands if not takes_several_hosts(command)]
    if alone and found.hosts * num_slices > 1:
        raise UserError(
            f"--config.machines.{phase.machine} ({num_slices} x {found.name}, {found.hosts * num_slices} hosts) must "
            f"be one host for phase {phase.name}, whose {' '.join(alone[0][:2])} several cannot run together"
        )
    return found, num_slices
