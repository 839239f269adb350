"""Draws shapes scenes as anti-aliased RGB images.

An object is its signed distance s (pixels, negative inside) turned into a coverage clip(1/2 - s, 0, 1), a
colour of one hue whose value alone is shaded, and coverage-weighted blending over a background of low
saturation. So a pixel well inside an object always has the hue of its colour. Lengths are stated for an image
of 64 pixels and scale along.
"""

import colorsys
import dataclasses
import functools

import numpy as np
from jaxtyping import Float, UInt8

from imagen_jax.data.shapes_canvas import CANVASES, canvas_size
from imagen_jax.data.shapes_scene import HUES, Object, Scene

# Radius in 64ths of the side of a square image. Two large objects plus their gap and the margins must fit side by side.
_SINGLE_RADII = {"small": 12.0, "medium": 15.0, "large": 18.0}
_TWO_RADII = {"small": 11.0, "medium": 12.2, "large": 13.4}
_GROUP_RADIUS = 11.0
_RADIUS_JITTER = 0.3
_MARGIN = 2.0
_SINGLE_JITTER = 2.5
_TWO_GAP = (3.5, 5.5)
_TWO_OFF_AXIS = 1.0
# A group stands on three or four corners of a square of this half side.
_GROUP_OFFSET, _GROUP_JITTER, _GROUP_SHIFT = 14.6, 1.0, 1.5

_BACKGROUND_RATES = {"plain": 0.7, "gradient": 0.12, "noise": 0.06, "stripes": 0.06, "checker": 0.06}
BACKGROUNDS: tuple[str, ...] = tuple(_BACKGROUND_RATES)
# Nine in ten light and the others dark, with a gap between them, or any brightness, as photographs have.
BRIGHTNESSES = ("light_or_dark", "any")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placed:
    """An object with its place: centre (x to the right, y down) and radius, all in pixels."""

    object: Object
    x: float
    y: float
    radius: float


def _layout_two(scene: Scene, rng: np.random.Generator) -> list[tuple[float, float, float]]:
    radii = [_TWO_RADII[one.size] + rng.uniform(-_RADIUS_JITTER, _RADIUS_JITTER) for one in scene.objects]
    room = 64 - 2 * _MARGIN - 2 * sum(radii)
    gap = rng.uniform(_TWO_GAP[0], min(_TWO_GAP[1], room))
    slack = (room - gap) / 2
    # The pair's start on its axis: centred, give or take up to the room that is left.
    start = _MARGIN + slack + rng.uniform(-1, 1) * min(slack, 1.0)
    forward = scene.relation in ("left", "above")
    order = (0, 1) if forward else (1, 0)
    along = {order[0]: start + radii[order[0]]}
    along[order[1]] = start + 2 * radii[order[0]] + gap + radii[order[1]]
    middle = 32 + rng.uniform(-1.5, 1.5)
    places = []
    for index in (0, 1):
        across = middle + rng.uniform(-_TWO_OFF_AXIS, _TWO_OFF_AXIS)
        horizontal = scene.relation in ("left", "right")
        x, y = (along[index], across) if horizontal else (across, along[index])
        places.append((x, y, radii[index]))
    return places


def layout(scene: Scene, rng: np.random.Generator, image_size: int = 64, canvas: str = "square") -> list[Placed]:
    """Places the objects of a scene without overlap, at least 3/64 of the side apart, wholly in the image.

    Args:
      scene: what the picture holds; something that the canvas has room for.
      rng: draws places and radii.
      image_size: side of a square image, in pixels.
      canvas: one of CANVASES; places about its middle are the same on all of them.
    """
    places: list[tuple[float, float, float]]
    if scene.kind == "single":
        radius = _SINGLE_RADII[scene.objects[0].size] + rng.uniform(-_RADIUS_JITTER, _RADIUS_JITTER)
        x, y = 32 + rng.uniform(-_SINGLE_JITTER, _SINGLE_JITTER, 2)
        places = [(x, y, radius)]
    elif scene.kind == "two":
        places = _layout_two(scene, rng)
    else:
        corners = rng.permutation(4)[: scene.count]
        shift = 32 + rng.uniform(-_GROUP_SHIFT, _GROUP_SHIFT, 2)
        radius = _GROUP_RADIUS + rng.uniform(-_RADIUS_JITTER, _RADIUS_JITTER)
        places = []
        for corner in corners:
            jitter = rng.uniform(-_GROUP_JITTER, _GROUP_JITTER, 2)
            x = shift[0] + (2 * (corner % 2) - 1) * _GROUP_OFFSET + jitter[0]
            y = shift[1] + (2 * (corner // 2) - 1) * _GROUP_OFFSET + jitter[1]
            places.append((x, y, radius))
    scale = image_size / 64
    height, width = CANVASES[canvas]
    right, down = (width - 64) / 2, (height - 64) / 2
    return [
        Placed(object=one, x=float(x + right) * scale, y=float(y + down) * scale, radius=float(r) * scale)
        for one, (x, y, r) in zip(scene.drawn, places, strict=True)
    ]


@functools.cache
def _smooth_rows(num_pixels: int, num_knots: int) -> Float[np.ndarray, "size knots"]:
    """Rows of linear interpolation weights from `num_knots` even knots to `num_pixels` pixels."""
    at = np.linspace(0, num_knots - 1, num_pixels)[:, None] - np.arange(num_knots)[None]
    return np.clip(1 - np.abs(at), 0, 1).astype(np.float32)


@functools.cache
def _grid(image_size: int, canvas: str) -> tuple[Float[np.ndarray, "1 w"], Float[np.ndarray, "h 1"]]:
    """x and y of each pixel, in 64ths of the side of a square image."""
    height, width = (
        (np.arange(side, dtype=np.float32) + 0.5) * (64 / image_size) for side in canvas_size(canvas, image_size)
    )
    return width[None], height[:, None]


def background(
    rng: np.random.Generator,
    image_size: int = 64,
    kind: str | None = None,
    brightness: str = BRIGHTNESSES[0],
    canvas: str = "square",
) -> Float[np.ndarray, "h w 3"]:
    """A background of low saturation with values in [0, 1].

    Args:
      rng: draws tint, brightness and texture.
      image_size: side of a square image, in pixels.
      kind: one of BACKGROUNDS; None draws it (most are plain).
      brightness: one of BRIGHTNESSES.
      canvas: one of CANVASES.
    """
    if kind is None:
        kind = BACKGROUNDS[rng.choice(len(BACKGROUNDS), p=list(_BACKGROUND_RATES.values()))]
    if brightness == "any":
        value = rng.uniform(0.15, 0.93)
    else:
        value = rng.uniform(0.7, 0.93) if rng.random() < 0.9 else rng.uniform(0.15, 0.35)
    # Greys and beiges: a warm tint never strong enough to be a colour.
    tint = np.asarray(colorsys.hsv_to_rgb(rng.uniform(0.07, 0.14), rng.uniform(0.0, 0.11), value), np.float32)
    x, y = _grid(image_size, canvas)
    (height, width), (middle_y, middle_x) = canvas_size(canvas, image_size), (side / 2 for side in CANVASES[canvas])
    angle = rng.uniform(0, 2 * np.pi)
    along = np.float32(np.cos(angle)) * (x - middle_x) + np.float32(np.sin(angle)) * (y - middle_y)
    amplitude = 0.06 * min(1.0, value / 0.5)
    if kind == "plain":
        return np.broadcast_to(tint, (height, width, 3)).copy()
    if kind == "gradient":
        pattern = along / 32
    elif kind == "noise":
        knots = rng.uniform(-1, 1, (10, 10)).astype(np.float32)
        pattern = _smooth_rows(height, 10) @ knots @ _smooth_rows(width, 10).T
    elif kind == "stripes":
        pattern = np.clip(3 * np.sin(along * np.float32(2 * np.pi / rng.uniform(10, 20))), -1, 1) * 0.6
    else:
        pitch = np.float32(np.pi / rng.uniform(7, 12))
        pattern = np.clip(4 * np.sin(x * pitch) * np.sin(y * pitch), -1, 1) * 0.6
    return np.clip(tint + np.float32(amplitude) * pattern[..., None], 0, 1)


def _half_planes(x: np.ndarray, y: np.ndarray, corners: tuple[tuple[float, float], ...]) -> np.ndarray:
    """Signed distance to a convex polygon, corners clockwise (y down), exact but beyond its corners."""
    distance = np.full(np.broadcast_shapes(x.shape, y.shape), -np.inf, np.float32)
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        length = np.hypot(x1 - x0, y1 - y0)
        distance = np.maximum(distance, ((x - x0) * (y1 - y0) - (y - y0) * (x1 - x0)) / length)
    return distance


_CUBE_HALF, _CUBE_DEPTH = 0.92, 0.24
_CUBE_FRONT = (-_CUBE_HALF, -_CUBE_HALF + _CUBE_DEPTH, _CUBE_HALF - _CUBE_DEPTH, _CUBE_HALF)
_CUBE_OUTLINE = (
    (_CUBE_FRONT[0], _CUBE_FRONT[1]), (-_CUBE_HALF + _CUBE_DEPTH, -_CUBE_HALF), (_CUBE_HALF, -_CUBE_HALF),
    (_CUBE_HALF, _CUBE_HALF - _CUBE_DEPTH), (_CUBE_FRONT[2], _CUBE_HALF), (_CUBE_FRONT[0], _CUBE_HALF),
)  # fmt: skip
_TRIANGLE = ((0.0, -1.0), (0.98, 0.78), (-0.98, 0.78))
_STAR_INNER = 0.44
_RING_INNER = 0.5
_CROSS_ARM = 0.33


def signed_distance(shape: str, x: Float[np.ndarray, "1 w"], y: Float[np.ndarray, "h 1"]) -> Float[np.ndarray, "h w"]:
    """Signed distance to the outline of a shape of radius 1 about the origin, negative inside.

    Args:
      shape: one of SHAPES.
      x, y: coordinates in radii, y down.
    """
    if shape == "cube":
        return _half_planes(x, y, _CUBE_OUTLINE)
    if shape == "triangle":
        return _half_planes(x, y, _TRIANGLE)
    if shape == "cross":
        across, up = np.abs(x), np.abs(y)
        return np.minimum(np.maximum(across - 1, up - _CROSS_ARM), np.maximum(across - _CROSS_ARM, up - 1))
    rho = np.sqrt(x * x + y * y)
    if shape == "sphere":
        return rho - 1
    if shape == "ring":
        return np.maximum(rho - 1, _RING_INNER - rho)
    # A star is one edge, from a tip to the next inner corner, folded about ten axes.
    sector = np.pi / 5
    folded = np.abs((np.arctan2(x, -y) + sector) % (2 * sector) - sector)
    corner = _STAR_INNER * np.cos(sector), _STAR_INNER * np.sin(sector)
    normal = np.asarray((corner[1], 1 - corner[0])) / np.hypot(corner[1], 1 - corner[0])
    return (rho * np.cos(folded) - 1) * np.float32(normal[0]) + rho * np.sin(folded) * np.float32(normal[1])


def _shading(shape: str, x: Float[np.ndarray, "1 w"], y: Float[np.ndarray, "h 1"]) -> Float[np.ndarray, "h w"] | float:
    """The factor on the colour's value: a light from above, leaving hue and saturation alone."""
    if shape == "sphere":
        return 1 - 0.3 * np.clip(((x + 0.3) ** 2 + (y + 0.35) ** 2) / 2.1, 0, 1)
    if shape != "cube":
        return 0.96
    left, top, right, _ = _CUBE_FRONT
    # The edge between top and side face runs from the front face's upper right corner to the back.
    on_top = (y < top) & (x - right < top - y)
    on_side = (x > right) & ~on_top
    return np.where(on_top, 1.0, np.where(on_side, 0.64, 0.86)).astype(np.float32)


def paint(image: Float[np.ndarray, "h w 3"], placed: Placed, rng: np.random.Generator) -> None:
    """Paints one object over `image` in place.

    Args:
      image: values in [0, 1].
      placed: the object and where it goes.
      rng: jitters the colour within its name.
    """
    hue = (HUES[placed.object.colour] + rng.uniform(-3, 3)) % 360
    colour = colorsys.hsv_to_rgb(hue / 360, rng.uniform(0.87, 0.95), rng.uniform(0.88, 0.97))
    height, width, _ = image.shape
    reach = placed.radius + 1.5
    x0, x1 = max(0, int(placed.x - reach)), min(width, int(placed.x + reach) + 1)
    y0, y1 = max(0, int(placed.y - reach)), min(height, int(placed.y + reach) + 1)
    radius = np.float32(placed.radius)
    x = ((np.arange(x0, x1, dtype=np.float32) + 0.5 - np.float32(placed.x)) / radius)[None]
    y = ((np.arange(y0, y1, dtype=np.float32) + 0.5 - np.float32(placed.y)) / radius)[:, None]
    shape = placed.object.shape
    coverage = np.clip(0.5 - radius * signed_distance(shape, x, y), 0, 1)[..., None]
    shaded = np.multiply.outer(np.broadcast_to(_shading(shape, x, y), coverage.shape[:2]), np.asarray(colour))
    window = image[y0:y1, x0:x1]
    window += coverage * (shaded - window)


def to_uint8(image: Float[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """Rounds values in [0, 1] to bytes."""
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def draw(
    scene: Scene,
    rng: np.random.Generator,
    image_size: int = 64,
    brightness: str = BRIGHTNESSES[0],
    canvas: str = "square",
) -> UInt8[np.ndarray, "h w 3"]:
    """Draws a scene.

    Args:
      scene: what the picture holds.
      rng: draws the background, places, radii and the exact colours.
      image_size: side of a square image, in pixels.
      brightness: of the background, one of BRIGHTNESSES.
      canvas: one of CANVASES that has room for the scene.
    """
    image = background(rng, image_size, brightness=brightness, canvas=canvas)
    for placed in layout(scene, rng, image_size, canvas):
        paint(image, placed, rng)
    return to_uint8(image)
