"""Facts that come with a picture, under one name each whatever the corpus calls them."""

import math
from collections.abc import Mapping
from typing import Any

# LAION-400M and 5B, COYO, DataComp, img2dataset: their names, in lower case, and ours.
ALIASES = {
    "original_width": "width",
    "original_height": "height",
    "clip_similarity": "similarity",
    "clip_similarity_vitb32": "similarity",
    "clip_b32_similarity_score": "similarity",
    "aesthetic_score": "aesthetic",
    "aesthetic_score_laion_v2": "aesthetic",
    "watermark": "pwatermark",
    "watermark_score": "pwatermark",
    "lang": "language",
    "license": "licence",
}
# The caption is kept by itself, and the rest tells of the download and not of the picture.
_LEFT_OUT = frozenset(("caption", "captions", "key", "status", "error_message", "exif"))
_LONGEST = 2000


def kept_facts(found: Mapping[str, Any]) -> dict[str, str | int | float | bool]:
    """The numbers, texts and truth values among `found`, under our names; others are left out.

    A name in `ALIASES` wins over ours where both are there: img2dataset writes the size of the original picture beside
    that of its own smaller copy. What is empty, no finite number or a text beyond 2 000 characters is left out.

    Args:
      found: facts by name, of any case.
    """
    facts: dict[str, str | int | float | bool] = {}
    named: set[str] = set()
    for name, value in found.items():
        lower = name.lower()
        ours = ALIASES.get(lower, lower)
        if lower in _LEFT_OUT or ours in named or not _is_fact(value):
            continue
        if lower in ALIASES:
            named.add(ours)
        facts[ours] = value
    return dict(sorted(facts.items()))


def numbers_in(texts: Mapping[str, str]) -> dict[str, str | float | int]:
    """The same facts, those numbers that were written as text."""
    return {name: _number(text) for name, text in texts.items()}


def _is_fact(value: Any) -> bool:
    if isinstance(value, str):
        return 0 < len(value) <= _LONGEST and _is_unicode(value)
    return isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value))


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _number(text: str) -> str | float | int:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
