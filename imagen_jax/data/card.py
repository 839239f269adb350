"""A corpus's data card, measured: what is in it, where that came from, what was left out.

It says nothing of when or where it was made, so equal corpora have equal cards.
"""

import bisect
import dataclasses
import io
import itertools
import json
import statistics
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from imagen_jax.data import records
from imagen_jax.data.caption_facts import is_boilerplate
from imagen_jax.files import StrPath
from imagen_jax.image_files import ImageError, decode_image
from imagen_jax.versions import code_version

CARD_FACTS, CARD_PAGE = "card.json", "card.html"
CARD_FORMAT = 1
# Of larger corpora, so many examples at equal distances are read.
_MOST_EXAMPLES, _MOST_PICTURES = 100_000, 64
_AT_ONCE = 256
_THUMBNAIL_SIDE = 96
# Facts whose values are counted, and those that are measured.
_COUNTED = ("licence", "consent", "language", "nsfw")
_MEASURED = ("similarity", "aesthetic", "pwatermark", "punsafe")
_MOST_VALUES = 20
_CAPTION_BINS, _SIDE_BINS = (20, 40, 80, 160, 320, 640), (64, 128, 256, 512, 1024, 2048)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Thumbnail:
    """One picture of the contact sheet.

    Args:
      key, caption: of the example.
      jpeg: the picture, at most 96 pixels wide.
    """

    key: str
    caption: str
    jpeg: bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """A data card.

    Args:
      facts: what was measured, JSON-able.
      thumbnails: up to 64 pictures at equal distances.
    """

    facts: Mapping[str, Any]
    thumbnails: Sequence[Thumbnail]


def describe(directory: StrPath) -> Card:
    """Reads a corpus and measures what its card says.

    Raises:
      UserError: there is no whole corpus, or a record of it cannot be read.
    """
    corpus = records.Corpus(directory)
    manifest = corpus.manifest
    tally = _Tally()
    for record in _read(corpus, _MOST_EXAMPLES):
        tally.add(record)
    settings = manifest.get("settings", {})
    facts = {
        "card_format": CARD_FORMAT,
        "version": code_version(),
        "name": manifest["name"],
        "image_size": corpus.image_size,
        "num_examples": {split: corpus.num_examples(split) for split in corpus.splits},
        "num_rejected": manifest["num_rejected"],
        "num_repaired": manifest.get("num_repaired", 0),
        "num_dropped": manifest.get("num_dropped", {}),
        "source": settings.get("source", {}),
        "build": settings.get("build", {}),
        "extra": manifest.get("extra", {}),
        **tally.facts(),
    }
    thumbnails = [_thumbnail(record) for record in _read(corpus, _MOST_PICTURES)]
    return Card(facts=facts, thumbnails=[one for one in thumbnails if one is not None])


def _read(corpus: records.Corpus, most: int) -> Iterator[records.Record]:
    """At most so many records of all splits, at equal distances."""
    ends = list(itertools.accumulate(corpus.num_examples(split) for split in corpus.splits))
    count = min(most, ends[-1])
    wanted = [number * ends[-1] // count for number in range(count)]
    for place, split in enumerate(corpus.splits):
        first, last = (bisect.bisect_left(wanted, end) for end in (([0, *ends])[place], ends[place]))
        start = ([0, *ends])[place]
        for batch in range(first, last, _AT_ONCE):
            mine = [number - start for number in wanted[batch : min(batch + _AT_ONCE, last)]]
            yield from map(records.decode_record, corpus.read(split, mine))


class _Tally:
    """Counts over the records of a corpus."""

    def __init__(self) -> None:
        self._captions: list[int] = []
        self._words: list[int] = []
        self._boilerplate = 0
        self._scripts: Counter[str] = Counter()
        self._sides: Counter[str] = Counter()
        self._values: dict[str, Counter[str]] = {name: Counter() for name in _COUNTED}
        self._numbers: dict[str, list[float | int]] = {name: [] for name in _MEASURED}

    def add(self, record: records.Record) -> None:
        """Counts one record."""
        self._captions.append(len(record.caption))
        self._words.append(len(record.caption.split()))
        self._boilerplate += is_boilerplate(record.caption)
        self._scripts[script_of(record.caption)] += 1
        facts = _facts_of(record.meta)
        sides = [facts[name] for name in ("width", "height") if _is_number(facts.get(name))]
        self._sides[_bin_of(min(sides), _SIDE_BINS) if len(sides) == 2 else "not stated"] += 1
        for name, counter in self._values.items():
            value = facts.get(name)
            counter["not stated" if value is None else str(value)] += 1
        for name, numbers in self._numbers.items():
            if _is_number(facts.get(name)):
                numbers.append(facts[name])

    def facts(self) -> dict[str, Any]:
        """The counts, JSON-able."""
        lengths = Counter(_bin_of(length, _CAPTION_BINS) for length in self._captions)
        return {
            "num_described": len(self._captions),
            "caption_characters": {**_summary(self._captions), "histogram": _in_order(lengths, _CAPTION_BINS)},
            "caption_words": _summary(self._words),
            "caption_scripts": _most(self._scripts),
            "num_boilerplate": self._boilerplate,
            "shorter_sides": _in_order(self._sides, _SIDE_BINS),
            "values": {name: _most(counter) for name, counter in self._values.items()},
            "numbers": {name: _summary(numbers) for name, numbers in self._numbers.items() if numbers},
        }


def script_of(caption: str) -> str:
    """The script of most letters of a caption, such as "latin" or "cjk", by their names in Unicode; "none"."""
    names = [unicodedata.name(letter, "other").split()[0].lower() for letter in caption if letter.isalpha()]
    counts = sorted(Counter(names).items(), key=lambda item: (-item[1], item[0]))
    return counts[0][0] if counts else "none"


def _facts_of(meta: str) -> Mapping[str, Any]:
    found = json.loads(meta) if meta else {}
    return found if isinstance(found, dict) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _bins(edges: Sequence[int]) -> list[str]:
    return [f"below {edges[0]}", *(f"{a} to {b - 1}" for a, b in itertools.pairwise(edges)), f"{edges[-1]} and more"]


def _bin_of(value: float | int, edges: Sequence[int]) -> str:
    return _bins(edges)[bisect.bisect_right(edges, value)]


def _in_order(counts: Mapping[str, int], edges: Sequence[int]) -> dict[str, int]:
    return {name: counts[name] for name in (*_bins(edges), "not stated") if name in counts}


def _most(counts: Counter[str]) -> dict[str, int]:
    """The commonest values, and the number of the others."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rest = sum(count for _, count in ordered[_MOST_VALUES:])
    return dict(ordered[:_MOST_VALUES]) | ({"others": rest} if rest else {})


def _summary(numbers: Sequence[float | int]) -> dict[str, float | int]:
    return {
        "count": len(numbers),
        "least": min(numbers),
        "median": statistics.median(numbers),
        "mean": round(statistics.fmean(numbers), 6),
        "greatest": max(numbers),
    }


def _thumbnail(record: records.Record) -> Thumbnail | None:
    try:
        image = decode_image(record.image)
    except ImageError:
        return None  # Builders decode what they write; a corpus of another program may hold anything.
    image.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return Thumbnail(key=record.key.decode(errors="replace"), caption=record.caption, jpeg=buffer.getvalue())
