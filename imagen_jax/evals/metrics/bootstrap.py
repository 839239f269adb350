"""Bootstrap intervals: a metric of examples drawn again, with replacement."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from imagen_jax.checks import check_count
from imagen_jax.errors import UserError
from imagen_jax.evals.metrics.inputs import check_seed


class Interval(NamedTuple):
    """A figure and the bounds of its percentile interval.

    Attributes:
      value: of the examples as they are.
      low, high: the percentiles of the figures of examples drawn again.
    """

    value: float
    low: float
    high: float


def bootstrap_interval(
    metric: Callable[..., float], *arrays: Any, num_resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Interval of a metric by Efron's percentile bootstrap (1979).

    For means over examples, such as CLIP score. Examples drawn again repeat themselves, and metrics that see repeats as
    a lack of variety (FID, recall, Vendi score) come out worse than they are: their interval lies to one side.

    Args:
      metric: of the arrays.
      arrays: [n, …] each, row for row; at least one.
      num_resamples: >= 1.
      level: share of the figures in the interval, in (0, 1).
      seed: of the rows drawn, in [0, 2**32).

    Raises:
      UserError: the arrays differ in length or are empty, or a setting is out of range.
    """
    check_count("num_resamples", num_resamples)
    check_seed(seed)
    if not 0 < level < 1:
        raise UserError(f"level ({level}) must be in (0, 1); 0.95 is usual")
    rows = [np.asarray(one) for one in arrays]
    numbers = sorted({len(one) for one in rows})
    if len(numbers) != 1 or not numbers[0]:
        raise UserError(f"a bootstrap takes arrays of one length, not empty; got {numbers or 'none'}")
    rng = np.random.default_rng(seed)
    figures = []
    for _ in range(num_resamples):
        chosen = rng.integers(numbers[0], size=numbers[0])
        figures.append(metric(*(one[chosen] for one in rows)))
    low, high = np.quantile(figures, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(metric(*rows)), float(low), float(high))
