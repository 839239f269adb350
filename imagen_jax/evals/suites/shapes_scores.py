"""Verdicts of the exact judge on the shapes suites: GenEval's on an image, GenEval 2's on each atom."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from imagen_jax.evals.shapes_judge import Reading, SeenObject, lies
from imagen_jax.evals.suites.shapes_prompts import POSITIONS, Atom

_RELATIONS = {words: relation for relation, words in POSITIONS.items()}


def geneval_verdict(reading: Reading, metadata: Mapping[str, Any]) -> tuple[bool, str]:
    """Judges a picture by GenEval's clauses (arXiv 2310.11513, section 3): all of include, none of exclude.

    A clause of include wants at least `count` objects of its class, so that further objects do no harm, of its color
    where it has one, and each in its position to each object of an earlier clause.

    Args:
      reading: what is in the picture; an object without a name is of no class.
      metadata: "include" and perhaps "exclude".

    Returns:
      The verdict, and what is wrong, a line a clause.
    """
    reasons: list[str] = []
    groups: list[list[SeenObject]] = []
    for clause in metadata["include"]:
        name, count = clause["class"], clause["count"]
        found = [one for one in reading.objects if one.shape == name]
        problem = f"expected {name}>={count}, found {len(found)}" if len(found) < count else ""
        if not problem and "color" in clause:
            coloured = [one for one in found if one.colour == clause["color"]]
            if len(coloured) < count:
                problem = f"expected {clause['color']} {name}>={count}, found {len(coloured)}"
            found = coloured
        if not problem and "position" in clause:
            words, target = clause["position"]
            if not groups[target]:
                problem = f"no target for {name} to be {words}"
            elif not _all_lie(found, groups[target], _RELATIONS[words]):
                problem = f"expected {name} {words} target"
        groups.append([] if problem else found)
        reasons += [problem] if problem else []
    for clause in metadata.get("exclude", ()):
        found = [one for one in reading.objects if one.shape == clause["class"]]
        if len(found) >= clause["count"]:
            reasons.append(f"expected {clause['class']}<{clause['count']}, found {len(found)}")
    return not reasons, "\n".join(reasons)


def geneval_result(path: str, reading: Reading, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A line of results.jsonl with the fields that GenEval's own evaluation writes.

    Args:
      path: of the picture.
      reading: what is in it.
      metadata: of its prompt. `details` of the line holds the seen objects in place of a detector's boxes.
    """
    correct, reason = geneval_verdict(reading, metadata)
    details: dict[str, list[dict[str, Any]]] = {}
    for one in reading.objects:
        seen = {"color": one.colour, "x": one.x, "y": one.y, "size": one.size}
        details.setdefault(one.shape or "unknown", []).append(seen)
    return {
        "filename": path,
        "tag": metadata["tag"],
        "prompt": metadata["prompt"],
        "correct": correct,
        "reason": reason,
        "metadata": json.dumps(metadata),
        "details": json.dumps(details),
    }


def atom_scores(reading: Reading, atoms: Sequence[Atom]) -> list[float]:
    """1 for each atom that the picture shows, else 0."""
    return [float(_shows(reading, atom)) for atom in atoms]


def _shows(reading: Reading, atom: Atom) -> bool:
    found = [one for one in reading.objects if one.shape == atom["shape"]]
    if atom["skill"] == "count":
        return len(found) == atom["count"]
    if atom["skill"] == "attribute":
        return bool(found) and all(one.colour == atom["colour"] for one in found)
    if atom["skill"] == "position":
        others = [one for one in reading.objects if one.shape == atom["of"]]
        return bool(found and others) and _all_lie(found, others, atom["relation"])
    return bool(found)


def _all_lie(ones: Sequence[SeenObject], others: Sequence[SeenObject], relation: str) -> bool:
    return all(lies(one, other, relation) for one in ones for other in others)
