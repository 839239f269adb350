"""Image files of any kind → upright RGB: what corpora are built from and what the user gives to be changed."""

import io
import os
import struct
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from imagen_jax.files import local_copy

# What Pillow raises on files that are missing, cut short, of an unknown format or absurdly large.
DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


class Decoded(NamedTuple):
    """An upright RGB image, and what about its file could not be used; empty if all could."""

    image: Image.Image
    problem: str


def opened_image(image: str | os.PathLike[str] | bytes) -> Image.Image:
    """An image file of which only the header was read.

    Raises:
      OSError, SyntaxError, ValueError, EOFError, struct.error, DecompressionBombError: it cannot be read.
    """
    try:
        return Image.open(io.BytesIO(image) if isinstance(image, bytes) else local_copy(image))
    except UnidentifiedImageError as error:
        # Pillow's own message names a place in memory, or that of a copy: another one each time.
        raise UnidentifiedImageError("cannot identify image file") from error


def decode_image(image: str | os.PathLike[str] | bytes | np.ndarray) -> Image.Image:
    """The image of `decode_and_tell`."""
    return decode_and_tell(image).image


def decode_and_tell(image: str | os.PathLike[str] | bytes | np.ndarray) -> Decoded:
    """Decodes an image of any mode to upright RGB: transparency on white, 16 bits scaled to 8.

    An image whose EXIF data are broken is kept as its pixels lie, for these are good.

    Raises:
      OSError, SyntaxError, ValueError, EOFError, struct.error, DecompressionBombError: it cannot be decoded.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (3, 4))):
            raise ValueError(f"pixels are {image.dtype} {image.shape}; expected uint8 [h, w], [h, w, 3] or [h, w, 4]")
        opened = Image.fromarray(image)
    else:
        opened = opened_image(image)
        opened.load()
    opened, problem = _upright(opened)
    if opened.mode.startswith("I"):
        wide = np.asarray(opened).astype(np.int64)
        opened = Image.fromarray((np.clip(wide, 0, 65535) / 257 + 0.5).astype(np.uint8))
    elif opened.mode == "F":
        raise ValueError("floating-point pixels have no known range; save the image with 8 or 16 bits")
    if opened.has_transparency_data:
        with_alpha = opened.convert("RGBA")
        opened = Image.new("RGBA", with_alpha.size, "white")
        opened.alpha_composite(with_alpha)
    return Decoded(opened.convert("RGB"), problem)


def _upright(image: Image.Image) -> tuple[Image.Image, str]:
    try:
        return ImageOps.exif_transpose(image), ""
    except Exception as error:  # A tag of a wrong type raises what its use in Pillow happens to raise.
        return image, f"EXIF data are broken ({type(error).__name__}: {error}); the image is not turned"
