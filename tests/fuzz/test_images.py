"""Image files, whole and damaged, of every format that Pillow writes."""

import dataclasses
import io
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from imagen_jax.checkpoints.trained_stage import TrainedStage, Weights
from imagen_jax.commands.parts.sample_images import images_and_settings
from imagen_jax.commands.parts.sample_options import MODES, SampleOptions
from imagen_jax.commands.parts.sample_settings import changed_settings
from imagen_jax.data.raw import PictureForm, Prepared, RawExample, Rejection
from imagen_jax.data.raw import prepare as prepare_example
from imagen_jax.report.data import read_picture
from imagen_jax.sampling.cascade import Cascade
from imagen_jax.sampling.drawing import prepare
from imagen_jax.sampling.images import read_info
from imagen_jax.stage.sampling_config import SamplingConfig
from imagen_jax.text.encoder import TextConfig, TextEncoder
from imagen_jax.text.encoders.t5 import T5Config
from tests import tiny
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
        raw = RawExample(key="k", image=content, caption="c")
        result = prepare_example(raw, PictureForm(image_size=8, min_size=4))
        kept = prepare_example(raw, PictureForm(image_size=8, min_size=4, image_format="original"))
        assert isinstance(result, Prepared | Rejection) and type(kept) is type(result)
        if isinstance(result, Prepared):
            assert Image.open(io.BytesIO(result.image)).size == (8, 8)
            assert isinstance(kept, Prepared) and kept.picture_mark == result.picture_mark
            assert kept.image == content or kept == result

    fuzz(pytestconfig, "images", lambda chance: damaged(chance, chance.choice(whole), whole), attempt)


def test_pictures_that_are_there_already(pytestconfig, tmp_path):
    """Files in the way of `sample` and `report` may hold anything."""
    whole = list(_whole_files())
    path = tmp_path / "there.png"

    def make(chance: random.Random) -> bytes:
        path.write_bytes(content := damaged(chance, chance.choice(whole), whole))
        return content

    def attempt(content: bytes) -> None:
        assert all(isinstance(one, str) for pair in read_info(str(path)).items() for one in pair)
        read_picture(path)

    fuzz(pytestconfig, "pictures", make, attempt)


def _cascade() -> Cascade:
    """Stages that draw 8 and 16 pixels; their parameters are never asked for."""
    text = TextConfig(
        encoder=T5Config(vocab_size=259, embed_dim=12, num_heads=2, head_dim=8, num_layers=1, mlp_dim=32),
        vocabulary_path="bytes",
        max_length=6,
    )
    stages = [
        TrainedStage(
            stage=stage, sampling=SamplingConfig(num_steps=2), text=text, text_fingerprint={}, config_hash="",
            weights=Weights({}, Path("none")), checkpoint="",
        )
        for stage in (tiny.BASE, dataclasses.replace(tiny.SR, image_size=16, low_res_size=8))
    ]  # fmt: skip
    return Cascade(stages=tuple(stages), encoder=TextEncoder(text))


def _image(chance: random.Random, whole: Sequence[bytes]) -> bytes:
    """A picture of the usual size or another, or one of any format, whole or damaged."""
    if chance.random() < 0.3:
        return damaged(chance, chance.choice(whole), whole)
    size = chance.choice(((16, 16), (16, 16), (16, 20), (32, 16), (1, 1), (1, 500), (8, 8), (17, 16)))
    image = Image.new(chance.choice(("RGB", "L", "1", "RGBA", "P", "LA", "I;16")), size)
    if chance.random() < 0.7:
        image.paste(image.getpixel((0, 0)) if chance.random() < 0.1 else 1, (0, 0, size[0] // 2, size[1]))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_images_and_masks_of_sample(pytestconfig, tmp_path):
    """The flags --mode, --image, --mask and their like, up to the programs that would draw."""
    whole, cascade = list(_whole_files()), _cascade()
    image, mask = tmp_path / "image", tmp_path / "mask"
    numbers, pixels = (0, 1, 2, 4, 8, -1), (0, 1, 2, 4, 8, 8, 8, -1, 2**31)
    sides = (8, 16, 24, 32, 0, 1, 17, 2**31, 10**30)
    fractions = (0.0, 0.5, 1.0, 1.5, -1.0, float("nan"), float("inf"), 1e-300)
    flags: dict[str, Callable[[random.Random], Any]] = {
        "size": lambda chance: (chance.choice(sides), chance.choice(sides)),
        "border": lambda chance: tuple(chance.choice(pixels) for _ in range(chance.choice((4, 4, 4, 3)))),
        "strength": lambda chance: chance.choice(fractions),
        "aug_level": lambda chance: chance.choice(fractions),
        "num_resamples": lambda chance: chance.choice(numbers),
        "jump_length": lambda chance: chance.choice(numbers),
    }
    needs = {"inpaint": ("mask",), "outpaint": ("border",)}

    def make(chance: random.Random) -> tuple[SampleOptions, bytes, bytes]:
        image.write_bytes(content := _image(chance, whole))
        mask.write_bytes(marks := _image(chance, whole))
        mode = chance.choice(MODES)
        names = {*needs.get(mode, ()), *chance.sample(sorted(flags), chance.choice((0, 0, 1, 2)))}
        given: dict[str, Any] = {name: flags[name](chance) for name in sorted(names - {"mask"})}
        if "mask" in names or chance.random() < 0.1:
            given["mask"] = str(mask)
        return SampleOptions(output="out", mode=mode, image=str(image), **given), content, marks

    def attempt(case: tuple[SampleOptions, bytes, bytes]) -> None:
        options = case[0]
        stages = [one.stage for one in cascade.stages]
        changed = cascade.configure(lambda stage, sampling: changed_settings(stage, sampling, stages, options))
        images, settings = images_and_settings(changed, options, 2)
        chosen, request = changed.job(options.mode, ["a cube", "a ball"], images, **settings)
        prepare(chosen.stages, request)

    with redirect_stdout(io.StringIO()):
        fuzz(pytestconfig, "sample images", make, attempt)
