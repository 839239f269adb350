"""Image files of any kind → upright RGB: what corpora are built from and what the user gives to be changed."""

import contextlib
import io
import os
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from imagen_jax.files import local_copy

# The tag of EXIF.
_ORIENTATION = 0x0112

ImageSource = str | os.PathLike[str] | bytes


class ImageError(ValueError):
    """An image file that is missing or cannot be decoded."""


class Decoded(NamedTuple):
    """An upright RGB image, and what about its file could not be used; empty if all could."""

    image: Image.Image
    problem: str


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Pillow warns of every tag that it cannot read, most of them not used here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def header_of(image: ImageSource) -> Image.Image:
    """The image of a file, of which only the header was read.

    PostScript is refused: Pillow would have another program run it.

    Raises:
      ImageError: it is missing, damaged, absurdly large or of an unknown format.
    """
    try:
        with _without_warnings():
            opened = Image.open(io.BytesIO(image) if isinstance(image, bytes) else local_copy(image))
    except UnidentifiedImageError as error:
        # Pillow's own message names a place in memory, or that of a copy: another one each time.
        raise ImageError("cannot identify image file") from error
    except Exception as error:  # Each format raises what its decoder happens to raise.
        raise ImageError(str(error) or type(error).__name__) from error
    if opened.format == "EPS":
        opened.close()
        raise ImageError("PostScript is a program, not a picture; save it as PNG")
    return opened


def open_image(image: ImageSource) -> Image.Image:
    """The image of a file, its pixels read.

    Raises:
      ImageError: as `header_of`.
    """
    opened = header_of(image)
    try:
        with _without_warnings():
            opened.load()
    except Exception as error:  # Each format raises what its decoder happens to raise.
        raise ImageError(str(error) or type(error).__name__) from error
    return opened


def decode_image(image: ImageSource | np.ndarray) -> Image.Image:
    """The image of `decode_and_tell`."""
    return decode_and_tell(image).image


def decode_and_tell(image: ImageSource | np.ndarray) -> Decoded:
    """Decodes an image of any mode to upright RGB: transparency on white, 16 bits scaled to 8.

    An image whose EXIF data are broken is kept as its pixels lie, for these are good.

    Raises:
      ImageError: it is missing or cannot be decoded.
    """
    if not isinstance(image, np.ndarray):
        opened = open_image(image)
    elif image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (3, 4))):
        raise ImageError(f"pixels are {image.dtype} {image.shape}; expected uint8 [h, w], [h, w, 3] or [h, w, 4]")
    else:
        opened = Image.fromarray(image)
    opened, problem = _upright(opened)
    try:
        return Decoded(_rgb(opened), problem)
    except Exception as error:  # Palettes and profiles are read here, in each mode's own way.
        raise ImageError(str(error) or type(error).__name__) from error


def upright_original(image: ImageSource | np.ndarray) -> tuple[bytes, int] | None:
    """A JPEG file as it is and the EXIF orientation of its pixels, 1 to 8; None of pictures of other kinds.

    Only of 8-bit grey or RGB pixels, which every decoder gives alike. Broken EXIF data count as upright, as for
    `decode_and_tell`.

    Args:
      image: one that `decode_and_tell` takes.
    """
    if isinstance(image, np.ndarray):
        return None
    opened = header_of(image)
    # MPO is a JPEG file with more pictures behind it, as some cameras write.
    if opened.format not in ("JPEG", "MPO") or opened.mode not in ("L", "RGB"):
        return None
    try:
        with _without_warnings():
            orientation = opened.getexif().get(_ORIENTATION, 1)
    except Exception:  # As in `_upright`.
        orientation = 1
    if orientation != 1 and _upright(opened)[1]:
        orientation = 1
    if isinstance(image, bytes):
        content = image
    else:
        with open(local_copy(image), "rb") as file:
            content = file.read()
    return content, orientation if orientation in range(1, 9) else 1


def centre_square(image: Image.Image, size: int) -> Image.Image:
    """The centre square of an image, scaled to a side of `size` pixels, antialiased."""
    return ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64)
        image = Image.fromarray((np.clip(wide, 0, 65535) / 257 + 0.5).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("floating-point pixels have no known range; save the image with 8 or 16 bits")
    if image.has_transparency_data:
        with_alpha = image.convert("RGBA")
        image = Image.new("RGBA", with_alpha.size, "white")
        image.alpha_composite(with_alpha)
    return image.convert("RGB")


def _upright(image: Image.Image) -> tuple[Image.Image, str]:
    try:
        with _without_warnings():
            return ImageOps.exif_transpose(image), ""
    except Exception as error:  # A tag of a wrong type raises what its use in Pillow happens to raise.
        return image, f"EXIF data are broken ({type(error).__name__}: {error}); the image is not turned"
