"""`imagen_jax sample`: captions, and images to be changed, to PNG files.

Images are written as they are drawn. An image that is there already and says of itself that it was drawn from the same
caption, seed, settings and checkpoint is left as it is, so that a long list goes on where it stopped; one that says
otherwise stops the command before anything is drawn.
"""

import dataclasses
import hashlib
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from imagen_jax.diffusion.samplers import DDIMSampler, DDPMSampler, DPMSolverSampler, HeunSampler, Sampler
from imagen_jax.diffusion.schedules import EDMSchedule
from imagen_jax.diffusion.time_grids import UniformGrid
from imagen_jax.errors import UserError
from imagen_jax.sampling.cascade import SETTINGS, Cascade
from imagen_jax.sampling.images import (
    as_info,
    enlarge,
    fitted,
    fitted_mask,
    is_transparent,
    read_image,
    read_info,
    read_mask,
    sheet,
    write_png,
)
from imagen_jax.sampling.loading import size_unit, stage_sizes
from imagen_jax.sharding.mesh import MeshConfig
from imagen_jax.stage.sampling_config import SamplingConfig
from imagen_jax.stage.spec import Stage

SAMPLERS: dict[str, Sampler] = {
    "ddpm": DDPMSampler(),
    "ddim": DDIMSampler(),
    "dpm++": DPMSolverSampler(),
    "dpm++sde": DPMSolverSampler(eta=1.0),
    "heun": HeunSampler(),
}
MAX_SHOWN = 64


def run(checkpoint: str, captions: Sequence[str], **options: Any) -> None:
    """Writes OUTPUT/NNNNN.png, OUTPUT/NNNNN_STAGE.png of the stages below, and OUTPUT.png, which shows the first ones.

    Args:
      checkpoint: cascade directory, run directory of one stage, or gin file of a cascade.
      captions: one image each.
      options: flags of `sampling.flags` by name; `output` is needed.

    Raises:
      UserError: flags that do not agree with each other or with the stages, or images in the way.
    """
    output, overwrite, mode = options["output"], options.get("overwrite", False), options.get("mode", "text")
    spatial = options.get("spatial", 1)
    mesh = MeshConfig(spatial=spatial) if spatial != 1 else None
    cascade = Cascade.load(checkpoint, mesh=mesh, weights=options.get("weights", "auto"))
    cascade = cascade.only(options.get("first_stage"), options.get("stage"))
    stages = [one.stage for one in cascade.stages]
    cascade = cascade.configure(lambda stage, sampling: _changed(stage, sampling, stages, options))
    images, settings = _images(cascade, mode, len(captions), options)
    negative = options.get("negative_prompt")
    if negative is not None:
        settings["negative_prompts"] = [negative] * len(captions)
    if "size" in options and mode == "text":
        settings["size"] = options["size"]
    cascade, request = cascade.job(mode, captions, images, seed=options.get("seed", 0), **settings)

    told = _told(cascade, mode, options)
    seeds = request.seed if not isinstance(request.seed, int) else [request.seed] * len(captions)
    infos = [
        {"prompt": caption, "index": i, "seed": int(seed), **told}
        for i, (caption, seed) in enumerate(zip(captions, seeds, strict=True))
    ]
    paths = [os.path.join(output, f"{i:05d}.png") for i in range(len(captions))]
    sheet_path = output.rstrip("/") + ".png"
    sheet_info = {"prompts": list(captions[:MAX_SHOWN]), "seed": options.get("seed", 0), **told}
    done = set() if overwrite else _already_drawn(paths, infos, sheet_path)
    rows = [i for i in range(len(captions)) if i not in done]
    if done:
        print(f"{len(done)} of {len(captions)} images are there already")
    if rows:
        stream = cascade.stream(
            request, rows=rows, batch_size=options.get("batch_size", 64), label=f"sample {checkpoint}"
        )
        for chosen, drawn in stream:
            for place, i in enumerate(chosen):
                for name, part in zip(cascade.names[:-1], drawn[:-1], strict=True):
                    write_png(paths[i].replace(".png", f"_{name}.png"), part[place], infos[i])
                # Last, because it is by this one that an image counts as drawn.
                write_png(paths[i], drawn[-1][place], infos[i])
    _write_sheet(sheet_path, paths[:MAX_SHOWN], sheet_info)
    number = "1 image" if len(captions) == 1 else f"{len(captions)} images"
    print(f"{number} in {output}, {'all' if len(captions) <= MAX_SHOWN else 'the first'} in {sheet_path}")


def _changed(
    stage: Stage, sampling: SamplingConfig, stages: Sequence[Stage], options: dict[str, Any]
) -> SamplingConfig:
    """A stage's settings with those of the flags."""
    changes: dict[str, Any] = {name: options[name] for name in ("thresholding", "percentile") if name in options}
    above = [one for one in stages if one.low_res_size is not None]
    # A list has one value for each of these stages; a single value is for those of the last column.
    for name, listed, single in (
        ("num_steps", stages, stages),
        ("guidance_weight", stages, [one for one in stages if one.low_res_size is None]),
        ("aug_level", above, above),
    ):
        value = options.get(name)
        if isinstance(value, tuple):
            if len(value) != len(listed):
                names = ", ".join(one.name for one in listed)
                raise UserError(f"--{name} has {len(value)} values for the stages {names}; give one, or one for each")
            if stage in listed:
                changes[name] = value[listed.index(stage)]
        elif value is not None and stage in single:
            changes[name] = value
    if "sampler" in options:
        changes["sampler"] = SAMPLERS[options["sampler"]]
        if options["sampler"] == "heun":
            # The stage's times are of its own schedule.
            changes |= {"schedule": EDMSchedule(), "times": UniformGrid()}
    if "tile_overlap" in options and "tile_size" not in options:
        raise UserError("--tile_overlap needs --tile_size")
    if "tile_size" in options:
        changes["tile_size"] = options["tile_size"]
        changes["tile_overlap"] = options.get("tile_overlap", options["tile_size"] // 4)
    return dataclasses.replace(sampling, **changes)


def _images(
    cascade: Cascade, mode: str, number: int, options: dict[str, Any]
) -> tuple[np.ndarray | None, dict[str, Any]]:
    """The given image, once for each caption and at a size that the stages draw, and the mode's settings."""
    names = {"mask": "masks", "border": "border", "strength": "strength"}
    names |= {name: name for name in ("num_resamples", "jump_length")}
    settings = {to: options[name] for name, to in names.items() if name in options}
    if mode in ("vary", "upscale") and "aug_level" in options:
        settings["aug_level"] = None  # The stages have it already.
    for flag, to in names.items():
        if flag in options and to not in SETTINGS[mode]:
            raise UserError(f"--{flag} does nothing with --mode={mode}")
    for flag, modes in (("mask", ("inpaint",)), ("border", ("outpaint",))):
        if mode in modes and flag not in options:
            raise UserError(f"--mode={mode} needs --{flag}")
    if mode == "text":
        if "image" in options:
            raise UserError("--image needs a --mode: image_to_image, inpaint, outpaint, vary or upscale")
        return None, settings
    if "image" not in options:
        raise UserError(f"--mode={mode} needs --image=FILE")
    image = read_image(options["image"])
    if is_transparent(options["image"]):
        print(f"{options['image']} is partly transparent and is put on white")
    size = _nearest_size(cascade, mode, image, options.get("size"))
    if size != (image.height, image.width):
        print(
            f"{options['image']} is {image.height}x{image.width} and is drawn as {size[0]}x{size[1]} (height x width)"
        )
    if "mask" in options:
        mask = fitted_mask(read_mask(options["mask"], image), size)
        settings["masks"] = np.broadcast_to(mask, (number, *size))
    return np.broadcast_to(fitted(image, size), (number, *size, 3)), settings


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


def _told(cascade: Cascade, mode: str, options: dict[str, Any]) -> dict[str, Any]:
    """Facts of an image's drawing that its file keeps, besides its caption and seed."""
    told: dict[str, Any] = {} if mode == "text" else {"mode": mode}
    kept = ("negative_prompt", "image", "mask", "border", "strength", "num_resamples", "jump_length", "size")
    told |= {name: options[name] for name in kept if name in options}
    # A path may hold another picture tomorrow.
    told |= {f"{name}_sha256": _sha256(options[name]) for name in ("image", "mask") if name in options}
    for field in dataclasses.fields(SamplingConfig):
        values = [getattr(one.sampling, field.name) for one in cascade.stages]
        told[field.name] = [v if isinstance(v, str | int | float | None) else repr(v) for v in values]
    told["checkpoint"] = [one.checkpoint for one in cascade.stages]
    return {**told, "stages": cascade.names, "config_hash": cascade.config_hash}


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _already_drawn(paths: list[str], infos: list[dict[str, Any]], sheet_path: str) -> set[int]:
    """Numbers of the images that are there as they would be drawn; an image of other settings is in the way."""
    there = [i for i, path in enumerate(paths) if os.path.exists(path)]
    other = [i for i in there if read_info(paths[i]) != as_info(infos[i])]
    if other:
        raise UserError(
            f"images exist already that were drawn otherwise: {len(other)}, the first is {paths[other[0]]}; "
            "choose another --output or add --overwrite"
        )
    if os.path.exists(sheet_path) and not there:
        raise UserError(f"{sheet_path} exists already; choose another --output or add --overwrite")
    return set(there)


def _write_sheet(path: str, images: Sequence[str], info: dict[str, Any]) -> None:
    """One picture of the first images."""
    pictures = [np.asarray(read_image(image)) for image in images]
    columns = min(8, math.ceil(math.sqrt(len(pictures))))
    whole = enlarge(sheet(pictures, columns), max(1, 128 // pictures[0].shape[0]))
    write_png(path, whole, info)
