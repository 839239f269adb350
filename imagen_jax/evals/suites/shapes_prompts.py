"""The shapes corpus as prompt suites: GenEval's six tasks, and GenEval 2's prompts of 1 to 10 atoms.

A class is a shape, a color one of the corpus's colours.

GenEval's tasks are worded as captions of the corpus, which name a colour always and a relation between any two objects;
a task asks only for what its metadata states, so the colour of a "single_object" is not judged.

An atom is a shape, a colour, a count above one, or a relation. The corpus's captions hold 2 (a colour and a shape), 3
(with a count), 5 (two objects and their relation) or 6 of these (three objects); prompts of 1, 4 and 7 to 10 put the
same words together as no caption does. Shapes of one prompt differ, so each atom speaks of an object by its shape, and
no prompt holds a pair of HELDOUT.
"""

import json
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from imagen_jax.data.shapes_captions import NUMBERS, caption, plural, with_article
from imagen_jax.data.shapes_scene import COLOURS, HELDOUT, MAX_COUNT, RELATIONS, SHAPES, Scene, sample_scene
from imagen_jax.evals.suites.rows import SuiteRow

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
MAX_ATOMS = 10
# GenEval's words of the corpus's relations, and those of a caption.
POSITIONS: Mapping[str, str] = {"left": "left of", "right": "right of", "above": "above", "below": "below"}
_PHRASES: Mapping[str, str] = {"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"}
_KINDS = {"single_object": "single", "colors": "single", "counting": "count"}
# Kinds of object in a prompt of so many atoms.
_OBJECTS = {1: 1, 2: 1, 3: 1, 4: 2, 5: 2, 6: 3, 7: 3, 8: 4, 9: 4, 10: 4}
# Draws without a new prompt, after which there are no more: of some kinds there are only a few.
_MISSES = 200

Atom = dict[str, Any]


def geneval_rows(seed: int, num_prompts: int) -> list[SuiteRow]:
    """Rows of GenEval's tasks.

    Args:
      seed: fixes the prompts.
      num_prompts: of each task, all different; fewer where there are not so many.
    """
    rows = []
    for tag in TASKS:
        rows += _distinct(seed, tag, num_prompts, lambda rng, tag=tag: _geneval_fields(tag, rng))  # type: ignore[misc]
    return rows


def atom_rows(seed: int, num_prompts: int) -> list[SuiteRow]:
    """Rows of GenEval 2's kind, whose field "atoms" holds for the exact judge what "vqa_list" asks in words.

    Args:
      seed: fixes the prompts.
      num_prompts: of each number of atoms, all different; fewer where there are not so many.
    """
    rows = []
    for count in range(1, MAX_ATOMS + 1):
        rows += _distinct(seed, str(count), num_prompts, lambda rng, count=count: _atom_fields(count, rng))  # type: ignore[misc]
    return rows


def _distinct(
    seed: int, category: str, number: int, make: Callable[[np.random.Generator], dict[str, Any]]
) -> list[SuiteRow]:
    """The first rows of different content that `make` draws."""
    found: dict[str, SuiteRow] = {}
    index = misses = 0
    while len(found) < number and misses < _MISSES:
        fields = make(np.random.default_rng((seed, zlib.crc32(f"suite/{category}".encode()), index)))
        prompt, where = fields["prompt"], f"{category} {index}"
        misses = misses + 1 if prompt in found else 0
        row = SuiteRow(prompt=prompt, category=category, where=where, fields=fields, line=json.dumps(fields))
        found.setdefault(prompt, row)
        index += 1
    return list(found.values())


def _scene(tag: str, rng: np.random.Generator) -> Scene:
    """A scene whose objects differ in what the task tells them apart by."""
    while True:
        scene = sample_scene(rng, _KINDS.get(tag, "two"))
        colours, shapes = ({getattr(one, name) for one in scene.objects} for name in ("colour", "shape"))
        if len(shapes) == len(scene.objects) and (tag != "color_attr" or len(colours) == len(scene.objects)):
            return scene


def _geneval_fields(tag: str, rng: np.random.Generator) -> dict[str, Any]:
    """One line of metadata in GenEval's form."""
    scene = _scene(tag, rng)
    clauses: list[dict[str, Any]] = [{"class": one.shape, "count": scene.count if tag == "counting" else 1}
                                     for one in scene.objects]  # fmt: skip
    fields: dict[str, Any] = {"tag": tag, "include": clauses}
    if tag in ("colors", "color_attr"):
        for clause, one in zip(clauses, scene.objects, strict=True):
            clause["color"] = one.colour
    if tag == "position":
        # The object that the other's place is told by comes first.
        clauses.reverse()
        clauses[1]["position"] = [POSITIONS[scene.relation or ""], 0]
    if tag == "counting":
        fields["exclude"] = [{"class": scene.objects[0].shape, "count": scene.count + 1}]
    return {**fields, "prompt": caption(scene, rng)}


def _pairs(rng: np.random.Generator, number: int) -> list[tuple[str, str]]:
    """Pairs of colour and shape, all colours and all shapes different."""
    while True:
        shapes = [str(one) for one in rng.permutation(SHAPES)[:number]]
        colours = [str(one) for one in rng.permutation(COLOURS)[:number]]
        pairs = list(zip(colours, shapes, strict=True))
        if not HELDOUT.intersection(pairs):
            return pairs


def _joined(parts: list[str], before_last: str = " and ") -> str:
    """The parts as a list in words."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + before_last + parts[-1]


def _atom_fields(count: int, rng: np.random.Generator) -> dict[str, Any]:
    """One line in GenEval 2's form of a prompt with so many atoms."""
    pairs = _pairs(rng, _OBJECTS[count])
    # Both along one axis: then four objects as large as the corpus draws them have room.
    axis = RELATIONS[:2] if rng.random() < 0.5 else RELATIONS[2:]
    relations = [axis[int(rng.integers(2))] for _ in range(2)]
    words = [with_article(f"{colour} {shape}") for colour, shape in pairs]
    atoms = [atom for colour, shape in pairs for atom in _object_atoms(colour, shape)]

    def related(first: int, relation: str) -> str:
        atoms.append({"skill": "position", "shape": pairs[first][1], "relation": relation, "of": pairs[first + 1][1]})
        return f"{words[first]} {_PHRASES[relation]} {words[first + 1]}"

    if count == 1:
        prompt, atoms = with_article(pairs[0][1]), atoms[:1]
    elif count == 3:
        (colour, shape), several = pairs[0], int(rng.integers(2, MAX_COUNT + 1))
        prompt = f"{NUMBERS[several]} {colour} {plural(shape)}"
        atoms.append({"skill": "count", "shape": shape, "count": several})
    elif count == 10:
        prompt = _joined([related(0, relations[0]), related(2, relations[1])], ", and ")
    elif count in (5, 7, 9):
        prompt = _joined([related(0, relations[0]), *words[2:]], ", and " if count == 7 else " and ")
    else:
        prompt = _joined(words)
    questions = [_question(atom) for atom in atoms]
    skills = [atom["skill"] for atom in atoms]
    return {"prompt": prompt, "atom_count": count, "vqa_list": questions, "skills": skills, "atoms": atoms}


def _object_atoms(colour: str, shape: str) -> list[Atom]:
    return [{"skill": "object", "shape": shape}, {"skill": "attribute", "shape": shape, "colour": colour}]


def _question(atom: Atom) -> list[str]:
    """An atom as a question with its answer, in words like those of GenEval 2."""
    shape = plural(atom["shape"])
    if atom["skill"] == "object":
        return [f"Are there any {shape} in the image?", "Yes"]
    if atom["skill"] == "attribute":
        return [f"Are the {shape} {atom['colour']}?", "Yes"]
    if atom["skill"] == "count":
        return [f"How many {shape} are in the image?", NUMBERS[atom["count"]]]
    return [f"Are the {shape} {_PHRASES[atom['relation']]} the {plural(atom['of'])}?", "Yes"]
