"""Images as files and grids: uint8 lives here, the rest of the package speaks float32 in [-1, 1]."""

import io
import json
import os
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, PngImagePlugin

from imagen_jax.typing import Float, UInt8


def to_uint8(images: Float[np.ndarray, "*b h w 3"]) -> UInt8[np.ndarray, "*b h w 3"]:
    """[-1, 1] to 0..255, rounded to the nearest."""
    return np.clip(np.round((np.asarray(images, np.float32) + 1.0) * 127.5), 0, 255).astype(np.uint8)


def from_uint8(images: UInt8[np.ndarray, "*b h w 3"]) -> Float[np.ndarray, "*b h w 3"]:
    """0..255 to [-1, 1]."""
    return images.astype(np.float32) / 127.5 - 1.0


def enlarge(image: UInt8[np.ndarray, "h w 3"], factor: int) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Repeats every pixel `factor` times in both directions."""
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def grid(images: Sequence[UInt8[np.ndarray, "h w 3"]], num_columns: int, gap: int = 2) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Lays equally large images out in rows of `num_columns`, `gap` white pixels apart."""
    height, width = images[0].shape[:2]
    num_rows = -(-len(images) // num_columns)
    sheet = np.full((num_rows * (height + gap) + gap, num_columns * (width + gap) + gap, 3), 255, np.uint8)
    for i, image in enumerate(images):
        row, column = divmod(i, num_columns)
        top, left = gap + row * (height + gap), gap + column * (width + gap)
        sheet[top : top + height, left : left + width] = image
    return sheet


def write_png(path: str, image: UInt8[np.ndarray, "h w 3"], info: Mapping[str, object] | None = None) -> None:
    """Writes a PNG whose text chunks hold `info` (strings as they are, the rest as JSON); whole or not at all."""
    chunks = PngImagePlugin.PngInfo()
    for key, value in (info or {}).items():
        chunks.add_itxt(key, value if isinstance(value, str) else json.dumps(value))
    # Encoded in memory first: a full disk then leaves the temporary file, never a torn picture.
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", pnginfo=chunks)
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path + ".tmp", "wb") as file:
        file.write(buffer.getvalue())
    os.replace(path + ".tmp", path)
