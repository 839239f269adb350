"""Distances by kernels: KID (arXiv 1801.01401) and CMMD (arXiv 2401.09603).

MMD² = E k(x, x') + E k(y, y') - 2 E k(x, y), with x, x' generated and y, y' reference. KID leaves out the terms of an
example with itself (unbiased, and so at times below 0) and has k(x, y) = (x.y / d + 1)³; CMMD keeps them and has
k(x, y) = exp(-|x - y|² / (2 sigma²)), sigma = 10, times 1000.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from imagen_jax.checks import check_count
from imagen_jax.evals.metrics.inputs import Score, as_pair, blocks, check_seed

_SIGMA, _SCALE = 10.0, 1000.0


def kernel_distance(a: Any, b: Any, *, num_subsets: int = 100, subset_size: int = 1000, seed: int = 2020) -> Score:
    """KID: unbiased MMD² of random subsets.

    The subsets are those of torch-fidelity: drawn in turn, from `a` and then from `b`, by NumPy's RandomState.

    Args:
      a, b: generated and reference features, [n, d] and [m, d], n and m >= 2.
      num_subsets: >= 1.
      subset_size: images of a subset, >= 2; all of the smaller set where it holds fewer.
      seed: of the subsets, in [0, 2**32).

    Returns:
      Mean and standard deviation over the subsets.

    Raises:
      UserError: there is a value that is not finite, the widths differ, or a count is out of range.
    """
    check_count("num_subsets", num_subsets)
    check_count("subset_size", subset_size, 2)
    check_seed(seed)
    first, second = as_pair(a, b, least=2)
    size = min(subset_size, len(first), len(second))
    rng = np.random.RandomState(seed)
    values = []
    for _ in range(num_subsets):
        x = first[rng.choice(len(first), size, replace=False)]
        y = second[rng.choice(len(second), size, replace=False)]
        values.append(_unbiased(x, y))
    return Score(float(np.mean(values)), float(np.std(values)))


def _unbiased(x: np.ndarray, y: np.ndarray) -> float:
    m, dim = x.shape

    def cubic(products: np.ndarray) -> np.ndarray:
        base = products / dim + 1.0
        return base * base * base

    own = 0.0
    for features in (x, y):
        own += _sum_of(cubic, features, features) - cubic(np.einsum("nd,nd->n", features, features)).sum()
    return float(own / (m * (m - 1)) - 2.0 * _sum_of(cubic, x, y) / (m * m))


def cmmd(a: Any, b: Any) -> float:
    """CMMD: MMD² with a Gaussian kernel, times 1000.

    Args:
      a, b: image embeddings of CLIP, of length 1, [n, d] and [m, d]; `image_features` of a CLIP extractor gives such.

    Raises:
      UserError: there is a value that is not finite, or the widths differ.
    """
    first, second = as_pair(a, b)
    terms = [_mean_gaussian(x, y) for x, y in ((first, first), (second, second), (first, second))]
    return float(_SCALE * (terms[0] + terms[1] - 2.0 * terms[2]))


def _mean_gaussian(x: np.ndarray, y: np.ndarray) -> float:
    squares_x, squares_y = (np.einsum("nd,nd->n", one, one) for one in (x, y))
    total = 0.0
    for rows in blocks(len(x)):
        squared = squares_x[rows, None] + squares_y - 2.0 * (x[rows] @ y.T)
        total += float(np.exp(-squared / (2.0 * _SIGMA**2)).sum())
    return total / (len(x) * len(y))


def _sum_of(kernel: Callable[[np.ndarray], np.ndarray], x: np.ndarray, y: np.ndarray) -> float:
    """Sum of a kernel of scalar products over all pairs."""
    return sum(float(kernel(x[rows] @ y.T).sum()) for rows in blocks(len(x)))
