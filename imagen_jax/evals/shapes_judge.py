"""Reads what a picture of the shapes corpus shows, and judges it against the scene it was asked for.

1. Chroma (max - min of R, G, B) parts objects from backgrounds, which are greyish. Connected regions above
   MIN_CHROMA are cut again at a fraction of their own median chroma: that frees neighbours which blur joined.
2. A region whose pixels fall into several of the corpus' hues is split by hue: a half red, half blue object
   is seen as two. A region's colour is the hue of its chroma-weighted mean, or None between two hues.
3. A region's silhouette, scaled to a square, is compared with the outlines that the corpus draws at many
   radii and offsets, sharp and blurred. The best soft intersection over union names the shape, or None where
   it is below that shape's MIN_OVERLAP, where a hole or a long side speaks against it, or where the region fills the
   picture.

Nothing is read leniently because a scene asks for it: `read` never sees the scene, and one object too many or
too few makes every part of a verdict False.
"""

import collections
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Shaped, UInt8
from scipy import ndimage

from imagen_jax.data.shapes_draw import signed_distance
from imagen_jax.data.shapes_scene import COLOURS, HELDOUT, HUES, SHAPES, Scene
from imagen_jax.errors import UserError

MIN_CHROMA = 0.25
CUT_FRACTION = 0.42
# Regions below this many pixels (of a 64 x 64 picture) are specks; the smallest drawn object has about 150.
MIN_AREA = 30
# Of a picture; a wide drawing beside a square of 32 x 32 has 24 x 40.
MIN_PIXELS = 24 * 40
# Regions above this share of the picture are no object; the largest drawn one has 0.27.
MAX_SHARE = 0.4
# A second hue counts as an object of its own from this share of a region on.
MIN_HUE_SHARE = 0.12
# And only from this many degrees away: one object may straddle the border between two names.
MIN_HUE_STEP = 18.0
MAX_HUE_ERROR = 25.0
# Least overlap with a shape's own outline: an edge that is a third of a pixel off, which no eye would call
# another shape, costs a thin shape several times what it costs a full one. Outlines of other kinds stay below:
# a diamond has 0.80 of a cross and 0.72 of a star.
MIN_OVERLAP = {"sphere": 0.84, "cube": 0.84, "triangle": 0.8, "ring": 0.76, "cross": 0.81, "star": 0.75}
# Longer over shorter side of the bounding box: the drawn triangle has 1.10.
MAX_ASPECT = 1.3
# Holes as a share of the filled outline: the drawn ring has 0.25.
MIN_HOLE = 0.08
# |across| <= |along| is still called left, right, above or below.
MAX_SLANT = 1.0
_CELLS = 24


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeenObject:
    """A coloured region of a picture.

    Args:
      colour: one of COLOURS, or None where the hue lies between two.
      shape: one of SHAPES, or None where the silhouette is none of them.
      x, y: middle of its bounding box in pixels, y down.
      size: longer side of its bounding box in pixels.
    """

    colour: str | None
    shape: str | None
    x: float
    y: float
    size: float

    @property
    def pair(self) -> tuple[str | None, str | None]:
        """Colour and shape."""
        return self.colour, self.shape


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """Every object seen in a picture, from left to right."""

    objects: tuple[SeenObject, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """Judgement of a picture against a scene. Each part speaks of all objects: with one too many or too
    few it is False.

    Args:
      colour: the colours are right.
      shape: the shapes are right.
      both: each colour is on its own shape, and nothing else is seen.
      count: the number of objects is right, whatever they are.
      binding: `both` for scenes of kind "two", None for others.
      relation: `both`, and the first object lies where the scene has it; None for scenes without a relation.
      matches: `both` and, where there is one, `relation`.
    """

    colour: bool
    shape: bool
    both: bool
    count: bool
    binding: bool | None
    relation: bool | None
    matches: bool


def _chroma_and_hue(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Chroma in [0, 1] and hue as a complex number of that length."""
    red, green, blue = np.moveaxis(image.astype(np.float32) / 255, -1, 0)
    high, low = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    chroma = high - low
    safe = np.where(chroma > 0, chroma, 1)
    degrees = 60 * np.where(
        high == red,
        (green - blue) / safe,
        np.where(high == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    return chroma, chroma * np.exp(1j * np.deg2rad(degrees))


def _hue_errors(hue: np.ndarray) -> np.ndarray:
    """Degrees between hues and each of the corpus' colours, [..., 8]."""
    centres = np.exp(-1j * np.deg2rad(np.asarray(list(HUES.values()), np.float32)))
    return np.abs(np.rad2deg(np.angle(hue[..., None] * centres)))


def _spread(hue: np.ndarray, nearest: np.ndarray, present: np.ndarray) -> float:
    """Degrees between the mean hues of the two parts of a region that lie furthest apart."""
    means = np.asarray([hue[nearest == colour].sum() for colour in present])
    return float(np.abs(np.rad2deg(np.angle(means[:, None] * means[None].conj()))).max())


def _split_by_hue(hue: np.ndarray, region: np.ndarray) -> list[np.ndarray]:
    """The parts of a region that have a colour of their own; the region itself where it has one colour."""
    errors = _hue_errors(hue[region])
    votes = np.bincount(errors.argmin(-1), minlength=len(COLOURS))
    present = np.flatnonzero(votes >= MIN_HUE_SHARE * votes.sum())
    if len(present) <= 1 or _spread(hue[region], errors.argmin(-1), present) < MIN_HUE_STEP:
        return [region]
    nearest = present[errors[:, present].argmin(-1)]
    parts = []
    for colour in present:
        part = np.zeros_like(region)
        part[region] = nearest == colour
        parts.append(part)
    return parts


def _regions(mask: np.ndarray, min_area: float) -> Iterator[tuple[tuple[slice, slice], np.ndarray]]:
    """Yields each connected region as a window, with a rim that holds its whole edge, and a mask in it."""
    labels, _ = ndimage.label(mask)
    areas = np.bincount(labels.ravel())
    for index, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        if areas[index] >= min_area:
            window = (
                slice(max(rows.start - 2, 0), rows.stop + 2),
                slice(max(columns.start - 2, 0), columns.stop + 2),
            )
            yield window, labels[window] == index


def _bounds(mask: np.ndarray) -> tuple[slice, slice]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _cell_weights(part: slice, side: int) -> np.ndarray:
    """Linear interpolation weights [_CELLS, side] that stretch the pixels `part` over _CELLS cells."""
    cells = (np.arange(_CELLS, dtype=np.float32) + 0.5) / _CELLS
    at = part.start - 0.5 + cells * (part.stop - part.start)
    return np.clip(1 - np.abs(at[:, None] - np.arange(side, dtype=np.float32)[None]), 0, 1)


def _silhouette(coverage: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Coverage within the bounding box of `mask`, scaled to _CELLS x _CELLS and flattened."""
    rows, columns = _bounds(mask)
    soft = np.clip((coverage - 0.15) / 0.55, 0, 1) * ndimage.binary_dilation(mask)
    return (_cell_weights(rows, mask.shape[0]) @ soft @ _cell_weights(columns, mask.shape[1]).T).ravel()


def _blurred(image: np.ndarray) -> np.ndarray:
    halved = image.reshape(image.shape[0] // 2, 2, image.shape[1] // 2, 2).mean((1, 3))
    return ndimage.zoom(halved, 2, order=1, grid_mode=True, mode="nearest")


@functools.cache
def _templates() -> tuple[np.ndarray, tuple[str, ...]]:
    """Silhouettes of every shape as drawn at many radii and offsets, sharp and blurred, and their names."""
    rows, names = [], []
    for shape in SHAPES:
        for radius in (9.0, 11.0, 13.5, 17.0):
            for shift_x, shift_y in ((0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (0.5, 0.5), (0.25, 0.75)):
                x = ((np.arange(40, dtype=np.float32) - 19.5 - shift_x) / radius)[None]
                y = ((np.arange(40, dtype=np.float32) - 19.5 - shift_y) / radius)[:, None]
                coverage = np.clip(0.5 - radius * signed_distance(shape, x, y), 0, 1)
                for picture in (coverage, _blurred(coverage)):
                    rows.append(_silhouette(picture, picture > CUT_FRACTION))
                    names.append(shape)
    return np.stack(rows).astype(np.float32), tuple(names)


def _shape_of(coverage: np.ndarray, mask: np.ndarray) -> str | None:
    outlines, names = _templates()
    seen = _silhouette(coverage, mask)
    overlaps = np.minimum(outlines, seen).sum(-1) / np.maximum(outlines, seen).sum(-1)
    best = int(overlaps.argmax())
    filled = ndimage.binary_fill_holes(mask)
    has_hole = 1 - mask.sum() / filled.sum() >= MIN_HOLE
    if overlaps[best] < MIN_OVERLAP[names[best]] or has_hole != (names[best] == "ring"):
        return None
    return names[best]


def _see(chroma: np.ndarray, hue: np.ndarray, mask: np.ndarray, corner: tuple[int, int], num_pixels: int) -> SeenObject:
    """Names the region `mask` of a window; `corner` is the window's place, row first."""
    errors = _hue_errors(np.asarray(hue[mask].sum()))
    colour = COLOURS[int(errors.argmin())] if errors.min() <= MAX_HUE_ERROR else None
    rows, columns = _bounds(mask)
    height, width = rows.stop - rows.start, columns.stop - columns.start
    shape = None
    if mask.sum() <= MAX_SHARE * num_pixels and max(height, width) <= MAX_ASPECT * min(height, width):
        shape = _shape_of(chroma / np.median(chroma[mask]), mask)
    return SeenObject(
        colour=colour,
        shape=shape,
        x=corner[1] + (columns.start + columns.stop) / 2,
        y=corner[0] + (rows.start + rows.stop) / 2,
        size=float(max(height, width)),
    )


def read(image: Shaped[np.ndarray, "..."]) -> Reading:
    """Tells the objects of a picture.

    Args:
      image: uint8 [h, w, 3] of any shape, with as many pixels as a square of side 32, within a sixteenth, or more;
        tuned for 64 x 64.

    Raises:
      UserError: the image is no such picture.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UserError(f"image is {image.dtype} {image.shape}; expected uint8 (height, width, 3)")
    num_pixels = image.shape[0] * image.shape[1]
    if num_pixels < MIN_PIXELS:
        raise UserError(
            f"image is {image.shape[0]}x{image.shape[1]}; expected at least {MIN_PIXELS} pixels, best about 64x64"
        )
    chroma, hue = _chroma_and_hue(image)
    min_area = MIN_AREA * num_pixels / 64**2
    seen = []
    for (rows, columns), region in _regions(chroma > MIN_CHROMA, min_area):
        near_chroma, near_hue = chroma[rows, columns], hue[rows, columns]
        core = region & (near_chroma > CUT_FRACTION * np.median(near_chroma[region]))
        for part in _split_by_hue(near_hue, core):
            for window, mask in _regions(part, min_area):
                corner = rows.start + window[0].start, columns.start + window[1].start
                seen.append(_see(near_chroma[window], near_hue[window], mask, corner, chroma.size))
    return Reading(objects=tuple(sorted(seen, key=lambda one: one.x)))


def lies(first: SeenObject, second: SeenObject, relation: str) -> bool:
    """Tells if an object lies left, right, above or below of another, more so than across."""
    right, down = first.x - second.x, first.y - second.y
    along, across = (right, down) if relation in ("left", "right") else (down, right)
    forward = -along if relation in ("left", "above") else along
    return forward > 0 and abs(across) <= MAX_SLANT * forward


def judge_reading(reading: Reading, scene: Scene) -> Verdict:
    """Judges what was read against the scene that was asked for."""
    wanted = [one.pair for one in scene.drawn]
    seen = [one.pair for one in reading.objects]
    both = collections.Counter(seen) == collections.Counter(wanted)
    relation = None
    if scene.relation is not None:
        by_pair = {one.pair: one for one in reading.objects}
        first, second = wanted
        relation = both and lies(by_pair[first], by_pair[second], scene.relation)
    return Verdict(
        colour=collections.Counter(pair[0] for pair in seen) == collections.Counter(p[0] for p in wanted),
        shape=collections.Counter(pair[1] for pair in seen) == collections.Counter(p[1] for p in wanted),
        both=both,
        count=len(seen) == len(wanted),
        binding=both if scene.kind == "two" else None,
        relation=relation,
        matches=both and relation is not False,
    )


def judge(image: UInt8[np.ndarray, "h w 3"], scene: Scene) -> Verdict:
    """Judges a picture against the scene it was asked for; see `read` and `Verdict`."""
    return judge_reading(read(image), scene)


def category(scene: Scene) -> str:
    """The evaluation category of a scene: "heldout" where a pair of HELDOUT occurs, else its kind."""
    return "heldout" if any(one.pair in HELDOUT for one in scene.objects) else scene.kind


_PARTS = {
    "single_colour": ("single", "colour"),
    "single_shape": ("single", "shape"),
    "single_both": ("single", "both"),
    "two_colour_binding": ("two", "binding"),
    "two_relation": ("two", "relation"),
    "count": ("count", "count"),
    "heldout_both": ("heldout", "both"),
}


def alignment(verdicts: Mapping[str, Sequence[Verdict]]) -> dict[str, float]:
    """Fractions of verdicts that are good, by what they tell.

    Args:
      verdicts: those of each `category`; a category without any leaves its fractions out.
    """
    return {
        name: float(np.mean([bool(getattr(one, part)) for one in verdicts[of]]))
        for name, (of, part) in _PARTS.items()
        if verdicts.get(of)
    }


def chance_both(images: Sequence[UInt8[np.ndarray, "h w 3"]], scenes: Sequence[Scene], seed: int) -> float:
    """The rate of `both` when each real picture is judged by the scene of another: what guessing reaches.

    Args:
      images: drawn pictures.
      scenes: theirs, in order; at least two.
      seed: shuffles.
    """
    if len(images) != len(scenes) or len(scenes) < 2:
        raise UserError(f"got {len(images)} images, {len(scenes)} scenes; expected as many of each, 2 or more")
    order = np.random.default_rng(seed).permutation(len(scenes))
    others = np.roll(order, 1)
    verdicts = [judge(images[i], scenes[j]).both for i, j in zip(order, others, strict=True)]
    return float(np.mean(verdicts))
