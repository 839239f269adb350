"""Contents of a picture of the "shapes" corpus: objects, their counts and their relation.

A scene says what is in a picture, never where or on which background: those are drawn anew for every example
(`shapes_draw`), so that a caption never fixes the pixels.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from imagen_jax.errors import UserError

# Hue in degrees. Drawing and judging share this table; neighbours lie at least 26 degrees apart.
HUES: dict[str, float] = {
    "red": 0.0,
    "orange": 29.0,
    "yellow": 56.0,
    "green": 122.0,
    "cyan": 182.0,
    "blue": 226.0,
    "purple": 273.0,
    "pink": 321.0,
}
COLOURS: tuple[str, ...] = tuple(HUES)
SHAPES: tuple[str, ...] = ("sphere", "cube", "triangle", "star", "ring", "cross")
SIZES: tuple[str, ...] = ("small", "medium", "large")
RELATIONS: tuple[str, ...] = ("left", "right", "above", "below")
KINDS: tuple[str, ...] = ("single", "count", "two", "three")
MAX_COUNT = 4

# Never in a training scene of any kind: what a model makes of them shows whether it composes.
HELDOUT: frozenset[tuple[str, str]] = frozenset(
    {
        ("purple", "sphere"),
        ("orange", "cube"),
        ("blue", "triangle"),
        ("red", "star"),
        ("yellow", "ring"),
        ("pink", "cross"),
    }
)

_KIND_RATES = {"single": 0.28, "count": 0.07, "two": 0.63, "three": 0.02}
_SIZE_RATES = {"small": 0.25, "medium": 0.5, "large": 0.25}
# Of two-object scenes: both attributes differ, or only the shape differs, or only the colour differs.
_DIFFER_RATES = {"both": 0.84, "shape": 0.08, "colour": 0.08}

_PAIRS = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
_TRAINING_PAIRS = tuple(pair for pair in _PAIRS if pair not in HELDOUT)
_HELDOUT_PAIRS = tuple(pair for pair in _PAIRS if pair in HELDOUT)


def _require(what: str, got: Any, allowed: tuple[Any, ...]) -> None:
    if got not in allowed:
        raise UserError(f"{what} is {got!r}; expected one of {', '.join(map(str, allowed))}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Object:
    """One drawn object.

    Args:
      colour: one of COLOURS.
      shape: one of SHAPES.
      size: one of SIZES; "medium" is never named in a caption.
    """

    colour: str
    shape: str
    size: str = "medium"

    def __post_init__(self) -> None:
        _require("colour", self.colour, COLOURS)
        _require("shape", self.shape, SHAPES)
        _require("size", self.size, SIZES)

    @property
    def pair(self) -> tuple[str, str]:
        """Colour and shape."""
        return self.colour, self.shape


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """Contents of one picture.

    Args:
      kind: "single" (one object), "count" (2 to 4 objects alike), "two" (two that differ, with a relation)
        or "three" (three of different colours).
      objects: those the caption names: one for "single" and "count", two for "two", three for "three".
      count: how many objects are in the picture altogether.
      relation: for "two", where objects[0] lies as seen from objects[1]; None for other kinds.
    """

    kind: str
    objects: tuple[Object, ...]
    count: int
    relation: str | None = None

    def __post_init__(self) -> None:
        _require("kind", self.kind, KINDS)
        named = {"single": 1, "count": 1, "two": 2, "three": 3}[self.kind]
        if len(self.objects) != named:
            raise UserError(f"objects of a scene of kind {self.kind!r} are {len(self.objects)}; expected {named}")
        counts = tuple(range(2, MAX_COUNT + 1)) if self.kind == "count" else (named,)
        _require(f"count of a scene of kind {self.kind!r}", self.count, counts)
        _require(
            f"relation of a scene of kind {self.kind!r}",
            self.relation,
            RELATIONS if self.kind == "two" else (None,),
        )
        if self.kind == "two" and self.objects[0].pair == self.objects[1].pair:
            pair = " ".join(self.objects[0].pair)
            raise UserError(f"both objects are a {pair}; a relation needs two that differ")

    @property
    def drawn(self) -> tuple[Object, ...]:
        """Every object in the picture, repeated ones repeated."""
        return self.objects * self.count if self.kind == "count" else self.objects

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form, which `from_dict` reads."""
        return {
            "kind": self.kind,
            "objects": [dataclasses.asdict(one) for one in self.objects],
            "count": self.count,
            "relation": self.relation,
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Scene":
        """The scene that `to_dict` wrote."""
        objects = tuple(Object(**one) for one in fields["objects"])
        return cls(kind=fields["kind"], objects=objects, count=fields["count"], relation=fields["relation"])


def _pick(rng: np.random.Generator, rates: Mapping[str, float]) -> str:
    threshold, total = rng.random(), 0.0
    for name, rate in rates.items():
        total += rate
        if threshold < total:
            return name
    return list(rates)[-1]


def _object(rng: np.random.Generator, pairs: tuple[tuple[str, str], ...], size: str | None = None) -> Object:
    colour, shape = pairs[rng.integers(len(pairs))]
    return Object(colour=colour, shape=shape, size=size or _pick(rng, _SIZE_RATES))


def _partner(rng: np.random.Generator, first: Object) -> Object:
    """An object that may stand beside `first` in a scene of kind "two"."""
    differ = _pick(rng, _DIFFER_RATES)
    pairs = tuple(
        (colour, shape)
        for colour, shape in _TRAINING_PAIRS
        if (colour == first.colour) == (differ == "shape") and (shape == first.shape) == (differ == "colour")
    )
    return _object(rng, pairs)


def sample_scene(rng: np.random.Generator, kind: str | None = None, heldout: bool = False) -> Scene:
    """Draws what a picture holds.

    Args:
      rng: the only source of randomness.
      kind: one of KINDS; None draws it (38% single, 10% count, 50% two, 2% three; held-out scenes: single).
      heldout: False: no pair of HELDOUT occurs. True: the first object is a pair of HELDOUT.
    """
    if kind is None:
        kind = "single" if heldout else _pick(rng, _KIND_RATES)
    _require("kind", kind, KINDS)
    pairs = _HELDOUT_PAIRS if heldout else _TRAINING_PAIRS
    if kind == "single":
        return Scene(kind=kind, objects=(_object(rng, pairs),), count=1)
    if kind == "count":
        count = int(rng.integers(2, MAX_COUNT + 1))
        return Scene(kind=kind, objects=(_object(rng, pairs, "medium"),), count=count)
    if kind == "two":
        first = _object(rng, pairs)
        relation = RELATIONS[rng.integers(len(RELATIONS))]
        return Scene(kind=kind, objects=(first, _partner(rng, first)), count=2, relation=relation)
    objects = [_object(rng, pairs, "medium")]
    while len(objects) < 3:
        taken = {one.colour for one in objects}
        free = tuple(pair for pair in _TRAINING_PAIRS if pair[0] not in taken)
        objects.append(_object(rng, free, "medium"))
    return Scene(kind=kind, objects=tuple(objects), count=3)
