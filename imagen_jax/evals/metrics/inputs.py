"""Checks of the arrays that metrics take, and the pair that several of them give."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from imagen_jax.checks import check_count
from imagen_jax.errors import UserError

# Rows of a block of pairwise products: 1024 x 30 000 float64 are 246 MB.
BLOCK = 1024


class Score(NamedTuple):
    """A figure and its spread.

    Attributes:
      mean: over subsets or splits.
      std: over the same.
    """

    mean: float
    std: float


def as_features(name: str, features: Any, least: int = 1) -> np.ndarray:
    """Features as float64 [n, d].

    Args:
      name: of the array, for messages.
      features: numbers, [n, d].
      least: fewest rows; >= 1.

    Raises:
      UserError: it is no matrix of finite numbers, or has fewer rows.
    """
    try:
        found = np.asarray(features)
    except (ValueError, TypeError) as error:
        raise UserError(f"{name} must be numbers [n, d], a row an example; NumPy says: {error}") from error
    # To NumPy's own test bfloat16 is no number.
    if found.ndim != 2 or (found.dtype.kind not in "fiu" and found.dtype.name != "bfloat16"):
        raise UserError(f"{name} must be numbers [n, d], a row an example; got {found.dtype} {found.shape}")
    if len(found) < least or not found.shape[1]:
        raise UserError(
            f"{name} have {len(found)} rows of {found.shape[1]}; expected at least {least}: give more images"
        )
    made = found.astype(np.float64)
    finite = np.isfinite(made).all(axis=1)
    if not finite.all():
        raise UserError(
            f"{name} hold NaN or infinity in {int((~finite).sum())} of {len(made)} rows, the first is row "
            f"{int(np.argmin(finite))}; look at its image"
        )
    return made


def check_seed(seed: object) -> None:
    """Refuses what is no seed of NumPy's RandomState.

    Raises:
      UserError: it is no integer in [0, 2**32).
    """
    check_count("seed", seed, 0, most=2**32 - 1)


def as_pair(a: Any, b: Any, least: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Generated and reference features as float64 [n, d] and [m, d].

    Raises:
      UserError: one is no matrix of finite numbers, or they differ in width.
    """
    first, second = as_features("the generated features", a, least), as_features("the reference features", b, least)
    if first.shape[1] != second.shape[1]:
        raise UserError(
            f"the generated features have {first.shape[1]} columns, the reference {second.shape[1]}; take both from "
            "one layer of one extractor"
        )
    return first, second


def blocks(rows: int) -> Iterator[slice]:
    """Slices of at most BLOCK rows that cover all."""
    for start in range(0, rows, BLOCK):
        yield slice(start, start + BLOCK)
