"""`imagen_jax sample`: captions, and images to be changed, to PNG files (`parts.sample_run`)."""

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

from imagen_jax.commands.parts.command import Command
from imagen_jax.commands.parts.paths import add_lora_flag, add_text_encoder_flag, user_path
from imagen_jax.commands.parts.sample_options import MODES, SAMPLERS, THRESHOLDINGS, WEIGHTS, SampleOptions
from imagen_jax.errors import UserError
from imagen_jax.files import local_copy, shipped_file


def add_flags(sub: argparse.ArgumentParser) -> None:
    """Adds captions, checkpoint and the flags of `SampleOptions`."""
    _add_common_flags(sub)
    _add_sampling_flags(sub.add_argument_group("how to sample"))
    _add_image_flags(sub.add_argument_group("images to be changed"))
    # The defaults stand in SampleOptions; an option without one there is None.
    sub.set_defaults(**{field.name: field.default for field in _optional_fields()} | {"lora": [], "embedding": []})


def _optional_fields() -> list[dataclasses.Field]:
    return [field for field in dataclasses.fields(SampleOptions) if field.default is not dataclasses.MISSING]


def _add_common_flags(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("captions", nargs="*", metavar="CAPTION", help='what to draw, e.g. "a red cube"')
    sub.add_argument(
        "--checkpoint",
        type=user_path,
        required=True,
        metavar="DIR",
        help="run directory of a cascade or one stage, or gin file of a cascade",
    )
    add_text_encoder_flag(sub)
    add_lora_flag(sub)
    sub.add_argument("--prompts_file", type=user_path, metavar="FILE", help="text file with one caption a line")
    sub.add_argument(
        "--embedding",
        type=user_path,
        action="append",
        metavar="FILE",
        help="repeatable: a learned word, which captions may then hold",
    )
    sub.add_argument("--num_images", type=int, metavar="N", help="images a caption (default %(default)s)")
    sub.add_argument(
        "--list", action="store_true", help="also write OUTPUT/list.jsonl, images with captions as build_corpus takes"
    )
    sub.add_argument("--output", type=user_path, required=True, metavar="DIR", help="folder for the PNG files")
    sub.add_argument("--overwrite", action="store_true", help="replace images that are already in the folder")
    sub.add_argument("--stage", metavar="NAME", help="stop after this stage, e.g. base")
    sub.add_argument("--first_stage", metavar="NAME", help="begin with this stage; it draws from --image")
    sub.add_argument("--batch_size", type=int, metavar="N", help="images drawn at a time (default %(default)s)")
    sub.add_argument(
        "--seed", type=_values(int), metavar="N[,N…]", help="one for all, or one an image (default %(default)s)"
    )
    sub.add_argument("--size", type=_size, metavar="HxW", help="height and width of the images; default: as trained")


def _add_sampling_flags(how: argparse._ArgumentGroup) -> None:
    how.add_argument(
        "--guidance_weight",
        type=_values(float),
        metavar="W[,W…]",
        help="of the base stage, or one for each stage; 1 is off; default: as configured",
    )
    how.add_argument("--negative_prompt", metavar="TEXT", help="what guidance leads away from; default: the null text")
    how.add_argument(
        "--aug_level",
        type=_values(float),
        metavar="A[,A…]",
        help="noise on the low-resolution input, 0 to 1; of all super-resolution stages, or one for each",
    )
    how.add_argument("--sampler", choices=SAMPLERS, help="of every stage; default: as configured")
    how.add_argument(
        "--num_steps", type=_values(int), metavar="N[,N…]", help="denoising steps of all stages, or one for each stage"
    )
    how.add_argument("--thresholding", choices=THRESHOLDINGS, help="default: as configured")
    how.add_argument("--percentile", type=float, metavar="P", help="of dynamic thresholding, 0 to 100")
    how.add_argument("--tile_size", type=int, metavar="N", help="draw in overlapping tiles of N pixels")
    how.add_argument(
        "--tile_overlap", type=int, metavar="N", help="pixels that they share (default a quarter of a tile)"
    )
    how.add_argument(
        "--weights",
        choices=WEIGHTS,
        help="stages on the devices at once or in turn",
    )
    how.add_argument("--spatial", type=int, metavar="N", help="devices that share one image's height")


def _add_image_flags(change: argparse._ArgumentGroup) -> None:
    change.add_argument("--mode", choices=MODES, help="what to do (default %(default)s: draw from captions)")
    change.add_argument("--image", type=user_path, metavar="FILE", help="the image to work on, for every caption")
    change.add_argument(
        "--mask", type=user_path, metavar="FILE", help="inpaint: as large as the image, white where to draw"
    )
    change.add_argument(
        "--border", type=_list(int), metavar="T,B,L,R", help="outpaint: pixels to add at top, bottom, left and right"
    )
    change.add_argument(
        "--strength", type=float, metavar="S", help="0 keeps the image, 1 nothing of it (image_to_image: 0.6; else 1)"
    )
    change.add_argument("--num_resamples", type=int, metavar="N", help="inpaint, outpaint: rounds of each stretch (4)")
    change.add_argument("--jump_length", type=int, metavar="N", help="inpaint, outpaint: steps of a stretch (4)")


def _list(kind: type) -> Callable[[str], tuple]:
    """A reader of numbers with commas between."""

    def read(text: str) -> tuple:
        try:
            return tuple(kind(word) for word in text.split(","))
        except ValueError as error:
            what = "whole numbers" if kind is int else "numbers"
            raise argparse.ArgumentTypeError(f"{text!r} is not {what} with commas between") from error

    return read


def _values(kind: type) -> Callable[[str], Any]:
    """A reader of one number, or of several with commas between as a tuple."""
    read_list = _list(kind)

    def read(text: str) -> Any:
        values = read_list(text)
        return values if len(values) > 1 else values[0]

    return read


def _size(text: str) -> tuple[int, int]:
    words = text.lower().split("x")
    if len(words) != 2 or not all(word.isdigit() for word in words):
        raise argparse.ArgumentTypeError(f"{text!r} is not HEIGHTxWIDTH, e.g. 64x96")
    return int(words[0]), int(words[1])


def captions_of(args: argparse.Namespace) -> list[str]:
    """Captions of the command line and of --prompts_file.

    Raises:
      UserError: there is none, or the file cannot be read.
    """
    captions = list(args.captions)
    if args.prompts_file:
        try:
            with open(local_copy(shipped_file(args.prompts_file)), encoding="utf-8-sig") as file:
                captions += [line.strip() for line in file if line.strip()]
        except OSError as error:
            raise UserError(f"--prompts_file={args.prompts_file} cannot be read ({error}); check the path") from error
        except UnicodeDecodeError as error:
            raise UserError(f"--prompts_file={args.prompts_file} is not UTF-8 ({error}); save it as UTF-8") from error
    if not captions:
        raise UserError('nothing to draw; give captions ("a red cube") or --prompts_file=FILE')
    return captions


def run(args: argparse.Namespace) -> None:
    """Draws and writes the images.

    Raises:
      UserError: see `captions_of`, `SampleOptions` and `draw_to_files`.
    """
    captions = captions_of(args)
    options = SampleOptions(**{field.name: getattr(args, field.name) for field in dataclasses.fields(SampleOptions)})
    from imagen_jax.commands.parts.sample_run import draw_to_files

    draw_to_files(args.checkpoint, captions, options)


COMMAND = Command(
    name="sample",
    help="draw images from captions, or change images, with a trained cascade",
    run=run,
    add_flags=add_flags,
    order=7,
)
