"""Pictures of suites' prompts, drawn by the corpus's own rules from what the judge is asked, not from the words."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from imagen_jax.data.shapes_draw import Placed, background, paint, to_uint8
from imagen_jax.data.shapes_scene import COLOURS, RELATIONS, SHAPES, Object
from imagen_jax.evals.suites.shapes_prompts import POSITIONS
from imagen_jax.typing import UInt8

# Corners of a square of objects, (x, y), as groups of the corpus stand.
_CORNERS = ((-1, -1), (1, -1), (-1, 1), (1, 1))
_OFFSET, _RADIUS = 14.6, 11.0
_STEPS = dict(zip(RELATIONS, ((-1, 0), (1, 0), (0, -1), (0, 1)), strict=True))
Wanted = list[tuple[str, str]]
# First object, relation, second object, by their numbers.
Related = list[tuple[int, str, int]]


def picture(objects: Wanted, related: Related, seed: int = 0) -> UInt8[np.ndarray, "64 64 3"]:
    """Draws up to four objects, pairs of colour and shape, on corners that fit the relations."""
    rng = np.random.default_rng(seed)
    image = background(rng)
    for (colour, shape), (x, y) in zip(objects, _places(len(objects), related), strict=True):
        thing = Object(colour=colour, shape=shape)
        paint(image, Placed(object=thing, x=32 + _OFFSET * x, y=32 + _OFFSET * y, radius=_RADIUS), rng)
    return to_uint8(image)


def _places(number: int, related: Related) -> list[tuple[int, int]]:
    places: dict[int, tuple[int, int]] = {}
    # Pairs stand in rows or columns of their own; a pair on a diagonal with another is no matter.
    orders = [_CORNERS, (_CORNERS[0], _CORNERS[2], _CORNERS[1], _CORNERS[3])]
    for first, relation, second in related:
        dx, dy = _STEPS[relation]
        free = [corner for corner in orders[dx == 0] if corner not in places.values()]
        for one in free:
            other = (one[0] - 2 * dx, one[1] - 2 * dy)
            if other in free:
                places[first], places[second] = one, other
                break
        else:
            raise ValueError("no room")
    free = [corner for corner in _CORNERS if corner not in places.values()]
    return [places[i] if i in places else free.pop() for i in range(number)]


def of_atoms(atoms: list[Mapping[str, Any]]) -> tuple[Wanted, Related]:
    """Objects and relations of a prompt's atoms; a shape without a colour is red."""
    shapes = [atom["shape"] for atom in atoms if atom["skill"] == "object"]
    colours = {atom["shape"]: atom["colour"] for atom in atoms if atom["skill"] == "attribute"}
    counts = {atom["shape"]: atom["count"] for atom in atoms if atom["skill"] == "count"}
    related = [
        (shapes.index(atom["shape"]), atom["relation"], shapes.index(atom["of"]))
        for atom in atoms
        if atom["skill"] == "position"
    ]
    return [(colours.get(shape, "red"), shape) for shape in shapes for _ in range(counts.get(shape, 1))], related


def of_metadata(metadata: Mapping[str, Any]) -> tuple[Wanted, Related]:
    """Objects and relations of GenEval's metadata; a class without a color has one that no other has."""
    objects: Wanted = []
    related: Related = []
    relations = {words: relation for relation, words in POSITIONS.items()}
    for number, clause in enumerate(metadata["include"]):
        colour = clause.get("color", COLOURS[number])
        if "position" in clause:
            related.append((len(objects), relations[clause["position"][0]], clause["position"][1]))
        objects += [(colour, clause["class"])] * clause["count"]
    return objects, related


def other_shape(objects: Wanted) -> str:
    """A shape that none of the objects has."""
    return next(shape for shape in SHAPES if shape not in {one for _, one in objects})


def other_colour(objects: Wanted) -> str:
    """A colour that none of the objects has."""
    return next(colour for colour in COLOURS if colour not in {one for one, _ in objects})
