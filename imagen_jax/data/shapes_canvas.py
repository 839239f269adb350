"""Canvases of the shapes corpus: square, wide or tall, with the same number of pixels to within a sixteenth.

Objects have the same sizes and the same places about the middle on all of them. A wide or tall canvas is shorter than a
square one, so it holds one object, or two along its longer side; any other scene is drawn on a square.
"""

import numpy as np

from imagen_jax.data.shapes_scene import RELATIONS, Scene
from imagen_jax.errors import UserError

# Height and width in 64ths of image_size, the side of the square one.
CANVASES: dict[str, tuple[int, int]] = {"square": (64, 64), "wide": (48, 80), "tall": (80, 48)}
RELATIONS_ON: dict[str, tuple[str, ...]] = {"square": RELATIONS, "wide": ("left", "right"), "tall": ("above", "below")}


def holds(canvas: str, scene: Scene) -> bool:
    """Tells if a scene has room on a canvas, one of CANVASES."""
    if canvas == "square" or scene.kind == "single":
        return True
    return scene.kind == "two" and scene.relation in RELATIONS_ON[canvas]


def pick_canvas(scene: Scene, rng: np.random.Generator) -> str:
    """One of the canvases that have room for a scene, each as likely as the others."""
    names = [name for name in CANVASES if holds(name, scene)]
    return names[rng.integers(len(names))]


def canvas_size(canvas: str, image_size: int) -> tuple[int, int]:
    """Height and width of a canvas in pixels.

    Args:
      canvas: one of CANVASES.
      image_size: side of the square one.

    Raises:
      UserError: the sides are no whole numbers.
    """
    height, width = CANVASES[canvas]
    if height * image_size % 64 or width * image_size % 64:
        raise UserError(
            f"image_size ({image_size}) must be a multiple of 4, so that wide and tall drawings have whole sides; "
            f"choose {max(image_size // 4, 1) * 4}"
        )
    return height * image_size // 64, width * image_size // 64
