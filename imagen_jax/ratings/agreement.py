"""Agreement of raters: Krippendorff's alpha ("Computing Krippendorff's Alpha-Reliability", 2011)."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from imagen_jax.errors import UserError

DISTANCES: dict[str, Callable[[Any, Any], float]] = {
    "nominal": lambda one, other: float(one != other),
    "interval": lambda one, other: float(one - other) ** 2,
}


def krippendorff_alpha(units: Sequence[Sequence[Hashable]], distance: str = "nominal") -> float | None:
    """Agreement beyond chance: 1 is perfect, 0 what chance gives. Raters may leave units out.

    Args:
      units: for each unit what raters gave it; a unit with one value says nothing and is left out.
      distance: "nominal" for names, "interval" for numbers.

    Returns:
      None where no two raters met, or every value is the same: then nothing can be told.

    Raises:
      UserError: there is no such distance.
    """
    if distance not in DISTANCES:
        raise UserError(f"distance ({distance!r}) must be one of {', '.join(DISTANCES)}")
    values = list(dict.fromkeys(value for unit in units for value in unit if len(unit) > 1))
    number = {value: index for index, value in enumerate(values)}
    met = np.zeros((len(values), len(values)))
    for unit in units:
        if len(unit) > 1:
            counts = np.bincount([number[value] for value in unit], minlength=len(values)).astype(float)
            met += (np.outer(counts, counts) - np.diag(counts)) / (len(unit) - 1)
    totals = met.sum(0)
    apart = np.array([[DISTANCES[distance](one, other) for other in values] for one in values]).reshape(met.shape)
    expected = float(totals @ apart @ totals)
    if not expected:
        return None
    return 1.0 - float(totals.sum() - 1) * float((met * apart).sum()) / expected
