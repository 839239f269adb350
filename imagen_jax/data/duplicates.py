"""Pictures that look alike, and examples that are to be kept out: what is compared with it must not be trained on.

The mark of a picture is its difference hash (dHash): the centre square in grey, averaged over 9 x 8 equal areas; bit
(row, column) tells if the area there is darker than its right neighbour. Pictures whose marks differ in at most 3 of 64
bits look alike: other sizes and compression turn few bits round, cropping and mirroring many. A picture with hardly any
differences, such as a drawing on a plain ground or a gradient, would look like every other; its mark is the SHA-256 of
its pixels, which are compared as a whole.
"""

import dataclasses
import hashlib
import re
from collections.abc import Iterator, Mapping, Set
from typing import Any

from PIL import Image

_ROWS, _COLUMNS = 8, 8
# Of 64 bits; with fewer of one kind, nothing tells pictures apart.
_LEAST_BITS = 8
# Two marks that differ in at most 3 bits agree in one of 4 groups of 16.
_MOST_BITS, _GROUPS = 3, 4
_WORD = re.compile(r"\w+")
_NUMBER = re.compile(r"#\d+$")


def difference_hash(square: Image.Image) -> int:
    """The 64 bits of a picture, from the highest on row by row; see the module."""
    areas = square.convert("L").resize((_COLUMNS + 1, _ROWS), Image.Resampling.BOX).tobytes()
    bits = 0
    for row in range(_ROWS):
        for column in range(_COLUMNS):
            place = row * (_COLUMNS + 1) + column
            bits = bits << 1 | (areas[place] < areas[place + 1])
    return bits


def picture_mark(square: Image.Image) -> str:
    """The bits of a picture as 16 hexadecimal digits; 64 digits of one with hardly any differences. See the module."""
    bits = difference_hash(square)
    if _LEAST_BITS <= bits.bit_count() <= _ROWS * _COLUMNS - _LEAST_BITS:
        return f"{bits:016x}"
    return hashlib.sha256(repr(square.size).encode() + square.tobytes()).hexdigest()


def caption_mark(caption: str) -> str:
    """A digest of the words of a caption, whatever their case and punctuation; empty if there are none."""
    words = " ".join(_WORD.findall(caption.casefold()))
    return hashlib.sha256(words.encode(errors="surrogatepass")).hexdigest()[:16] if words else ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Screen:
    """Comparisons of an accepted example before it is written.

    Args:
      dedupe: drop a picture that looks like an earlier one of the corpus.
      captions: marks of captions to drop.
      pictures: marks of pictures to drop.
    """

    dedupe: bool = False
    captions: Set[str] = frozenset()
    pictures: Set[str] = frozenset()

    def settings(self) -> Mapping[str, Any]:
        """The identity of this screen, JSON-able; empty if it drops nothing."""
        found: dict[str, Any] = {"dedupe": True} if self.dedupe else {}
        if self.captions or self.pictures:
            marks = repr((sorted(self.captions), sorted(self.pictures))).encode()
            found["excluded"] = {
                "captions": len(self.captions),
                "pictures": len(self.pictures),
                "digest": hashlib.sha256(marks).hexdigest(),
            }
        return found


class _Pictures:
    """Names of pictures, found by marks that are alike."""

    def __init__(self) -> None:
        self._whole: dict[str, str] = {}
        self._groups: dict[tuple[int, int], list[tuple[int, int]]] = {}
        self._names: list[str] = []

    def _keys(self, bits: int) -> Iterator[tuple[int, int]]:
        for group in range(_GROUPS):
            yield group, bits >> 16 * group & 0xFFFF

    def find(self, mark: str) -> str | None:
        """The name of the picture that was added first of those that look alike."""
        if mark in self._whole or len(mark) != 16:
            return self._whole.get(mark)
        bits = int(mark, 16)
        alike = [
            number
            for key in self._keys(bits)
            for number, other in self._groups.get(key, ())
            if (bits ^ other).bit_count() <= _MOST_BITS
        ]
        return self._names[min(alike)] if alike else None

    def add(self, mark: str, name: str) -> None:
        """Adds a picture that none looks like so far."""
        self._whole[mark] = name
        if len(mark) == 16:
            bits = int(mark, 16)
            for key in self._keys(bits):
                self._groups.setdefault(key, []).append((len(self._names), bits))
            self._names.append(name)


class Screened:
    """A screen in use: it remembers the pictures that it let pass.

    Args:
      screen: what is compared; None lets all pass.
    """

    def __init__(self, screen: Screen | None):
        self._screen = screen or Screen()
        self._passed, self._excluded = _Pictures(), _Pictures()
        for mark in sorted(self._screen.pictures):
            self._excluded.add(mark, mark)

    def problem(self, key: str, picture: str, caption: str) -> tuple[str, str] | None:
        """Why an example is dropped, and by what; None if it passes.

        Args:
          key: of the example; KEY#1, KEY#2, … are further captions of the picture of KEY.
          picture, caption: their marks.
        """
        if caption in self._screen.captions:
            return "its caption is among those excluded", "excluded caption"
        if self._excluded.find(picture) is not None:
            return "its picture looks like one of those excluded", "excluded picture"
        if self._screen.dedupe:
            own = _NUMBER.sub("", key)
            first = self._passed.find(picture)
            if first is None:
                self._passed.add(picture, own)
            elif first != own:
                return f"looks like {first}", "near-duplicate"
        return None


def marks_of(pairs: Iterator[tuple[str, str]]) -> Screen:
    """The screen that keeps out pairs of caption mark and picture mark; an empty one stands for none."""
    captions, pictures = set(), set()
    for caption, picture in pairs:
        captions.add(caption)
        pictures.add(picture)
    return Screen(captions=frozenset(captions - {""}), pictures=frozenset(pictures - {""}))
