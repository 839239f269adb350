"""`imagen_jax sample`: captions, and images to be changed, to PNG files.

Images are written as they are drawn. An image that is there already and says of itself that it was drawn from the same
caption, seed, settings and checkpoint is left as it is, so that a long list goes on where it stopped; one that says
otherwise stops the command before anything is drawn.
"""

import dataclasses
import json
import math
import os
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from imagen_jax.commands.parts.sample_images import images_and_settings
from imagen_jax.commands.parts.sample_options import SampleOptions
from imagen_jax.commands.parts.sample_settings import changed_settings
from imagen_jax.errors import UserError
from imagen_jax.files import alone_in, as_path, files_under, is_remote, make_dirs, sha256_of_file, write_text
from imagen_jax.sampling.cascade import Cascade
from imagen_jax.sampling.images import as_info, enlarge, read_image, read_info, sheet, write_png
from imagen_jax.sampling.request import Request
from imagen_jax.sharding.mesh import MeshConfig
from imagen_jax.stage.sampling_config import SamplingConfig

MAX_SHOWN = 64
LOCK, LIST = "sample.lock", "list.jsonl"


def draw_to_files(checkpoint: str, captions: Sequence[str], options: SampleOptions) -> None:
    """Writes OUTPUT/NNNNN.png, OUTPUT/NNNNN_STAGE.png of the stages below, and OUTPUT.png, which shows the first ones.

    Args:
      checkpoint: cascade directory, run directory of one stage, or gin file of a cascade.
      captions: `options.num_images` images each, beside each other.
      options: what else is asked for.

    Raises:
      UserError: options that do not agree with the stages or the mode, images in the way, or another process that
        draws into the same folder.
    """
    captions = [caption for caption in captions for _ in range(options.num_images)]
    cascade, request = _job(checkpoint, captions, options)
    told = _told(cascade, options)
    seeds = request.seed if not isinstance(request.seed, int) else [request.seed] * len(captions)
    infos = [
        {"prompt": caption, "index": i, "seed": int(seed), **told}
        for i, (caption, seed) in enumerate(zip(captions, seeds, strict=True))
    ]
    output = options.output.rstrip("/") or "/"
    paths = [os.path.join(output, f"{i:05d}.png") for i in range(len(captions))]
    sheet_path = output + ".png"
    _check_writable(output)
    with alone_in(output, LOCK, f"--output={output}", "drawn into"):
        _draw(cascade, request, paths, infos, sheet_path, options, f"sample {checkpoint}")
        if options.list:
            _write_list(output, paths, captions)
        shown = {"prompts": list(captions[:MAX_SHOWN]), "seed": options.seed, **told}
        _write_sheet(sheet_path, paths[:MAX_SHOWN], shown)
    number = "1 image" if len(captions) == 1 else f"{len(captions)} images"
    print(f"{number} in {output}, {'all' if len(captions) <= MAX_SHOWN else 'the first'} in {sheet_path}")


def _draw(
    cascade: Cascade,
    request: Request,
    paths: list[str],
    infos: list[dict[str, Any]],
    sheet_path: str,
    options: SampleOptions,
    label: str,
) -> None:
    """Writes the images that are not there yet."""
    done = set() if options.overwrite else _already_drawn(paths, infos, sheet_path)
    rows = [i for i in range(len(paths)) if i not in done]
    if done:
        print(f"{len(done)} of {len(paths)} images are there already")
    if not rows:
        return
    for chosen, drawn in cascade.stream(request, rows=rows, batch_size=options.batch_size, label=label):
        for place, i in enumerate(chosen):
            for name, part in zip(cascade.names[:-1], drawn[:-1], strict=True):
                write_png(f"{paths[i].removesuffix('.png')}_{name}.png", part[place], infos[i])
            # Last, because it is by this one that an image counts as drawn.
            write_png(paths[i], drawn[-1][place], infos[i])


def _check_writable(folder: str) -> None:
    """Writes a file for a moment where the pictures will be, before anything is drawn; the folder is made with them.

    Raises:
      UserError: it cannot be written.
    """
    if is_remote(folder):
        try:
            make_dirs(folder)
        except OSError as error:
            raise UserError(f"--output={folder} cannot be written ({error}); choose another folder") from error
        return
    places = {os.path.abspath(folder), os.path.dirname(os.path.abspath(folder))}
    try:
        for place in places:
            while not os.path.lexists(place):
                place = os.path.dirname(place)
            with tempfile.TemporaryFile(dir=place):
                pass
    except OSError as error:
        raise UserError(f"--output={folder} cannot be written ({error}); choose another folder") from error


def _job(checkpoint: str, captions: Sequence[str], options: SampleOptions) -> tuple[Cascade, Request]:
    """Loads the stages that draw and validates the request."""
    mesh = MeshConfig(spatial=options.spatial) if options.spatial != 1 else None
    cascade = Cascade.load(
        checkpoint,
        mesh=mesh,
        weights=options.weights,
        text_encoder=options.text_encoder,
        lora=options.lora,
        embeddings=options.embedding,
    )
    cascade = cascade.only(options.first_stage, options.stage)
    stages = [one.stage for one in cascade.stages]
    cascade = cascade.configure(lambda stage, sampling: changed_settings(stage, sampling, stages, options))
    images, settings = images_and_settings(cascade, options, len(captions))
    if options.negative_prompt is not None:
        settings["negative_prompts"] = [options.negative_prompt] * len(captions)
    if options.size is not None and options.mode == "text":
        settings["size"] = options.size
    return cascade.job(options.mode, captions, images, seed=options.seed, **settings)


def _told(cascade: Cascade, options: SampleOptions) -> dict[str, Any]:
    """The text chunks of an image besides its caption and seed: settings, files and checkpoints."""
    told: dict[str, Any] = {} if options.mode == "text" else {"mode": options.mode}
    told |= options.given(
        "negative_prompt", "image", "mask", "border", "strength", "num_resamples", "jump_length", "size"
    )
    # A path may hold another picture tomorrow.
    told |= {f"{name}_sha256": sha256_of_file(str(path)) for name, path in options.given("image", "mask").items()}
    if options.embedding:
        told["embedding_sha256"] = [sha256_of_file(path) for path in options.embedding]
    for field in dataclasses.fields(SamplingConfig):
        values = [getattr(one.sampling, field.name) for one in cascade.stages]
        told[field.name] = [v if isinstance(v, str | int | float | None) else repr(v) for v in values]
    told["checkpoint"] = [one.checkpoint for one in cascade.stages]
    return {**told, "stages": cascade.names, "config_hash": cascade.config_hash}


def _already_drawn(paths: list[str], infos: list[dict[str, Any]], sheet_path: str) -> set[int]:
    """Numbers of the images that are there as they would be drawn; an image of other settings is in the way."""
    names = files_under(os.path.dirname(paths[0]))
    there = [i for i, path in enumerate(paths) if os.path.basename(path) in names]
    other = [i for i in there if read_info(paths[i]) != as_info(infos[i])]
    if other:
        raise UserError(
            f"images exist already that were drawn otherwise: {len(other)}, the first is {paths[other[0]]}; "
            "choose another --output or add --overwrite"
        )
    if as_path(sheet_path).exists() and not there:
        raise UserError(f"{sheet_path} exists already; choose another --output or add --overwrite")
    return set(there)


def _write_list(folder: str, paths: Sequence[str], captions: Sequence[str]) -> None:
    """The images with their captions, as a list that `build_corpus` takes."""
    rows = zip(paths, captions, strict=True)
    lines = [json.dumps({"image": os.path.basename(path), "caption": caption}) for path, caption in rows]
    write_text(as_path(folder) / LIST, "\n".join(lines) + "\n")


def _write_sheet(path: str, images: Sequence[str], info: dict[str, Any]) -> None:
    """One picture of the first images."""
    pictures = [np.asarray(read_image(image)) for image in images]
    columns = min(8, math.ceil(math.sqrt(len(pictures))))
    whole = enlarge(sheet(pictures, columns), max(1, 128 // pictures[0].shape[0]))
    write_png(path, whole, info)
