"""Scores of one set alone: Inception score (arXiv 1606.03498) and Vendi score (arXiv 2210.02410)."""

from typing import Any

import numpy as np
import scipy.linalg
import scipy.special

from imagen_jax.checks import check_count
from imagen_jax.errors import UserError
from imagen_jax.evals.metrics.inputs import Score, as_features, check_seed


def inception_score(logits: Any, *, num_splits: int = 10, seed: int | None = 2020) -> Score:
    """exp of the mean KL divergence of an image's classes from those of all images.

    Args:
      logits: [n, classes]; Inception's layer "logits_unbiased" is what published scores are of.
      num_splits: parts that are scored apart, in [1, n].
      seed: of the order before it is split, in [0, 2**32), as torch-fidelity shuffles; None keeps the order.

    Returns:
      Mean and standard deviation over the parts.

    Raises:
      UserError: there is a value that is not finite, or fewer images than parts.
    """
    check_count("num_splits", num_splits)
    found = as_features("the logits", logits)
    if len(found) < num_splits:
        raise UserError(f"num_splits ({num_splits}) must be at most the number of images ({len(found)})")
    if seed is not None:
        check_seed(seed)
        found = found[np.random.RandomState(seed).permutation(len(found))]
    log_p = scipy.special.log_softmax(found, axis=1)
    scores = []
    for part in range(num_splits):
        rows = slice(part * len(found) // num_splits, (part + 1) * len(found) // num_splits)
        log_marginal = scipy.special.logsumexp(log_p[rows], axis=0) - np.log(len(log_p[rows]))
        divergence = (np.exp(log_p[rows]) * (log_p[rows] - log_marginal)).sum(axis=1)
        scores.append(np.exp(divergence.mean()))
    return Score(float(np.mean(scores)), float(np.std(scores)))


def vendi_score(features: Any) -> float:
    """Effective number of different images: exp of the entropy of the eigenvalues of their cosines over n.

    Args:
      features: [n, d], no row all zero.

    Returns:
      1 for images all alike, up to min(n, d).

    Raises:
      UserError: a value is not finite, or a row is all zero.
    """
    found = as_features("the features", features)
    lengths = np.linalg.norm(found, axis=1)
    if not lengths.all():
        raise UserError(f"row {int(np.argmin(lengths))} of the features is all zero and has no direction")
    found /= lengths[:, None]
    # X X^T and X^T X have the same eigenvalues but for zeros: take the smaller.
    gram = found.T @ found if found.shape[1] < len(found) else found @ found.T
    eigenvalues = np.clip(scipy.linalg.eigvalsh(gram / len(found)), 0.0, None)
    return float(np.exp(scipy.special.entr(eigenvalues).sum()))
