"""Bytes of a compiled program's collectives, by kind and mesh axis, read from its HLO text.

The payload of a collective is the whole array that the devices of one group share: the gathered array, the array
before it is scattered or reduced, what a device sends in an all-to-all or a permutation. A device of a group of g
sends of a payload of N bytes, by the algorithms that send least (Thakur et al. 2005, "Optimization of collective
communication operations in MPICH"):

    all-gather, reduce-scatter, all-to-all   N (g - 1) / g
    all-reduce                               2 N (g - 1) / g       (a reduce-scatter, then an all-gather)
    collective-permute                       N
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Sequence

import numpy as np
from jax.sharding import Mesh

from imagen_jax.cost import hlo
from imagen_jax.cost.hlo import Computation, Instruction, Module

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a program, as one device sees it.

    Attributes:
      kind: one of KINDS.
      axes: mesh axes that its groups run along, e.g. ("data", "fsdp").
      group_size: devices of a group; slices where it crosses between slices.
      payload: bytes of one run, see above.
      runs: how often a step runs it.
      over_dcn: whether its groups reach over several slices.
    """

    kind: str
    axes: tuple[str, ...]
    group_size: int
    payload: int
    runs: int
    over_dcn: bool

    @property
    def sent(self) -> float:
        """Bytes that one device sends in a step."""
        share = 1.0 if self.kind == "collective-permute" else (self.group_size - 1) / self.group_size
        return self.runs * self.payload * share * (2 if self.kind == "all-reduce" else 1)


def read_collectives(module: Module, mesh: Mesh) -> list[Collective]:
    """Every collective that a step runs.

    Args:
      module: the compiled program.
      mesh: the mesh that it was compiled for; its order of devices gives the numbers in the text their meaning.
    """
    scatters = _fused_scatters(module)
    counts = hlo.run_counts(module)
    found = []
    for name, times in counts.items():
        computation = module.computations[name]
        for instruction in computation.values():
            collective = _collective(computation, instruction, times, mesh)
            if collective is not None:
                # The TPU compiler writes a reduce-scatter as a fusion of an all-reduce and a slice.
                kind = "reduce-scatter" if name in scatters else collective.kind
                found.append(dataclasses.replace(collective, kind=kind))
    return found


def by_kind_and_axis(collectives: Iterable[Collective]) -> dict[str, dict[str, int]]:
    """Payload bytes of one device and step: {kind: {"data+fsdp": bytes}}; only what there is."""
    totals: dict[str, dict[str, int]] = {}
    for one in collectives:
        axes = totals.setdefault(one.kind, {})
        name = "+".join(one.axes)
        axes[name] = axes.get(name, 0) + one.payload * one.runs
    return {kind: dict(sorted(totals[kind].items())) for kind in KINDS if kind in totals}


def largest_by_kind(collectives: Iterable[Collective]) -> dict[str, int]:
    """The largest payload that one run of a collective of each kind brings; only what there is."""
    largest: dict[str, int] = {}
    for one in collectives:
        largest[one.kind] = max(largest.get(one.kind, 0), one.payload)
    return {kind: largest[kind] for kind in KINDS if kind in largest}


def _fused_scatters(module: Module) -> set[str]:
    return {name for name in module.computations if name.startswith("all-reduce-scatter")}


def _collective(computation: Computation, instruction: Instruction, times: int, mesh: Mesh) -> Collective | None:
    if instruction.opcode == "send":
        return _between_slices(computation, instruction, times, mesh)
    kind = instruction.opcode.removesuffix("-start")
    if kind == "ragged-all-to-all":
        kind = "all-to-all"
    if kind not in KINDS:
        return None
    groups = _groups(instruction, mesh.size)
    axes = tuple(axis for axis, varies in zip(mesh.axis_names, _varies(groups, mesh), strict=True) if varies)
    if not axes:
        return None
    size = max(map(len, groups))
    operands = sum(array.num_bytes for name in instruction.operands for array in computation[name].arrays)
    payload = operands * size if kind == "all-gather" else operands
    return Collective(kind, axes, size, payload, times, _crosses(groups, mesh))


def _between_slices(computation: Computation, send: Instruction, times: int, mesh: Mesh) -> Collective | None:
    """The TPU compiler leaves what crosses slices to the hosts: a send that names the collective it is part of."""
    transfer = re.search(r'_xla_megascale_transfer_type="(\w+)"', send.attributes)
    if transfer is None:
        return None
    kind = transfer.group(1).lower().replace("_", "-")
    payload = computation[send.operands[0]].arrays[0].num_bytes
    slices = np.vectorize(slice_of)(mesh.devices)
    size = len(np.unique(slices))
    axes = tuple(
        name for dim, name in enumerate(mesh.axis_names) if (slices != slices.take([0], axis=dim)).any()
    )  # fmt: skip
    kind = kind if kind in KINDS else "collective-permute"
    return Collective(kind, axes, size, payload * size if kind == "all-gather" else payload, times, True)


def slice_of(device: object) -> int:
    """The slice that a device belongs to, 0 where there is one only."""
    return getattr(device, "slice_index", None) or 0


def _crosses(groups: Sequence[Sequence[int]], mesh: Mesh) -> bool:
    devices = mesh.devices.flat
    return any(len({slice_of(devices[i]) for i in group}) > 1 for group in groups)


def _varies(groups: Sequence[Sequence[int]], mesh: Mesh) -> list[bool]:
    """For every mesh axis, whether the devices of a group differ in it."""
    shape = mesh.devices.shape
    varies = np.zeros(len(shape), bool)
    for group in groups:
        places = np.stack(np.unravel_index(list(group), shape))
        varies |= (places != places[:, :1]).any(1)
    return varies.tolist()


def _groups(instruction: Instruction, num_devices: int) -> list[list[int]]:
    """Groups of devices, by their number in the mesh.

    Four spellings: {{0,1},{2,3}}, [2,2]<=[4] (an iota, reshaped), [2,2]<=[2,2]T(1,0) (transposed before), and
    mesh['a'=2,'b'=2] {'b'} (an iota over named axes, groups along some of them).
    """
    text = instruction.attributes
    pairs = re.search(r"source_target_pairs=\{(\{.*?\})\}", text)
    if pairs:
        return _listed(pairs.group(1))
    listed = re.search(r"replica_groups=\{(\{.*?\})\}", text)
    if listed:
        return _listed(listed.group(1))
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if iota:
        shape, sizes, order = ([int(n) for n in part.split(",")] if part else None for part in iota.groups())
        numbers = np.arange(math.prod(sizes or [])).reshape(sizes or [])
        return (numbers.transpose(order) if order else numbers).reshape(shape or []).tolist()
    named = re.search(r"replica_groups=mesh\[([^\]]*)\](?:,? ?device_ids=\(([^)]*)\))? ?\{([^}]*)\}", text)
    if named:
        return _over_axes(*named.groups())
    return [list(range(num_devices))]


def _listed(text: str) -> list[list[int]]:
    return [[int(n) for n in group.split(",") if n] for group in re.findall(r"\{([\d,]*)\}", text)]


def _over_axes(mesh: str, device_ids: str | None, axes: str) -> list[list[int]]:
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh)}
    if device_ids:
        raise ValueError(f"replica groups over an explicit device list are not read: {device_ids[:60]}")
    # 'b':(2)4 is a part of axis b: the 4 that follow its outermost 2.
    parts = {name: (int(before or 1), int(size or 0)) for name, before, size in
             re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", axes)}  # fmt: skip
    shape: list[int] = []
    grouped: list[int] = []
    for name, size in sizes.items():
        before, part = parts.get(name, (size, 1))
        part = part or size
        before = before if name in parts else size
        grouped.append(len(shape) + 1)
        shape += [before, part, size // (before * part)]
    numbers = np.arange(math.prod(shape)).reshape(shape)
    rest = [dim for dim in range(len(shape)) if dim not in grouped]
    return numbers.transpose(rest + grouped).reshape(-1, math.prod(shape[dim] for dim in grouped)).tolist()
