"""A check that the replicas of a run's state are the same bits on every device.

Every device that holds a copy of a part of the state has computed it for itself. Where a device computes wrongly, or a
bit of its memory flips, its copy differs from the others, and no loss tells. A checksum is the sum of the parts' bits
as 32-bit words modulo 2**32: any one flipped bit changes it.
"""

import collections
from collections.abc import Collection, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.checkpoints.processes import gathered
from imagen_jax.checkpoints.trees import TrainState, named_leaves
from imagen_jax.errors import UserError, listed
from imagen_jax.train.hooks import Hook, StepInfo
from imagen_jax.typing import Array

ADVICE = (
    "a device computes wrongly, or a bit of its memory flipped; take that machine out, and go on from a checkpoint of "
    "a step whose check went well"
)
_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


@jax.jit
def checksums(parts: Sequence[Array]) -> Array:
    """One uint32 checksum of the bits of each part."""

    def checksum(part: Array) -> Array:
        bits = jax.lax.bitcast_convert_type(part, _WORDS[part.dtype.itemsize])
        return jnp.sum(bits.astype(jnp.uint32), dtype=jnp.uint32)

    return jnp.stack([checksum(part) for part in parts])


class ReplicaCheck(Hook):
    """Compares the replicas of the state every so many steps, before it is saved.

    Args:
      every: steps between two checks, >= 1.
    """

    def __init__(self, every: int):
        self._every = every

    def wants(self, step: int) -> bool:
        """True at the steps that are checked."""
        return step % self._every == 0

    def before_step(self, info: StepInfo) -> None:
        """Checks the state; see `check_replicas`."""
        with jax.transfer_guard("allow"):
            check_replicas(info.state, info.step)


def check_replicas(state: TrainState, step: int) -> None:
    """Compares the replicas of each leaf over all devices of all processes.

    Args:
      state: global arrays.
      step: for the message.

    Raises:
      UserError: in every process, where replicas differ; names the devices.
    """
    named = {name: leaf for name, leaf in named_leaves(state).items() if leaf.size}
    on_device: dict[int, list[Array]] = collections.defaultdict(list)
    for leaf in named.values():
        for shard in leaf.addressable_shards:
            on_device[shard.device.id].append(shard.data)
    sums = of_all({device: checksums(parts) for device, parts in on_device.items()})
    found = []
    for number, (name, leaf) in enumerate(named.items()):
        groups: dict[str, dict[int, int]] = collections.defaultdict(dict)
        for device, index in leaf.sharding.devices_indices_map(leaf.shape).items():
            groups[str(index)][device.id] = sums[device.id][number]
        for group in groups.values():
            if wrong := odd_ones(group):
                found.append((wrong, name))
    if found:
        devices = described({device for wrong, _ in found for device in wrong})
        leaves = listed([name for _, name in found])
        raise UserError(f"replicas of the state differ at step {step}, on {devices}, in {leaves}: {ADVICE}")


def of_all(own: Mapping[int, Array]) -> dict[int, list[int]]:
    """Checksums of each device, by its number, from those that each process has of its own devices."""
    mine = b"".join(np.array([device, *np.asarray(own[device])], np.uint32).tobytes() for device in sorted(own))
    length = 1 + len(next(iter(own.values())))
    rows = (row for told in gathered(mine) for row in np.frombuffer(told, np.uint32).reshape(-1, length).tolist())
    return {device: row for device, *row in rows}


def described(devices: Collection[int]) -> str:
    """Devices in words, each with its process."""
    known = {device.id: device for device in jax.devices()}
    return ", ".join(f"{known[device]} of process {known[device].process_index}" for device in sorted(devices))


def odd_ones(sums: Mapping[int, int]) -> list[int]:
    """Devices whose checksum is not that of most; all of them where no checksum has a majority; [] where all agree."""
    counts = collections.Counter(sums.values()).most_common()
    if len(counts) == 1:
        return []
    most, number = counts[0]
    return sorted(device for device, one in sums.items() if one != most or 2 * number <= len(sums))
