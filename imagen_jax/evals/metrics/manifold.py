"""Precision and recall (arXiv 1904.06991), density and coverage (arXiv 2002.09797).

A set's manifold is the union of balls about its examples, each as wide as the distance to the k-th nearest of the
others. A point on the edge of a ball is in it.
"""

from typing import Any, NamedTuple

import numpy as np

from imagen_jax.checks import check_count
from imagen_jax.errors import UserError
from imagen_jax.evals.metrics.inputs import as_pair, blocks


class PrecisionRecall(NamedTuple):
    """Shares in [0, 1].

    Attributes:
      precision: of generated examples, in a ball of a reference example.
      recall: of reference examples, in a ball of a generated example.
    """

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """Precision and recall that outliers sway less.

    Attributes:
      density: reference balls about a generated example, over k; may exceed 1.
      coverage: share of reference examples in whose ball lies a generated example.
    """

    density: float
    coverage: float


def precision_recall(generated: Any, reference: Any, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall.

    Args:
      generated, reference: features [n, d] and [m, d].
      k: neighbours, >= 1 and below n and m.

    Raises:
      UserError: there is a value that is not finite, the widths differ, or k is out of range.
    """
    ours, theirs = _pair(generated, reference, k)
    return PrecisionRecall(
        float((_balls_about(ours, theirs, _radii(theirs, k)) > 0).mean()),
        float((_balls_about(theirs, ours, _radii(ours, k)) > 0).mean()),
    )


def density_coverage(generated: Any, reference: Any, k: int = 5) -> DensityCoverage:
    """Density and coverage.

    Args:
      generated, reference: features [n, d] and [m, d].
      k: neighbours, >= 1 and below m.

    Raises:
      UserError: there is a value that is not finite, the widths differ, or k is out of range.
    """
    ours, theirs = _pair(generated, reference, k)
    radii = _radii(theirs, k)
    nearest = np.concatenate([_squared(theirs[rows], ours).min(axis=1) for rows in blocks(len(theirs))])
    density = _balls_about(ours, theirs, radii).mean() / k
    return DensityCoverage(float(density), float((nearest <= radii).mean()))


def _pair(generated: Any, reference: Any, k: int) -> tuple[np.ndarray, np.ndarray]:
    check_count("k", k)
    ours, theirs = as_pair(generated, reference)
    if min(len(ours), len(theirs)) <= k:
        raise UserError(
            f"k ({k}) must be below the number of images, {len(ours)} generated and {len(theirs)} of the reference; "
            "give more images or a smaller k"
        )
    return ours, theirs


def _squared(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Squared distances [n, m]; those below rounding are 0, so that equal images are at distance 0."""
    squares_x, squares_y = (np.einsum("nd,nd->n", one, one) for one in (x, y))
    sums = squares_x[:, None] + squares_y
    squared = sums - 2.0 * (x @ y.T)
    squared[squared < 1e-13 * sums] = 0.0
    return squared


def _radii(features: np.ndarray, k: int) -> np.ndarray:
    """Squared distance of each example to the k-th nearest of the others."""
    # The nearest of all is the example itself.
    parts = [np.partition(_squared(features[rows], features), k, axis=1)[:, k] for rows in blocks(len(features))]
    return np.concatenate(parts)


def _balls_about(points: np.ndarray, centres: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Number of balls in which each point lies."""
    return np.concatenate([(_squared(points[rows], centres) <= radii).sum(axis=1) for rows in blocks(len(points))])
