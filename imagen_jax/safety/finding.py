"""The reason for which an image is refused."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """A reason to refuse an image.

    Args:
      category: a word for it.
      score: how sure the filter is, in [0, 1].
    """

    category: str
    score: float
