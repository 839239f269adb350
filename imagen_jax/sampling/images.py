"""Images as files and sheets: uint8 lives here, the rest of the package speaks float32 in [-1, 1]."""

import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from PIL import Image, PngImagePlugin

from imagen_jax.errors import UserError
from imagen_jax.files import make_dirs, write_bytes
from imagen_jax.image_files import ImageError, decode_and_tell, decode_image, open_image
from imagen_jax.typing import Array, Bool, Float, UInt8


class NoNumbersError(UserError):
    """Images that a stage drew and that are no numbers."""


def to_uint8(images: Float[np.ndarray, "*b h w 3"]) -> UInt8[np.ndarray, "*b h w 3"]:
    """[-1, 1] to 0..255, rounded to the nearest."""
    return np.clip(np.round((np.asarray(images, np.float32) + 1.0) * 127.5), 0, 255).astype(np.uint8)


def from_uint8(images: UInt8[np.ndarray, "*b h w 3"]) -> Float[np.ndarray, "*b h w 3"]:
    """0..255 to [-1, 1]."""
    return images.astype(np.float32) / 127.5 - 1.0


def finite(stages: Sequence[str], drawn: Sequence[Array]) -> Iterator[np.ndarray]:
    """Hands over the images of stages on the host, checked.

    Args:
      stages: their names.
      drawn: what each drew, [b, h, w, 3].

    Raises:
      NoNumbersError: some are no numbers, which would be written as black pictures.
    """
    for name, images in zip(stages, drawn, strict=True):
        array = np.asarray(images)
        if not np.isfinite(array).all():
            raise NoNumbersError(
                f"stage {name!r} drew pictures that are no numbers (NaN): its guidance weight is too large for its "
                "thresholding, or its parameters are damaged; nothing of this batch was written"
            )
        yield array


def enlarge(image: UInt8[np.ndarray, "h w 3"], factor: int) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Repeats every pixel `factor` times in both directions."""
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def sheet(images: Sequence[UInt8[np.ndarray, "h w 3"]], num_columns: int, gap: int = 2) -> UInt8[np.ndarray, "h2 w2 3"]:
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
    """Writes what `as_png` gives; whole or not at all."""
    make_dirs(os.path.dirname(path) or ".")
    write_bytes(path, as_png(image, info))


def as_png(image: UInt8[np.ndarray, "h w 3"], info: Mapping[str, object] | None = None) -> bytes:
    """A PNG file whose text chunks hold `info`: strings as they are, the rest as JSON."""
    chunks = PngImagePlugin.PngInfo()
    for key, value in as_info(info or {}).items():
        chunks.add_itxt(key, value)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", pnginfo=chunks)
    return buffer.getvalue()


def read_info(path: str) -> dict[str, str]:
    """The text chunks of a PNG file; empty where it cannot be read."""
    try:
        return dict(getattr(open_image(path), "text", {}))
    except ImageError:
        return {}


def as_info(info: Mapping[str, object]) -> dict[str, str]:
    """`info` as `write_png` stores it and `read_info` gives it back."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in info.items()}


def read_image(path: str) -> Image.Image:
    """Any image file as upright RGB: transparency on white, 16 bits scaled to 8, grey repeated.

    Raises:
      UserError: it is missing or cannot be decoded.
    """
    try:
        return decode_image(path)
    except ImageError as error:
        raise UserError(f"image {path!r} cannot be read: {error}") from error


def broken_part(path: str) -> str:
    """Names what about an image file that `read_image` reads could not be used; empty if all could."""
    return decode_and_tell(path).problem


def is_transparent(path: str) -> bool:
    """Tells if any pixel of an image file that `read_image` reads is not opaque."""
    image = open_image(path)
    return bool(image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema() != (255, 255))


def read_mask(path: str, image: Image.Image) -> Image.Image:
    """A mask file as grey, as large as its image: white where to draw, black where the image stays.

    Raises:
      UserError: it cannot be read, or has another size than the image.
    """
    mask = read_image(path).convert("L")
    if mask.size != image.size:
        raise UserError(
            f"mask {path!r} is {mask.width}x{mask.height} pixels, the image {image.width}x{image.height}; "
            "a mask must be as large as its image"
        )
    return mask


def fitted(image: Image.Image, size: tuple[int, int]) -> Float[np.ndarray, "h w 3"]:
    """An image at (height, width) in [-1, 1]."""
    resized = image if (image.height, image.width) == size else image.resize(size[::-1], Image.Resampling.LANCZOS)
    return from_uint8(np.asarray(resized))


def fitted_mask(mask: Image.Image, size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """A mask at (height, width): True where anything under a pixel is light."""
    marked = mask.point(lambda value: 255 if value >= 128 else 0)
    if (mask.height, mask.width) != size:
        marked = marked.resize(size[::-1], Image.Resampling.BOX)
    return np.asarray(marked) > 0
