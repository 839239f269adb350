"""Ratings as lines of JSON: checked against their study, appended so that what was acknowledged stays."""

import json
import os
import threading
from collections.abc import Iterable
from types import TracebackType
from typing import Any, NamedTuple

from imagen_jax.errors import UserError
from imagen_jax.files import StrPath, as_path
from imagen_jax.ratings.study import QUESTIONS, Study, rater_name, session

_FIELDS = ("study", "rater", "item", "question", "answer", "left")


class Rating(NamedTuple):
    """One answer; `left` is the set that stood on the left, None where there was one."""

    rater: str
    item: str
    question: str
    answer: str
    left: int | None

    @property
    def place(self) -> tuple[str, str, str]:
        """Rater, item and question: one answer to these counts."""
        return self.rater, self.item, self.question


class RepeatedError(UserError):
    """Another answer to what the same rater has answered."""


class RatingChecks:
    """The checks of a study's ratings."""

    def __init__(self, study: Study):
        self._study = study
        self._items = {item.name: item for item in study.items}
        self._lefts: dict[str, dict[str, int | None]] = {}

    def read(self, text: str | bytes) -> Rating:
        """The rating of a line of JSON.

        Raises:
          UserError: it is no rating of this study, or the sides are not this rater's.
        """
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError("a rating must be a JSON object in UTF-8; send one as the page does") from error
        if not isinstance(found, dict) or sorted(found) != sorted(_FIELDS):
            raise UserError(f"a rating must be an object of {', '.join(_FIELDS)} and nothing else; send one like that")
        if found["study"] != self._study.id:
            raise UserError(
                f"the rating is of study {_shown(found['study'])}, not {self._study.id}; load the page again"
            )
        rater = rater_name(found["rater"])
        if rater != found["rater"]:
            raise UserError("the rater's name has blanks around it, or is not in Unicode's form NFC; send it so")
        item = self._items.get(found["item"]) if isinstance(found["item"], str) else None
        if item is None:
            raise UserError(f"the study has no pair {_shown(found['item'])}; load the page again")
        question = found["question"]
        if question not in item.questions:
            raise UserError(f"the question {_shown(question)} is not asked of {item.name}: {', '.join(item.questions)}")
        answers = [value for value, _ in QUESTIONS[question].answers]
        if found["answer"] not in answers:
            raise UserError(f"the answer {_shown(found['answer'])} must be one of {', '.join(answers)}")
        left = self._lefts_of(rater)[item.name]
        if found["left"] is not left and (type(found["left"]) is not int or found["left"] != left):
            raise UserError(
                f"left ({_shown(found['left'])}) must be {left} for this rater and pair; load the page again"
            )
        return Rating(rater, item.name, question, found["answer"], left)

    def _lefts_of(self, rater: str) -> dict[str, int | None]:
        lefts = self._lefts.get(rater)
        if lefts is None:
            lefts = {turn.item.name: turn.left for turn in session(self._study, rater)}
            self._lefts[rater] = lefts
        return lefts

    def write(self, rating: Rating) -> bytes:
        """The line of a rating."""
        return json.dumps({"study": self._study.id, **rating._asdict()}).encode() + b"\n"


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


class RatingsLog:
    """The ratings of a served study, in memory and in a file of this machine that only grows.

    A half last line, left by a kill or a power cut, was never acknowledged: it is cut off.

    Args:
      study: whose ratings they are.
      path: the file; made where it is missing.

    Attributes:
      repaired: bytes of the half line.

    Raises:
      UserError: a whole line is no rating of the study.
    """

    def __init__(self, study: Study, path: StrPath):
        self._checks = RatingChecks(study)
        self._ratings: dict[str, dict[tuple[str, str, str], Rating]] = {}
        self._lock = threading.Lock()
        content = as_path(path).read_bytes() if os.path.exists(path) else b""
        whole = content[: content.rfind(b"\n") + 1]
        for rating in read_lines(self._checks, path, whole):
            self._of(rating.rater).setdefault(rating.place, rating)
        self.repaired = len(content) - len(whole)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._size = len(whole)
        if self.repaired:
            os.ftruncate(self._file, self._size)
        os.fsync(self._file)

    def __enter__(self) -> "RatingsLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._lock:
            os.close(self._file)

    def append(self, text: bytes) -> bool:
        """Adds a rating; the disk holds it before this returns.

        Returns:
          False where the very same rating is there already.

        Raises:
          UserError: it is no rating of the study.
          RepeatedError: the rater has answered this otherwise.
          OSError: it cannot be written; nothing of it stays.
        """
        rating = self._checks.read(text)
        with self._lock:
            own = self._of(rating.rater)
            before = own.get(rating.place)
            if before is not None:
                if before != rating:
                    raise RepeatedError(
                        f"{rating.rater} has answered {rating.question} of {rating.item} with {before.answer}; "
                        "the first answer stays"
                    )
                return False
            self._write(self._checks.write(rating))
            own[rating.place] = rating
        return True

    def of_rater(self, rater: str) -> list[Rating]:
        """All answers of a rater."""
        with self._lock:
            return list(self._ratings.get(rater, {}).values())

    def __len__(self) -> int:
        with self._lock:
            return sum(len(own) for own in self._ratings.values())

    def _of(self, rater: str) -> dict[tuple[str, str, str], Rating]:
        return self._ratings.setdefault(rater, {})

    def _write(self, line: bytes) -> None:
        try:
            if os.write(self._file, line) != len(line):
                raise OSError("the disk is full")
            os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, self._size)
            raise
        self._size += len(line)


def read_lines(checks: RatingChecks, path: StrPath, content: bytes) -> Iterable[Rating]:
    """The ratings of a file's content.

    Raises:
      UserError: a line is none; it is named.
    """
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            yield checks.read(line)
        except UserError as error:
            raise UserError(f"{os.fspath(path)}, line {number}: {error}") from error
