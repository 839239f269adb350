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
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np
from PIL import Image

_ROWS, _COLUMNS = 8, 8
# Of 64 bits; with fewer of one kind, nothing tells pictures apart.
_LEAST_BITS = 8
# Two marks that differ in at most 3 bits agree in one of 4 groups of 16.
_MOST_BITS, _GROUPS = 3, 4
_GROUP_BITS = 16
_BITS_MARK = 16
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


def groups_of(mark: str) -> list[tuple[int, int]]:
    """Number and value of each group of the mark's bits: marks that look alike share one; empty if it has no bits."""
    if len(mark) != _BITS_MARK:
        return []
    bits = int(mark, 16)
    return [(group, bits >> _GROUP_BITS * group & 2**_GROUP_BITS - 1) for group in range(_GROUPS)]


def pairs_of_group(group: int, marks: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The pairs of marks that look alike, among different ones that share a group of bits.

    Args:
      group: its number. A pair that shares several groups is given for the first of them alone.
      marks: 16 hexadecimal digits each.

    Yields:
      Two marks, the smaller one first.
    """
    bits = np.sort(np.array([int(mark, 16) for mark in marks], np.uint64))
    for place, one in enumerate(bits[:-1]):
        differing = one ^ bits[place + 1 :]
        for number in np.flatnonzero(np.bitwise_count(differing) <= _MOST_BITS):
            rest = int(differing[number])
            if all(rest >> _GROUP_BITS * earlier & 2**_GROUP_BITS - 1 for earlier in range(group)):
                yield f"{one:016x}", f"{bits[place + 1 + number]:016x}"


class _Pictures:
    """Names of pictures, found by marks that are alike."""

    def __init__(self) -> None:
        self._whole: dict[str, str] = {}
        self._groups: dict[tuple[int, int], list[tuple[int, int]]] = {}
        self._names: list[str] = []

    def find(self, mark: str) -> str | None:
        """The name of the picture that was added first of those that look alike."""
        if mark in self._whole or len(mark) != _BITS_MARK:
            return self._whole.get(mark)
        bits = int(mark, 16)
        alike = [
            number
            for key in groups_of(mark)
            for number, other in self._groups.get(key, ())
            if (bits ^ other).bit_count() <= _MOST_BITS
        ]
        return self._names[min(alike)] if alike else None

    def add(self, mark: str, name: str) -> None:
        """Adds a picture that none looks like so far."""
        self._whole[mark] = name
        if len(mark) == _BITS_MARK:
            bits = int(mark, 16)
            for key in groups_of(mark):
                self._groups.setdefault(key, []).append((len(self._names), bits))
            self._names.append(name)


class _PicturesOfPairs:
    """The same where it is known which marks are alike: of all other pictures nothing is remembered.

    Args:
      alike: of each mark that recurs or that another one looks like, those others.
    """

    def __init__(self, alike: Mapping[str, Sequence[str]]):
        self._alike = alike
        self._first: dict[str, tuple[int, str]] = {}

    def find(self, mark: str) -> str | None:
        """The name of the picture that was added first of those that look alike."""
        if mark not in self._alike:
            return None
        return min((self._first[one] for one in (mark, *self._alike[mark]) if one in self._first), default=(0, None))[1]

    def add(self, mark: str, name: str) -> None:
        """Adds a picture that none looks like so far."""
        if mark in self._alike:
            self._first[mark] = len(self._first), name


class Screened:
    """A screen in use: it remembers the pictures that it let pass.

    Args:
      screen: what is compared; None lets all pass.
      alike: of each picture mark of the source that recurs or that another one looks like, those others, so that
        memory goes with their number alone; None finds them by comparing.
    """

    def __init__(self, screen: Screen | None, alike: Mapping[str, Sequence[str]] | None = None):
        self._screen = screen or Screen()
        self._passed = _Pictures() if alike is None else _PicturesOfPairs(alike)
        self._excluded = _Pictures()
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
