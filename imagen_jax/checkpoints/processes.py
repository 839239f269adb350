"""Several processes of one run, where they must agree; alone, a process agrees with itself."""

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from imagen_jax.checkpoints.proof import DamagedCheckpointError
from imagen_jax.errors import UserError

_MOST_BYTES = 8192


def barrier(name: str) -> None:
    """Waits until every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def from_first(content: bytes) -> bytes:
    """Sends what the first process gave to every process; at most 8192 bytes, the last one not zero."""
    if jax.process_count() == 1:
        return content
    sent = np.zeros(_MOST_BYTES, np.uint8)
    sent[: len(content)] = np.frombuffer(content, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(sent)).astype(np.uint8).tobytes().rstrip(b"\0")


def gathered(content: bytes) -> list[bytes]:
    """Contents that the processes gave, in their order, the same in each."""
    if jax.process_count() == 1:
        return [content]
    sizes = np.ravel(multihost_utils.process_allgather(np.array(len(content), np.int32)))
    mine = np.zeros(int(sizes.max()), np.uint8)
    mine[: len(content)] = np.frombuffer(content, np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(mine)).astype(np.uint8)
    return [row[:size].tobytes() for row, size in zip(rows, sizes.tolist(), strict=True)]


def those_without(mine: bool) -> list[int]:
    """Numbers of the processes that gave False, the same list in each."""
    if jax.process_count() == 1:
        return [] if mine else [0]
    return np.flatnonzero(~np.asarray(multihost_utils.process_allgather(np.array(mine)), bool)).tolist()


def all_check(check: Callable[[], None]) -> None:
    """Calls `check` in every process; a UserError of any of them is raised in all, so that none waits for others.

    Raises:
      UserError: what the first process that failed raised, as a `DamagedCheckpointError` if it was one there.
    """
    failure: UserError | None = None
    try:
        check()
    except UserError as error:
        failure = error
    if jax.process_count() == 1:
        if failure is not None:
            raise failure
        return
    damaged = isinstance(failure, DamagedCheckpointError)
    told = gathered(json.dumps([str(failure), damaged] if failure is not None else None).encode())
    found = next((one for one in map(json.loads, told) if one is not None), None)
    if found is not None:
        text, damaged = found
        raise (DamagedCheckpointError if damaged else UserError)(text) from failure


def first_checks(check: Callable[[], None]) -> None:
    """Calls `check` in the first process alone; see `all_check`."""
    all_check(check if jax.process_index() == 0 else lambda: None)


def first_tells(tell: Callable[[], Any]) -> Any:
    """The plain data that `tell` gives in the first process, which alone calls it.

    Raises:
      UserError: what `tell` raised, in every process.
    """
    found: list[Any] = []
    first_checks(lambda: found.append(tell()))
    if jax.process_count() == 1:
        return found[0]
    return json.loads(from_first(json.dumps(found).encode()))[0]
