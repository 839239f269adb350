"""Example keys of embedding stores: which are allowed, and their order in the index."""

from collections.abc import Sequence

import numpy as np

from imagen_jax.errors import UserError

MAX_KEY_BYTES = 256


def sort_keys(keys: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Example keys sorted, and their order.

    Raises:
      UserError: a key recurs, is empty, is longer than MAX_KEY_BYTES or ends in a zero byte.
    """
    for key in keys:
        if not 0 < len(key) <= MAX_KEY_BYTES or key.endswith(b"\0"):
            raise UserError(
                f"example key {key[:300]!r} is not allowed: expected 1 to {MAX_KEY_BYTES} bytes, the last one not zero"
            )
    array = np.array(list(keys), dtype=np.bytes_)
    order = unique_order(array)
    return array[order], order


def unique_order(keys: np.ndarray) -> np.ndarray:
    """Positions of keys in sorted order.

    Raises:
      UserError: a key recurs.
    """
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    recurring = np.flatnonzero(ordered[1:] == ordered[:-1])
    if len(recurring):
        raise UserError(
            f"{len(recurring)} example keys recur, the first is {bytes(ordered[recurring[0]])!r}; keys must be "
            "unique: rebuild the corpus"
        )
    return order
