"""Nudity in images, by the detector of the library nudenet (MIT), whose weights come in its package."""

import importlib.util
from typing import Any

import numpy as np

from imagen_jax.errors import UserError
from imagen_jax.safety.finding import Finding
from imagen_jax.safety.image_filter import Image, check_threshold

CATEGORY = "nudity"
# The detector's names of what is refused; it knows others, such as faces and feet.
REFUSED = frozenset(
    {
        "ANUS_EXPOSED",
        "BUTTOCKS_EXPOSED",
        "FEMALE_BREAST_EXPOSED",
        "FEMALE_GENITALIA_EXPOSED",
        "MALE_GENITALIA_EXPOSED",
    }
)


def installed() -> bool:
    """Tells if the detector is there."""
    return importlib.util.find_spec("nudenet") is not None


class NudityFilter:
    """Refuses images in which the detector finds one of REFUSED.

    Args:
      threshold: of the detector's confidence, in (0, 1); it tells nothing below 0.2.

    Raises:
      UserError: nudenet is not installed, or the threshold is out of range.
    """

    def __init__(self, threshold: float = 0.5):
        check_threshold(threshold)
        if not installed():
            raise UserError("the image filter needs nudenet, which is not installed; pip install 'imagen_jax[filter]'")
        import nudenet

        self._threshold = threshold
        self._detector: Any = nudenet.NudeDetector()

    def judge(self, image: Image) -> Finding | None:
        """The detector's surest finding of REFUSED, if that is sure enough."""
        # It takes colours in the order of OpenCV.
        found = self._detector.detect(np.ascontiguousarray(image[..., ::-1]))
        score = max((one["score"] for one in found if one["class"] in REFUSED), default=0.0)
        return Finding(category=CATEGORY, score=min(score, 1.0)) if score >= self._threshold else None
