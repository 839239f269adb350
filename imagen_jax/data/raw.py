"""Raw image-caption pairs and how one of them becomes a corpus image.

No TensorFlow here: worker processes import this module, and TensorFlow alone would cost each of them seconds.
"""

import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from imagen_jax.data.duplicates import Screen, caption_mark, picture_mark
from imagen_jax.data.sizes import Size, fitted, nearest_size, too_small
from imagen_jax.errors import UserError
from imagen_jax.image_files import ImageError, decode_and_tell

# A quarter of the time of Pillow's default level for files 1 to 5 % larger.
_PNG_LEVEL = 1
# What an embedding store takes.
_MAX_KEY_BYTES = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class RawExample:
    """One image-caption pair as it comes from a source.

    Args:
      key: stable and unique within the corpus; the text embedding is joined by it.
      image: path of an image file, its bytes, or uint8 pixels [h, w], [h, w, 3] or [h, w, 4].
      caption: what the image shows.
      split: "train", "val" or any other name.
      meta: JSON-able facts kept with the example, such as what was drawn.
    """

    key: str
    image: str | os.PathLike[str] | bytes | np.ndarray
    caption: str
    split: str = "train"
    meta: Mapping[str, Any] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """One example ready to be written: an RGB PNG.

    Attributes:
      size: height and width of the picture.
      original_size: those that it had before, in a corpus of sizes; None where pictures become squares.
      repair: what about the input could not be used and was done without; empty if all was well.
      picture_mark, caption_mark: tell pictures that look alike and captions of equal words; see `duplicates`.
    """

    key: str
    png: bytes
    caption: str
    split: str
    meta: str
    repair: str = ""
    picture_mark: str = ""
    caption_mark: str = ""
    size: Size
    original_size: Size | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rejection:
    """One refused input.

    Args:
      source: where it came from.
      reason: why it is refused.
      dropped_by: what dropped it, such as a condition of a filter, if it was sound; these are counted one by one.
    """

    source: str
    reason: str
    dropped_by: str = ""


Part = Callable[[], Iterable[RawExample | Rejection]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Where raw examples come from, cut into parts that worker processes can take one by one.

    Args:
      parts: each yields some examples. To be used with workers they must pickle; with Beam, they are functions or
        `functools.partial` of functions with plain data.
      num_examples: how many the parts yield together, for the progress display; 0 if that is not known.
      settings: what tells this source from another one, JSON-able; stored in corpus.json.
      screen: what accepted examples are compared with as they are written; its settings are among `settings`.
    """

    parts: Sequence[Part]
    num_examples: int
    settings: Mapping[str, Any]
    screen: Screen | None = None


def screened(source: Source, screen: Screen) -> Source:
    """The source whose examples are compared with others as they are written."""
    settings = screen.settings()
    if not settings:
        return source
    return dataclasses.replace(source, settings={**source.settings, **settings}, screen=screen)


def check_val_fraction(val_fraction: float) -> None:
    """Refuses a part of the images that is none."""
    if not 0 <= val_fraction < 1:
        raise UserError(f"val_fraction ({val_fraction}) must be in [0, 1)")


def split_of(text: str, val_fraction: float) -> str:
    """Draws "val" or "train" by a hash of a text that names seed and image."""
    drawn = int.from_bytes(hashlib.sha256(text.encode(errors="surrogatepass")).digest()[:8], "big") / 2**64
    return "val" if drawn < val_fraction else "train"


def encode_png(image: Image.Image) -> bytes:
    """The PNG file of an image."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=_PNG_LEVEL)
    return buffer.getvalue()


def centre_square(image: Image.Image, image_size: int) -> Image.Image:
    """The centre square of an image, scaled to a side of `image_size` pixels, antialiased."""
    return ImageOps.fit(image, (image_size, image_size), Image.Resampling.BICUBIC)


def prepare(raw: RawExample, image_size: int, min_size: int, sizes: Sequence[Size] = ()) -> Prepared | Rejection:
    """Decodes, filters, resizes and encodes one example; a bad one is a `Rejection`, never an exception.

    Args:
      raw: the pair; white space of its caption is collapsed.
      image_size: side of the square, in pixels: the centre square is scaled to it, antialiased.
      min_size: least shorter side of the raw image, in pixels.
      sizes: what the picture becomes the nearest of; none: a square.
    """
    try:
        key_bytes, _ = raw.key.encode(), raw.caption.encode()
    except UnicodeEncodeError:
        return Rejection(source=ascii(raw.key), reason="key or caption holds what is no Unicode text")
    if not 1 <= len(key_bytes) <= _MAX_KEY_BYTES:
        return Rejection(source=raw.key, reason=f"the key must have 1 to {_MAX_KEY_BYTES} bytes")
    caption = " ".join(raw.caption.split())
    if not caption:
        return Rejection(source=raw.key, reason="empty caption")
    try:
        image, repair = decode_and_tell(raw.image)
    except ImageError as error:
        return Rejection(source=raw.key, reason=f"image cannot be decoded: {error}")
    width, height = image.size
    size = nearest_size((height, width), sizes) if sizes else (image_size, image_size)
    if sizes and (problem := too_small((height, width), size, image_size, min_size)):
        return Rejection(source=raw.key, reason=problem)
    if not sizes and min(image.size) < min_size:
        return Rejection(
            source=raw.key,
            reason=f"image is {width}x{height}; the shorter side must be at least {min_size} pixels",
        )
    square = centre_square(image, image_size)
    meta = "" if raw.meta is None else json.dumps(raw.meta, sort_keys=True)
    png = encode_png(fitted(image, size) if sizes else square)
    return Prepared(
        key=raw.key,
        png=png,
        caption=caption,
        split=raw.split,
        meta=meta,
        repair=repair,
        picture_mark=picture_mark(square),
        caption_mark=caption_mark(caption),
        size=size,
        original_size=(height, width) if sizes else None,
    )


def prepare_part(
    part: Part, image_size: int, min_size: int, sizes: Sequence[Size] = ()
) -> Iterator[Prepared | Rejection]:
    """Everything one part of a source comes to, in order."""
    for one in part():
        yield one if isinstance(one, Rejection) else prepare(one, image_size, min_size, sizes)


def prepare_part_at_once(
    part: Part, image_size: int, min_size: int, sizes: Sequence[Size] = ()
) -> list[Prepared | Rejection]:
    """`prepare_part` for a worker process, which hands back a list."""
    return list(prepare_part(part, image_size, min_size, sizes))
