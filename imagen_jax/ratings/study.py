"""A rating study as plain data, and the order in which one rater sees it.

Two kinds, as in section 4 of the Imagen paper: two models on the same prompts (DrawBench: fidelity and alignment,
a side or indifferent), and a model against photographs (COCO: which looks more real; does the text describe the image:
yes, somewhat, no).

The folder of a study holds `site/`, all that raters may see, and `key.json`, which alone tells the models. Order and
sides are arithmetic of (seed, rater), the same here and in the page: FNV-1a of the words seeds the generator mulberry32
(T. Ettinger, public domain), which drives Fisher-Yates shuffles.
"""

import dataclasses
import os
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from imagen_jax.errors import UserError
from imagen_jax.files import FILE_NAME, StrPath, as_path, check_content, read_json

SITE, IMAGES, STUDY_FILE, KEY_FILE, RATINGS_FILE = "site", "images", "study.json", "key.json", "ratings.jsonl"
LEFT, SAME, RIGHT = "left", "same", "right"
SCORES = {"yes": 100, "somewhat": 50, "no": 0}
LONGEST_NAME = 60
_NAME_MARKS = " ._@-"
_REBUILD = "build the study again with imagen_jax build_study"
_T = TypeVar("_T")


class Question(NamedTuple):
    """A question and its answers, (value, label) each."""

    text: str
    answers: tuple[tuple[str, str], ...]


_SIDES = ((LEFT, "Left"), (SAME, "Indifferent"), (RIGHT, "Right"))
QUESTIONS = {
    "fidelity": Question("Which side has the higher image quality?", _SIDES),
    "alignment": Question("Which side shows better what the text says?", _SIDES),
    "photorealism": Question("Which image looks more real?", (_SIDES[0], _SIDES[2])),
    "caption": Question(
        "Does the text describe the image accurately?", (("yes", "Yes"), ("somewhat", "Somewhat"), ("no", "No"))
    ),
}


@dataclasses.dataclass(frozen=True)
class Item:
    """One screen of a study.

    Args:
      name: its name in ratings.
      part: items of part 0 come first.
      prompt: the text; None: not shown.
      sets: one or two sides, file names of images each.
      questions: names of `QUESTIONS`.
    """

    name: str
    part: int
    prompt: str | None
    sets: tuple[tuple[str, ...], ...]
    questions: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Study:
    """All that raters may know of a study.

    Args:
      id: digest of its content.
      seed: of order and sides.
      items: in any order.
    """

    id: str
    seed: int
    items: tuple[Item, ...]

    def plain(self) -> dict[str, Any]:
        """JSON of it, with the questions that it asks."""
        asked = {name for item in self.items for name in item.questions}
        questions = {name: one._asdict() for name, one in QUESTIONS.items() if name in asked}
        return {**dataclasses.asdict(self), "questions": questions}


class Turn(NamedTuple):
    """One item as a rater sees it; `left` is the number of the set on the left, None where there is one set."""

    item: Item
    left: int | None


def read_study(folder: StrPath) -> Study:
    """The study of a folder.

    Raises:
      UserError: there is none, or its study.json is damaged.
    """
    path = as_path(folder) / SITE / STUDY_FILE
    wanted = {"id": str, "seed": int, "items": [{"name": str, "part": int, "sets": [[FILE_NAME]], "questions": [str]}]}
    found = checked_json(path, wanted)
    items = []
    for one in found["items"]:
        sets, prompt = tuple(tuple(names) for names in one["sets"]), one.get("prompt")
        known = all(name in QUESTIONS for name in one["questions"])
        if len(sets) not in (1, 2) or not known or not (prompt is None or isinstance(prompt, str)):
            raise UserError(f"{path} has an item {ascii(one['name'])} of another form; {_REBUILD}")
        items.append(Item(one["name"], one["part"], prompt, sets, tuple(one["questions"])))
    return Study(found["id"], found["seed"], tuple(items))


def checked_json(path: StrPath, wanted: Any) -> Any:
    """JSON of a study's file.

    Raises:
      UserError: it is missing, damaged, or not of the form `wanted`.
    """
    try:
        found = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{os.fspath(path)} cannot be read ({error}); {_REBUILD}") from error
    check_content(path, found, wanted, _REBUILD)
    return found


def rater_name(text: object) -> str:
    """A rater's name in one spelling (NFC, without blanks around it).

    Raises:
      UserError: it is empty, too long or has other characters than letters, digits, blanks and . _ @ -
    """
    name = unicodedata.normalize("NFC", text).strip() if isinstance(text, str) else ""
    if not 0 < len(name) <= LONGEST_NAME or not all(_is_name_character(one) for one in name):
        raise UserError(
            f"the rater's name must be 1 to {LONGEST_NAME} letters, digits, blanks or . _ @ -; choose such a name"
        )
    return name


def _is_name_character(one: str) -> bool:
    return one in _NAME_MARKS or unicodedata.category(one)[0] in "LMN"


def session(study: Study, rater: str) -> list[Turn]:
    """All items of a study in the order in which a rater sees them; each set is on the left in half of the pairs."""
    order, sides = (_stream(f"{study.seed}|{rater}|{use}") for use in ("order", "sides"))
    items: list[Item] = []
    for part in sorted({item.part for item in study.items}):
        items += _shuffled([item for item in study.items if item.part == part], order)
    num_pairs = sum(len(item.sets) == 2 for item in items)
    start = sides(2)
    lefts: Iterator[int] = iter(_shuffled([(start + number) % 2 for number in range(num_pairs)], sides))
    return [Turn(item, next(lefts) if len(item.sets) == 2 else None) for item in items]


def _stream(words: str) -> Callable[[int], int]:
    """A generator: n → a whole number below n."""
    state, most = 0x811C9DC5, 0xFFFFFFFF
    for byte in words.encode():
        state = (state ^ byte) * 0x01000193 & most

    def below(n: int) -> int:
        nonlocal state
        state = (state + 0x6D2B79F5) & most
        word = (state ^ state >> 15) * (state | 1) & most
        word ^= (word + (word ^ word >> 7) * (word | 61)) & most
        return ((word ^ word >> 14) * n) >> 32

    return below


def _shuffled(values: Sequence[_T], below: Callable[[int], int]) -> list[_T]:
    out = list(values)
    for last in range(len(out) - 1, 0, -1):
        other = below(last + 1)
        out[last], out[other] = out[other], out[last]
    return out
