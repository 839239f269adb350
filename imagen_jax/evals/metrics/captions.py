"""Scores of images against their captions, from embeddings of one network: CLIP score and R-precision."""

from typing import Any

import numpy as np

from imagen_jax.checks import check_count
from imagen_jax.errors import UserError
from imagen_jax.evals.metrics.inputs import as_features, check_seed


def clip_score(image_features: Any, text_features: Any) -> np.ndarray:
    """100 max(cosine, 0) of each image and its caption (arXiv 2104.08718, with 100 for w = 2.5).

    Args:
      image_features, text_features: embeddings [n, d], row for row.

    Returns:
      float64 [n]; its mean is the score of a set.

    Raises:
      UserError: the shapes differ, a value is not finite, or a row is all zero.
    """
    images, texts = _unit_pair(image_features, text_features)
    return 100.0 * np.clip(np.einsum("nd,nd->n", images, texts), 0.0, None)


def r_precision(image_features: Any, text_features: Any, *, num_candidates: int = 100, seed: int = 0) -> float:
    """Share of images that are nearer to their own caption than to captions of others (arXiv 1711.10485).

    Args:
      image_features, text_features: embeddings [n, d], row for row.
      num_candidates: captions an image chooses from, its own among them, in [2, n].
      seed: of the other captions, in [0, 2**32).

    Returns:
      In [0, 1]; 1 / num_candidates by chance. An image as near to j others as to its own counts 1 / (1 + j).

    Raises:
      UserError: the shapes differ, a value is not finite, or num_candidates is out of range.
    """
    check_count("num_candidates", num_candidates, 2)
    check_seed(seed)
    images, texts = _unit_pair(image_features, text_features)
    if num_candidates > len(images):
        raise UserError(f"num_candidates ({num_candidates}) must be at most the number of captions ({len(images)})")
    rng = np.random.default_rng(seed)
    total = 0.0
    for row, image in enumerate(images):
        # Numbers of the others: those from its own on stand one higher.
        others = rng.choice(len(images) - 1, num_candidates - 1, replace=False)
        cosines = texts[others + (others >= row)] @ image
        own = texts[row] @ image
        total += 0.0 if (cosines > own).any() else 1.0 / (1 + int((cosines == own).sum()))
    return total / len(images)


def _unit_pair(image_features: Any, text_features: Any) -> tuple[np.ndarray, np.ndarray]:
    pair = []
    for name, features in (("the image features", image_features), ("the text features", text_features)):
        found = as_features(name, features)
        lengths = np.linalg.norm(found, axis=1)
        if not lengths.all():
            raise UserError(f"row {int(np.argmin(lengths))} of {name} is all zero and has no direction")
        pair.append(found / lengths[:, None])
    if pair[0].shape != pair[1].shape:
        raise UserError(f"image features {pair[0].shape} and text features {pair[1].shape} must have one shape")
    return pair[0], pair[1]
