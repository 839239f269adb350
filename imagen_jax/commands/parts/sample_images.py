"""The given image of `imagen_jax sample`, at a size that the stages draw, and the settings of its mode."""

import math
from typing import Any

import numpy as np
from PIL import Image

from imagen_jax.commands.parts.sample_options import SampleOptions
from imagen_jax.errors import UserError
from imagen_jax.sampling.cascade import Cascade
from imagen_jax.sampling.images import broken_part, fitted, fitted_mask, is_transparent, read_image, read_mask
from imagen_jax.sampling.loading import size_unit, stage_sizes
from imagen_jax.sampling.request import SETTINGS

# The setting of `Cascade.job` that each flag of a mode is.
MODE_FLAGS = {
    "mask": "masks",
    "border": "border",
    "strength": "strength",
    "num_resamples": "num_resamples",
    "jump_length": "jump_length",
}


def images_and_settings(
    cascade: Cascade, options: SampleOptions, number: int
) -> tuple[np.ndarray | None, dict[str, Any]]:
    """Reads the image and the mask of the flags.

    Args:
      cascade: the stages that will draw.
      options: the flags.
      number: captions; each gets the same image.

    Returns:
      Images float [number, h, w, 3] in [-1, 1], None in the mode "text"; and the mode's settings for `Cascade.job`.

    Raises:
      UserError: flags and mode do not agree, or a file cannot be read.
    """
    settings = {MODE_FLAGS[flag]: value for flag, value in options.given(*MODE_FLAGS).items()}
    if options.mode in ("vary", "upscale") and options.aug_level is not None:
        settings["aug_level"] = None  # The stages have it already.
    _check_flags(options)
    if options.image is None:
        return None, settings
    image = read_image(options.image)
    if problem := broken_part(options.image):
        print(f"{options.image}: {problem}")
    if is_transparent(options.image):
        print(f"{options.image} is partly transparent and is put on white")
    size = _nearest_size(cascade, options.mode, image, options.size)
    if size != (image.height, image.width):
        print(f"{options.image} is {image.height}x{image.width} and is drawn as {size[0]}x{size[1]} (height x width)")
    if options.mask is not None:
        mask = fitted_mask(read_mask(options.mask, image), size)
        settings["masks"] = np.broadcast_to(mask, (number, *size))
    return np.broadcast_to(fitted(image, size), (number, *size, 3)), settings


def _check_flags(options: SampleOptions) -> None:
    """Raises UserError if a flag is missing, or one is there that the mode has no use for."""
    mode, given = options.mode, options.given("image", *MODE_FLAGS)
    for flag, to in MODE_FLAGS.items():
        if flag in given and to not in SETTINGS[mode]:
            raise UserError(f"--{flag} does nothing with --mode={mode}")
    for flag, needing in (("mask", "inpaint"), ("border", "outpaint")):
        if mode == needing and flag not in given:
            raise UserError(f"--mode={mode} needs --{flag}")
    if mode == "text" and "image" in given:
        raise UserError("--image needs a --mode: image_to_image, inpaint, outpaint, vary or upscale")
    if mode != "text" and "image" not in given:
        raise UserError(f"--mode={mode} needs --image=FILE")


def _nearest_size(cascade: Cascade, mode: str, image: Image.Image, asked: tuple[int, int] | None) -> tuple[int, int]:
    """The size to give an image: the one asked for, or with its own proportions one that the stages can draw."""
    stages = [one.stage for one in (cascade.above_base() if mode in ("vary", "upscale") else cascade).stages]
    scale = math.prod(stage.scale for stage in stages) if mode == "upscale" else 1
    if asked is not None:
        stage_sizes(stages, asked)
        return asked[0] // scale, asked[1] // scale
    if mode == "outpaint":
        return image.height, image.width
    # Of the last stage's size, by its shorter side; an image to be enlarged stays as large as it is.
    enlarged = 1.0 if mode == "upscale" else stage_sizes(stages, None)[-1][0] / min(image.size)
    unit = size_unit(stages) // scale
    height, width = (max(round(side * enlarged / unit), 1) * unit for side in (image.height, image.width))
    return height, width
