"""Raw image-caption pairs and how one of them becomes a corpus image.

No TensorFlow here: worker processes import this module, and TensorFlow alone would cost each of them seconds.
"""

import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from imagen_jax.data.duplicates import Screen, caption_mark, picture_mark
from imagen_jax.data.sizes import Size, fitted, nearest_size, shards_name, too_small
from imagen_jax.errors import UserError
from imagen_jax.image_files import ImageError, centre_square, decode_and_tell, upright_original

IMAGE_FORMATS = ("png", "jpeg", "webp", "original")
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
    """One example ready to be written.

    Attributes:
      image: the file of its picture.
      height, width: of the upright picture, in pixels.
      orientation: how EXIF turns its pixels; 1 of all but kept originals.
      split: where its record goes: the split or, in a corpus of sizes, what `sizes.shards_name` makes of it.
      original_size: height and width before the picture got its size, in a corpus of sizes.
      repair: what about the input could not be used and was done without; empty if all was well.
      picture_mark, caption_mark: tell pictures that look alike and captions of equal words; see `duplicates`.
    """

    key: str
    image: bytes
    height: int
    width: int
    caption: str
    split: str
    meta: str
    orientation: int = 1
    repair: str = ""
    picture_mark: str = ""
    caption_mark: str = ""
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class PictureForm:
    """Form of the pictures of a corpus.

    Args:
      image_size: side of the square, in pixels: the centre square is scaled to it, antialiased.
      min_size: least shorter side of the raw picture, in pixels.
      image_format: "png"; "jpeg" of `quality`, colours at full resolution; "webp" of `quality`, without one lossless;
        "original": a JPEG file of grey or RGB pixels as it came, byte for byte, whatever its size and shape, and PNG
        squares of all others. Who reads an original turns it upright and cuts and scales its centre square.
      quality: 1 to 100, of "jpeg" and "webp".
      sizes: heights and widths that it comes in, the nearest of them; see `data.sizes`. Empty: squares alone.
    """

    image_size: int
    min_size: int
    image_format: str = "png"
    quality: int | None = None
    sizes: tuple[Size, ...] = ()

    def size_of(self, original: Size) -> Size:
        """Height and width that a picture gets."""
        return nearest_size(original, self.sizes) if self.sizes else (self.image_size, self.image_size)

    def problem(self, original: Size) -> str:
        """The reason to refuse a picture of a height and width; empty if it is large enough."""
        if self.sizes:
            return too_small(original, self.size_of(original), self.image_size, self.min_size)
        if min(original) >= self.min_size:
            return ""
        return f"image is {original[1]}x{original[0]}; the shorter side must be at least {self.min_size} pixels"

    def encode(self, square: Image.Image) -> bytes:
        """The file of a square, or of a picture that has its size."""
        buffer = io.BytesIO()
        if self.image_format == "jpeg":
            square.save(buffer, "JPEG", quality=self.quality, subsampling=0)
        elif self.image_format == "webp":
            lossless = self.quality is None
            # Of a lossless file, quality is the effort.
            square.save(buffer, "WEBP", lossless=lossless, quality=50 if lossless else self.quality)
        else:
            square.save(buffer, "PNG", compress_level=_PNG_LEVEL)
        return buffer.getvalue()


def prepare(raw: RawExample, form: PictureForm) -> Prepared | Rejection:
    """Decodes, filters, resizes and encodes one example; a bad one is a `Rejection`, never an exception.

    Args:
      raw: the pair; white space of its caption is collapsed.
      form: what its picture becomes.
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
    size = form.size_of((height, width))
    if problem := form.problem((height, width)):
        return Rejection(source=raw.key, reason=problem)
    square = centre_square(image, form.image_size)
    original = upright_original(raw.image) if form.image_format == "original" else None
    if original is None:
        file, orientation = form.encode(fitted(image, size) if form.sizes else square), 1
    else:
        file, orientation = original
    meta = "" if raw.meta is None else json.dumps(raw.meta, sort_keys=True)
    return Prepared(
        key=raw.key,
        image=file,
        height=size[0] if original is None else height,
        width=size[1] if original is None else width,
        orientation=orientation,
        caption=caption,
        split=shards_name(raw.split, size) if form.sizes else raw.split,
        meta=meta,
        repair=repair,
        picture_mark=picture_mark(square),
        caption_mark=caption_mark(caption),
        original_size=(height, width) if form.sizes else None,
    )


class Known(NamedTuple):
    """Inputs of a part that a build knew already when it was killed.

    Args:
      num_inputs: how many, from the first on; they are passed over.
      again: numbers of those among them that are prepared once more, rising.
    """

    num_inputs: int = 0
    again: tuple[int, ...] = ()


_NOTHING = Known()


def prepare_part(part: Part, form: PictureForm, known: Known = _NOTHING) -> Iterator[Prepared | Rejection]:
    """Everything one part of a source comes to, in order, without what is `known`."""
    again = frozenset(known.again)
    for number, one in enumerate(part()):
        if number >= known.num_inputs or number in again:
            yield one if isinstance(one, Rejection) else prepare(one, form)


def prepare_part_at_once(part: tuple[Part, Known], form: PictureForm) -> list[Prepared | Rejection]:
    """`prepare_part` for a worker process, which hands back a list."""
    return list(prepare_part(part[0], form, part[1]))
