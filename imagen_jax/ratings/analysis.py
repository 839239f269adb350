"""Answers of raters → preferences by question and category with intervals, and the raters' agreement.

A preference is the share of votes. Its interval draws prompts again, with all their votes: votes on one prompt are not
independent of each other. A prompt's majority is the answer that most raters gave, and none where two lead alike.
"""

import collections
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from imagen_jax.errors import UserError
from imagen_jax.evals.metrics.bootstrap import bootstrap_interval
from imagen_jax.files import StrPath, as_path, write_json, write_text
from imagen_jax.ratings.agreement import krippendorff_alpha
from imagen_jax.ratings.log import Rating, RatingChecks, read_lines
from imagen_jax.ratings.results_page import results_page
from imagen_jax.ratings.study import KEY_FILE, LEFT, RATINGS_FILE, SAME, SCORES, Study, checked_json, read_study

RESULTS, RESULTS_PAGE = "ratings.json", "ratings.html"
ALL = "all"
NUM_RESAMPLES = 2000
# Names of shares in ratings.json → votes.
_CHOICES = {"first": 0, "indifferent": -1, "second": 1}


def analyse_study(folder: StrPath, files: Sequence[StrPath] = ()) -> str:
    """Writes ratings.json and ratings.html into the folder of a study.

    Args:
      folder: of the study.
      files: further ratings, as raters download them.

    Returns:
      The path of the page.

    Raises:
      UserError: there is no study, no rating, or a rating is damaged or of another study.
    """
    study, place = read_study(folder), as_path(folder)
    wanted = {"study": str, "names": [str], "items": {...: {"category": str, "prompt": str, "models": [int]}}}
    key = checked_json(place / KEY_FILE, wanted)
    if key["study"] != study.id or {item.name for item in study.items} - set(key["items"]):
        raise UserError(f"{place / KEY_FILE} is of another study; put the two files of one study together")
    own = [place / RATINGS_FILE] if (place / RATINGS_FILE).exists() else []
    ratings, repeated = _gather(study, [*own, *files])
    if not ratings:
        raise UserError(f"{os.fspath(folder)} has no ratings yet; name those that raters sent with --ratings")
    results = analyse(key, ratings)
    results["num_repeated"] = repeated
    write_json(place / RESULTS, results, end="\n")
    write_text(place / RESULTS_PAGE, results_page(results))
    return os.fspath(place / RESULTS_PAGE)


def _gather(study: Study, files: Sequence[StrPath]) -> tuple[list[Rating], int]:
    """Ratings of all files, and how many second answers of a rater were left out."""
    checks, repeated = RatingChecks(study), 0
    found: dict[tuple[str, str, str], Rating] = {}
    for path in files:
        try:
            content = as_path(path).read_bytes()
        except OSError as error:
            raise UserError(f"--ratings={os.fspath(path)} cannot be read ({error}); name a file of ratings") from error
        # A server that is at work, or was killed, may leave half a line.
        for rating in read_lines(checks, path, content[: content.rfind(b"\n") + 1]):
            before = found.setdefault(rating.place, rating)
            repeated += before != rating
    return list(found.values()), repeated


def analyse(key: Mapping[str, Any], ratings: Sequence[Rating]) -> dict[str, Any]:
    """Figures of a study.

    Args:
      key: what key.json holds.
      ratings: one an answer.
    """
    votes: dict[str, dict[str, list[int]]] = {}
    scored: set[str] = set()
    for rating in ratings:
        models = key["items"][rating.item]["models"]
        question = rating.question
        if rating.left is None:  # Generated and real images have a table each.
            question = f"{question}, {key['names'][models[0]]}"
            scored.add(question)
        votes.setdefault(question, {}).setdefault(rating.item, []).append(_vote(rating, models))
    categories = {name: one["category"] for name, one in key["items"].items()}
    raters = collections.Counter(rating.rater for rating in ratings)
    lefts = [rating.answer == LEFT for rating in ratings if rating.left is not None and rating.answer != SAME]
    return {
        "study": key["study"],
        "models": list(key["names"]),
        "real": bool(key.get("real")),
        "num_ratings": len(ratings),
        "num_raters": len(raters),
        "left_share": float(np.mean(lefts)) if lefts else None,
        "raters": dict(sorted(raters.items())),
        "questions": {name: _question(votes[name], categories, name in scored) for name in sorted(votes)},
    }


def _vote(rating: Rating, models: Sequence[int]) -> int:
    """The number of the model preferred, -1 for neither; the score of a yes, somewhat or no."""
    if rating.left is None:
        return SCORES[rating.answer]
    if rating.answer == SAME:
        return -1
    return models[rating.left if rating.answer == LEFT else 1 - rating.left]


def _question(votes: Mapping[str, Sequence[int]], categories: Mapping[str, str], scored: bool) -> dict[str, Any]:
    """Figures of one question, over all prompts and by category."""
    groups: dict[str, list[Sequence[int]]] = {ALL: list(votes.values())}
    for name in sorted(votes, key=lambda one: categories[one]):
        if categories[name]:
            groups.setdefault(categories[name], []).append(votes[name])
    figures = _scores if scored else _preferences
    return {
        "kind": "score" if scored else "preference",
        "alpha": krippendorff_alpha(groups[ALL], "interval" if scored else "nominal"),
        "categories": {name: figures(of_items) for name, of_items in groups.items()},
    }


def _preferences(votes: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Shares of votes for each model and for neither, and majorities of prompts."""
    majorities = collections.Counter(_majority(one) for one in votes)
    found: dict[str, Any] = {"num_prompts": len(votes), "num_votes": sum(map(len, votes))}
    for name, model in _CHOICES.items():
        # Votes of each prompt for this one, and votes of the prompt: their sums are drawn again together.
        own = [sum(vote == model for vote in one) for one in votes]
        found[name] = _interval(own, [len(one) for one in votes])
        found[name]["majorities"] = majorities[model]
    found["undecided"] = majorities[None]
    return found


def _scores(votes: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Mean score, 0 to 100, of the images."""
    sums, numbers = [sum(one) for one in votes], [len(one) for one in votes]
    return {"num_prompts": len(votes), "num_votes": sum(numbers), "score": _interval(sums, numbers)}


def _interval(sums: Sequence[int], numbers: Sequence[int]) -> dict[str, Any]:
    """A mean over all votes, and its 95 % interval."""

    def mean(above: np.ndarray, below: np.ndarray) -> float:
        return float(above.sum() / below.sum())

    return bootstrap_interval(mean, np.array(sums), np.array(numbers), num_resamples=NUM_RESAMPLES)._asdict()


def _majority(votes: Sequence[int]) -> int | None:
    """The answer that most raters gave; None where two lead alike."""
    leaders = collections.Counter(votes).most_common(2)
    return None if len(leaders) == 2 and leaders[0][1] == leaders[1][1] else leaders[0][0]
