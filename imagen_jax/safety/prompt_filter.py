"""Prompts refused by the words in them.

A prompt and the entries of a list are brought into one form, then compared word by word. The form of a text:

    compatibility decomposition (NFKD) → case folding → NFKD, so that 𝗡𝘂𝗱𝗲, ＮＵＤＥ and nude are one word;
    without accents, invisible characters (zero-width ones, soft hyphens, variation selectors) and control characters;
    a word is a run of letters, marks and digits; all else only separates words.

An entry of several words matches them in a row. A word inside a longer one does not match.
"""

import dataclasses
import re
import unicodedata
from collections.abc import Mapping, Sequence

from imagen_jax.errors import UserError
from imagen_jax.files import StrPath, as_path, shipped_file

DEFAULT_LIST = "data/safety/refused_words.txt"
_CATEGORY = re.compile(r"\[([a-z0-9_]{1,40})\]")
# Canonical combining classes from here on are accents above and below; lower ones are marks that make up the letters of
# scripts such as Devanagari.
_ACCENTS = 200
_SELECTORS = range(0xFE00, 0xFE10)
_GRAPHEME_JOINER = 0x034F


@dataclasses.dataclass(frozen=True, kw_only=True)
class Match:
    """An entry that a prompt holds.

    Args:
      category: of the list.
      entry: as the list has it.
    """

    category: str
    entry: str


class PromptFilter:
    """Refuses prompts that hold an entry of a list.

    Args:
      entries: words and phrases by category.

    Raises:
      UserError: there is no entry, or one has no word.
    """

    def __init__(self, entries: Mapping[str, Sequence[str]]):
        self._entries: dict[tuple[str, ...], Match] = {}
        for category, ones in entries.items():
            for one in ones:
                found = words(one)
                if not found:
                    raise UserError(f"entry {one!r} of category {category} has no letter or digit; take it out")
                # The category that comes first has it.
                self._entries.setdefault(found, Match(category=category, entry=one))
        if not self._entries:
            raise UserError("a prompt filter needs at least one word; to refuse nothing, use no filter")
        self._lengths = sorted({len(one) for one in self._entries})

    @classmethod
    def load(cls, path: StrPath = DEFAULT_LIST) -> "PromptFilter":
        """Reads a list: UTF-8 text, [category] before its entries, one entry a line, # before a comment.

        Args:
          path: the file; the default is the list that comes with this package.

        Raises:
          UserError: it cannot be read, or is no such list; names the line.
        """
        return cls(read_categories(path))

    def match(self, prompt: str) -> Match | None:
        """The first entry that a prompt holds; None: it holds none."""
        said = words(prompt)
        for start in range(len(said)):
            for length in self._lengths:
                found = self._entries.get(said[start : start + length])
                if found is not None:
                    return found
        return None


def read_categories(path: StrPath) -> dict[str, list[str]]:
    """Entries by category, from a file of the form that `PromptFilter.load` tells.

    Raises:
      UserError: it cannot be read, or is no such list; names the line.
    """
    entries: dict[str, list[str]] = {}
    category = None
    for number, line in enumerate(_lines(path), 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        if text.startswith("["):
            found = _CATEGORY.fullmatch(text)
            if found is None:
                raise UserError(f"{path} line {number} ({text}) is no category; write one as [some_name]")
            category = found[1]
        elif category is None:
            raise UserError(f"{path} line {number} ({text}) stands before any category; write [some_name] above it")
        elif not words(text):
            raise UserError(f"{path} line {number} ({text}) has no letter or digit; take it out")
        else:
            entries.setdefault(category, []).append(text)
    if not entries:
        raise UserError(f"{path} holds no entry; write [some_name] and entries below it, or switch the filter off")
    return entries


def words(text: str) -> tuple[str, ...]:
    """The words of a text in the form that is compared (see the module)."""
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    return tuple("".join(map(_kept, folded)).split())


def _kept(one: str) -> str:
    """A character of a word; a space for what separates words; nothing for what nobody sees."""
    if one.isspace():
        return " "
    kind = unicodedata.category(one)
    invisible = kind in ("Cf", "Cc", "Me") or ord(one) in _SELECTORS or ord(one) == _GRAPHEME_JOINER
    if invisible or unicodedata.combining(one) >= _ACCENTS:
        return ""
    return one if kind[0] in "LMN" else " "


def _lines(path: StrPath) -> list[str]:
    found = shipped_file(str(path))
    try:
        return as_path(found).read_bytes().decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a list of words in UTF-8 ({error})") from error
