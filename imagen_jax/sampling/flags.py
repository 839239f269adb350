"""Flags of `imagen_jax sample`; nothing heavy is imported, so `--help` stays quick."""

import argparse
from collections.abc import Callable
from typing import Any

from imagen_jax.errors import UserError

MODES = ("text", "image_to_image", "inpaint", "outpaint", "vary", "upscale")
SAMPLERS = ("ddpm", "ddim", "dpm++", "dpm++sde", "heun")


def add_sample_flags(sub: argparse.ArgumentParser) -> None:
    """Adds them all."""
    sub.add_argument("captions", nargs="*", metavar="CAPTION", help='what to draw, e.g. "a red cube"')
    sub.add_argument(
        "--checkpoint",
        required=True,
        metavar="DIR",
        help="run directory of a cascade or one stage, or gin file of a cascade",
    )
    sub.add_argument("--prompts_file", metavar="FILE", help="text file with one caption a line")
    sub.add_argument("--output", required=True, metavar="DIR", help="folder for the PNG files")
    sub.add_argument("--overwrite", action="store_true", help="replace images that are already in the folder")
    sub.add_argument("--stage", metavar="NAME", help="stop after this stage, e.g. base")
    sub.add_argument("--first_stage", metavar="NAME", help="begin with this stage; it draws from --image")
    sub.add_argument("--batch_size", type=int, default=64, metavar="N", help="images drawn at a time (default 64)")
    sub.add_argument(
        "--seed", type=_values(int), default=0, metavar="N[,N…]", help="one for all, or one an image (default 0)"
    )
    sub.add_argument("--size", type=_size, metavar="HxW", help="height and width of the images; default: as trained")
    how = sub.add_argument_group("how to sample")
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
    how.add_argument("--thresholding", choices=("dynamic", "static", "none"), help="default: as configured")
    how.add_argument("--percentile", type=float, metavar="P", help="of dynamic thresholding, 0 to 100")
    how.add_argument("--tile_size", type=int, metavar="N", help="draw in overlapping tiles of N pixels")
    how.add_argument(
        "--tile_overlap", type=int, metavar="N", help="pixels that they share (default a quarter of a tile)"
    )
    how.add_argument(
        "--weights",
        choices=("auto", "resident", "offload"),
        default="auto",
        help="stages on the devices at once or in turn",
    )
    how.add_argument("--spatial", type=int, default=1, metavar="N", help="devices that share one image's height")
    change = sub.add_argument_group("images to be changed")
    change.add_argument("--mode", choices=MODES, default="text", help="what to do (default text: draw from captions)")
    change.add_argument("--image", metavar="FILE", help="the image to work on, for every caption")
    change.add_argument("--mask", metavar="FILE", help="inpaint: as large as the image, white where to draw")
    change.add_argument(
        "--border", type=_values(int), metavar="T,B,L,R", help="outpaint: pixels to add at top, bottom, left and right"
    )
    change.add_argument(
        "--strength", type=float, metavar="S", help="0 keeps the image, 1 nothing of it (image_to_image: 0.6; else 1)"
    )
    change.add_argument("--num_resamples", type=int, metavar="N", help="inpaint, outpaint: rounds of each stretch (4)")
    change.add_argument("--jump_length", type=int, metavar="N", help="inpaint, outpaint: steps of a stretch (4)")


def _values(kind: type) -> Callable[[str], Any]:
    """A reader of one number, or of several with commas between as a tuple."""

    def read(text: str) -> Any:
        try:
            values = tuple(kind(word) for word in text.split(","))
        except ValueError as error:
            what = "whole numbers" if kind is int else "numbers"
            raise argparse.ArgumentTypeError(f"{text!r} is not {what} with commas between") from error
        return values if "," in text else values[0]

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
            with open(args.prompts_file, encoding="utf-8") as file:
                captions += [line.strip() for line in file if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--prompts_file={args.prompts_file}: {error}") from error
    if not captions:
        raise UserError('nothing to draw; give captions ("a red cube") or --prompts_file=FILE')
    return captions


def options_of(args: argparse.Namespace) -> dict[str, Any]:
    """Every other flag that was given, by name."""
    taken = ("command", "captions", "checkpoint", "prompts_file")
    return {name: value for name, value in vars(args).items() if name not in taken and value is not None}
