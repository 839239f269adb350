"""Sizes: the few heights and widths that pictures of a corpus come in, so that they keep their shape.

Each picture gets the size whose aspect ratio is nearest its own, is scaled until it covers it, and loses what stands
out on two sides. All sizes have about as many pixels as a square of the corpus's `image_size`, the nominal side. A
stage of another `image_size` sees every picture scaled by the ratio of the two, so its sizes are those of the corpus
times that. Nothing here needs TensorFlow.

The records of each size lie in shards of their own, `train-40x24-00000-of-00002.array_record`, one size after the
other. So the records of a size are a range of the split's numbers.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from PIL import Image, ImageOps

from imagen_jax.checks import check_count
from imagen_jax.errors import UserError

# Height and width, in pixels.
Size = tuple[int, int]

# Of image_size², the fewest pixels of a size: batches are then of about the same work.
_LEAST_SHARE = Fraction(3, 4)
_SIZE = re.compile(r"(\d+)x(\d+)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SizeRange:
    """The records of one size in a split.

    Args:
      size: height and width.
      first: number of the first record.
      count: number of the records.
    """

    size: Size
    first: int
    count: int


def size_name(size: Size) -> str:
    """A size as people write it: height x width."""
    return f"{size[0]}x{size[1]}"


def names_of(sizes: Sequence[Size]) -> str:
    """Sizes as people write them."""
    return ", ".join(map(size_name, sizes))


def parse_sizes(text: str) -> tuple[Size, ...]:
    """Reads sizes such as "40x24,32x32,24x40".

    Raises:
      UserError: the text is nothing of the kind.
    """
    found = [_SIZE.fullmatch(part.strip()) for part in text.split(",")]
    if not all(found):
        raise UserError(f"sizes ({text!r}) must be HEIGHTxWIDTH, separated by commas, e.g. 40x24,32x32,24x40")
    return tuple((int(one[1]), int(one[2])) for one in found if one is not None)


def check_sizes(name: str, sizes: Any, image_size: int) -> tuple[Size, ...]:
    """The sizes as a tuple of pairs, checked.

    Args:
      name: the setting, as its user writes it.
      sizes: what it was set to.
      image_size: side of the square that has as many pixels.

    Raises:
      UserError: no pairs of whole numbers, one given twice, or one of far fewer or of more pixels.
    """
    try:
        pairs = tuple((height, width) for height, width in sizes)
    except (TypeError, ValueError):
        raise UserError(f"{name} ({sizes!r}) must be pairs of height and width, e.g. ((40, 24), (32, 32))") from None
    for pair in pairs:
        for side in pair:
            check_count(f"{name}: a side", side)
        pixels, most = pair[0] * pair[1], image_size**2
        if not _LEAST_SHARE * most <= pixels <= most:
            raise UserError(
                f"{name}: {size_name(pair)} has {pixels} pixels; expected {-(-3 * most // 4)} to {most}, as many as a "
                f"square of image_size ({image_size}) or up to a quarter fewer, so that all batches are alike in work"
            )
    if len({*pairs}) < len(pairs):
        raise UserError(f"{name} ({names_of(pairs)}) names a size twice; name each once")
    return pairs


def nearest_size(original: Size, sizes: Sequence[Size]) -> Size:
    """The size whose aspect ratio is nearest that of a picture, as a factor; of two as near, the one named first.

    Args:
      original: height and width of the picture.
      sizes: at least one.
    """

    def factor(size: Size) -> Fraction:
        # Exact, so that a square is as near to 40x24 as to 24x40 on any machine.
        ratio = Fraction(original[0] * size[1], original[1] * size[0])
        return max(ratio, 1 / ratio)

    return min(sizes, key=factor)


def fitted(image: Image.Image, size: Size) -> Image.Image:
    """The largest middle part of an image that has the shape of `size`, scaled to it, antialiased."""
    return ImageOps.fit(image, size[::-1], Image.Resampling.BICUBIC)


def too_small(original: Size, size: Size, image_size: int, min_size: int) -> str:
    """The reason to refuse a picture, empty if it is large enough.

    Args:
      original: height and width of the picture.
      size: what it is scaled to.
      image_size: the corpus's nominal side.
      min_size: least shorter side, in pixels, of a picture that becomes a square; others may be enlarged as much.
    """
    if all(Fraction(have, want) >= Fraction(min_size, image_size) for have, want in zip(original, size, strict=True)):
        return ""
    least = tuple(-(-side * min_size // image_size) for side in size)
    return f"image is {original[1]}x{original[0]}; to become {size[1]}x{size[0]} it must have {least[1]}x{least[0]}"


def shards_name(split: str, size: Size) -> str:
    """The beginning of the names of the shards of one size."""
    return f"{split}-{size_name(size)}"


def split_of_shards(name: str) -> str:
    """The split of which `shards_name` made a name."""
    return name.rpartition("-")[0]


def joined_splits(entries: Mapping[str, Mapping[str, Any]], sizes: Sequence[Size]) -> dict[str, Any]:
    """The manifest's splits, of which each size was written as one of its own; in the order of `sizes`.

    Args:
      entries: by `shards_name`.
      sizes: of the corpus.
    """
    names = [size_name(size) for size in sizes]
    splits: dict[str, Any] = {}
    for name in sorted(entries, key=lambda name: names.index(name.rpartition("-")[2])):
        split, _, own = name.rpartition("-")
        height, width = sizes[names.index(own)]
        joined = splits.setdefault(split, {"num_examples": 0, "sizes": [], "shards": []})
        joined["num_examples"] += entries[name]["num_examples"]
        joined["sizes"].append({"height": height, "width": width, "num_examples": entries[name]["num_examples"]})
        joined["shards"] += entries[name]["shards"]
    return splits


# What `joined_splits` writes about a split, for `check_content`.
SIZES_FORM = {"height": int, "width": int, "num_examples": int}


def ranges_of(entry: Mapping[str, Any]) -> tuple[SizeRange, ...]:
    """Where the records of each size lie in a split, by its manifest entry; none of a corpus of squares."""
    ranges, first = [], 0
    for one in entry.get("sizes", ()):
        size = (one["height"], one["width"])
        ranges.append(SizeRange(size=size, first=first, count=one["num_examples"]))
        first += one["num_examples"]
    return tuple(ranges)


def scaled(size: Size, numerator: int, denominator: int) -> Size | None:
    """A size times a ratio; None where the sides are then no whole numbers."""
    if any(side * numerator % denominator for side in size):
        return None
    return size[0] * numerator // denominator, size[1] * numerator // denominator
