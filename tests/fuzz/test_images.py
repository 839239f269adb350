"""Image files, whole and damaged, of every format that Pillow writes."""

import io
import random
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageDraw

from imagen_jax.data.raw import Prepared, RawExample, Rejection, prepare
from imagen_jax.report.data import read_picture
from imagen_jax.sampling.images import broken_part, is_transparent, read_image, read_info
from tests.fuzz.mutate import damaged
from tests.fuzz.running import fuzz

_FORMATS = {
    "RGB": ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM", "TGA", "PCX", "SGI", "ICO", "ICNS",
            "DDS", "IM", "MPO", "QOI", "EPS"),
    "RGBA": ("PNG", "TIFF", "WEBP", "TGA", "GIF", "JPEG2000", "QOI"),
    "L": ("PNG", "JPEG", "TIFF", "PPM", "BMP", "SGI"),
    "P": ("PNG", "GIF", "BMP", "TIFF", "TGA"),
    "1": ("PNG", "TIFF", "XBM", "MSP", "PPM"),
    "I;16": ("PNG", "TIFF"),
    "LA": ("PNG", "TIFF"),
    "CMYK": ("JPEG", "TIFF"),
    "F": ("TIFF",),
}  # fmt: skip


def _whole_files() -> Iterator[bytes]:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 20, 3), np.uint8))
    ImageDraw.Draw(picture).ellipse((2, 2, 12, 12), fill="red")
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x011A] = 6, "a picture", 72.0
    for mode, formats in _FORMATS.items():
        image = picture.convert("L").convert("I;16") if mode == "I;16" else picture.convert(mode)
        for kind in formats:
            buffer = io.BytesIO()
            image.save(buffer, kind)
            yield buffer.getvalue()
            if kind in ("PNG", "JPEG", "WEBP", "TIFF", "AVIF"):
                buffer = io.BytesIO()
                image.save(buffer, kind, exif=exif)
                yield buffer.getvalue()
    for compression in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg"):
        buffer = io.BytesIO()
        picture.save(buffer, "TIFF", compression=compression)
        yield buffer.getvalue()


def test_damaged_images_are_pictures_or_refusals(pytestconfig):
    whole = list(_whole_files())

    def attempt(content: bytes) -> None:
        result = prepare(RawExample(key="k", image=content, caption="c"), image_size=8, min_size=4)
        assert isinstance(result, Prepared | Rejection)
        if isinstance(result, Prepared):
            assert Image.open(io.BytesIO(result.png)).size == (8, 8)

    fuzz(pytestconfig, "images", lambda chance: damaged(chance, chance.choice(whole), whole), attempt)


def test_damaged_images_to_be_changed_are_refused_in_one_line(pytestconfig, tmp_path):
    whole = list(_whole_files())
    path = tmp_path / "given"

    def make(chance: random.Random) -> bytes:
        path.write_bytes(content := damaged(chance, chance.choice(whole), whole))
        return content

    def attempt(content: bytes) -> None:
        read_info(str(path))
        read_picture(path)
        read_image(str(path))
        broken_part(str(path))
        is_transparent(str(path))

    fuzz(pytestconfig, "given images", make, attempt)
