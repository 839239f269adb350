"""Facts that come with a picture, under one name each whatever the corpus calls them."""

import math
import re
from collections.abc import Mapping
from typing import Any

from imagen_jax.files import is_unicode

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
# No more than that: 007 and 1_000 are names.
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,17})(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?")


def kept_facts(found: Mapping[str, Any]) -> dict[str, str | int | float | bool]:
    """The numbers, texts and truth values among `found`, under our names; others are left out.

    A name in `ALIASES` wins over ours where both are there: img2dataset writes the size of the original picture beside
    that of its own smaller copy. What is empty, a text beyond 2 000 characters, a number that is not finite or beyond
    64 bits is left out.

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


def captions_of(value: Any) -> list[tuple[str, dict[str, float | int]]]:
    """The captions that a value states, each with its weight if it states one: {"weight": …}, or {}.

    Args:
      value: a text, or a list of texts and objects {"caption": text, "weight": number}. A text that recurs counts once.

    Raises:
      ValueError: it is none of these; the message says what it is.
    """
    if not isinstance(value, list):
        return [_caption(value)]
    found: dict[str, dict[str, float | int]] = {}
    for one in value:
        caption, weight = _caption(one)
        found.setdefault(caption, weight)
    if not found:
        raise ValueError("an empty list of captions")
    return list(found.items())


def _caption(value: Any) -> tuple[str, dict[str, float | int]]:
    if isinstance(value, str):
        return value, {}
    if not isinstance(value, Mapping) or not isinstance(value.get("caption"), str):
        raise ValueError(f"caption is not text ({value!r:.60})")
    weight = value.get("weight")
    if weight is None:
        return value["caption"], {}
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
        raise ValueError(f"weight of a caption is no number above 0 ({weight!r:.60})")
    return value["caption"], {"weight": weight}


def numbers_in(texts: Mapping[str, str]) -> dict[str, str | float | int]:
    """The same facts, those numbers that were written as text."""
    return {name: _number(text) for name, text in texts.items()}


def _is_fact(value: Any) -> bool:
    if isinstance(value, str):
        return 0 < len(value) <= _LONGEST and is_unicode(value)
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and abs(value) < 1 << 63


def _number(text: str) -> str | float | int:
    found = _NUMBER.fullmatch(text)
    if found is None:
        return text
    return float(text) if found[1] or found[2] else int(text)
