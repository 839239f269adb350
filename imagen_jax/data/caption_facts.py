"""Measures of a caption that a filter may ask for, each a closed form of its text."""

import re
from collections import Counter
from collections.abc import Callable, Mapping

_LONGEST_GROUP = 3
# What shops, stock agencies, cameras and web servers write where a caption should stand.
_BOILERPLATE = re.compile(
    "|".join(
        (
            r"https?://|www\.|\.(?:jpe?g|png|gif|webp|html?|php)\b",
            r"\b(?:stock|royalty[- ]free) (?:photo|image|picture|vector|illustration|footage|clip ?art)",
            r"\bclick (?:here|to|on|for|image|picture)\b|\b(?:tap|hover) to (?:zoom|enlarge)\b",
            r"\bno (?:image|photo|picture) available\b|\bimage (?:not available|coming soon|may contain|result for)\b",
            r"\ball rights reserved\b|\bcopyright\b|©|\bfree shipping\b|\badd to (?:cart|wish ?list)\b|\bplaceholder\b",
            r"^(?:img|dscn?|pict?|image|photo|picture|untitled|screen ?shot|thumbnail|logo)[\s_.#-]*\d*$",
        )
    ),
    re.IGNORECASE,
)


def _length(caption: str) -> float | int:
    return len(caption)


def _words(caption: str) -> float | int:
    return len(caption.split())


def letters(caption: str) -> float:
    """The part of the characters, white space not counted, that are letters of any script; 0 of none."""
    characters = "".join(caption.split())
    return sum(map(str.isalpha, characters)) / len(characters) if characters else 0.0


def repetition(caption: str) -> float:
    """The largest part of the words that one word, or one group of two or three, makes up by recurring; 0: none does.

    "dog dog dog" and "buy now buy now" give 1, "a cat and a dog" gives 2/5.
    """
    words = caption.lower().split()
    largest = 0.0
    for size in range(1, _LONGEST_GROUP + 1):
        groups = Counter(zip(*(words[start:] for start in range(size)), strict=False))
        most = max(groups.values(), default=0)
        if most > 1:
            largest = max(largest, min(1.0, most * size / len(words)))
    return largest


def is_boilerplate(caption: str) -> bool:
    """Tells if a caption holds an address, a file name, or a phrase of shops and stock agencies."""
    return _BOILERPLATE.search(caption) is not None


CAPTION_FACTS: Mapping[str, Callable[[str], float | int | bool]] = {
    "caption_length": _length,
    "caption_words": _words,
    "caption_letters": letters,
    "caption_repetition": repetition,
    "caption_boilerplate": is_boilerplate,
}
"""Names in a filter and what they are of a caption whose white space is collapsed."""
