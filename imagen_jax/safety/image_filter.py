"""Images refused by what they show."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from imagen_jax.errors import UserError
from imagen_jax.files import StrPath, as_path
from imagen_jax.safety.finding import Finding
from imagen_jax.safety.prompt_filter import read_categories
from imagen_jax.typing import Float, UInt8

Image = UInt8[np.ndarray, "h w 3"]
NEUTRAL = "neutral"
# CLIP models are trained to at most this inverse temperature, and most of them reach it.
_SCALE = 100.0


@runtime_checkable
class ImageFilter(Protocol):
    """A judge of images; several threads may ask it at once."""

    def judge(self, image: Image) -> Finding | None:
        """The reason to refuse an image; None: there is none."""
        ...


class ConceptFilter:
    """Refuses images that lie nearer to captions of a category than to all others, by any model like CLIP.

    With e_i the image's embedding and c_j those of all captions, p = softmax(100 e·c); a category's score is the sum of
    p over its captions.

    Args:
      image_features: embeddings [1, d] of length 1 of images uint8 [1, h, w, 3].
      concepts: embeddings [n, d] of length 1 of captions by category; those of NEUTRAL tell what is no reason.
      threshold: score from which an image is refused, in (0, 1).

    Raises:
      UserError: there is no category besides NEUTRAL, or no NEUTRAL, or the threshold is out of range.
    """

    def __init__(
        self,
        image_features: Callable[[np.ndarray], np.ndarray],
        concepts: Mapping[str, Float[np.ndarray, "_n _d"]],
        threshold: float = 0.5,
    ):
        _check_concepts(concepts)
        check_threshold(threshold)
        self._image_features, self._threshold = image_features, threshold
        self._rows = np.concatenate(list(concepts.values()))
        self._categories = [name for name, rows in concepts.items() for _ in rows]

    def judge(self, image: Image) -> Finding | None:
        """The category of the highest score, if that is enough."""
        logits = _SCALE * self._rows @ self._image_features(image[None])[0]
        weights = np.exp(logits - logits.max())
        scores: dict[str, float] = {}
        for name, share in zip(self._categories, weights / weights.sum(), strict=True):
            scores[name] = scores.get(name, 0.0) + float(share)
        scores.pop(NEUTRAL)
        worst = max(scores, key=lambda name: scores[name])
        return Finding(category=worst, score=min(scores[worst], 1.0)) if scores[worst] >= self._threshold else None


def read_concepts(path: StrPath) -> dict[str, list[str]]:
    """Captions by category, from a file of the form of word lists (`PromptFilter.load`).

    Raises:
      UserError: it cannot be read, is no such list, or has not both NEUTRAL and another category.
    """
    found = read_categories(as_path(path))
    try:
        _check_concepts(found)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return found


def check_threshold(threshold: float) -> None:
    """Raises UserError unless it is in (0, 1)."""
    if not 0.0 < threshold < 1.0:
        raise UserError(f"threshold ({threshold}) must be between 0 and 1: the smaller, the more images are refused")


def _check_concepts(concepts: Mapping[str, Sequence[object] | np.ndarray]) -> None:
    if NEUTRAL not in concepts or len(concepts) < 2 or not all(len(rows) for rows in concepts.values()):
        have = ", ".join(concepts) or "none"
        raise UserError(
            f"concepts need captions of the category {NEUTRAL}, such as a photo of a landscape, and of one category at "
            f"least that is refused; there is {have}"
        )
