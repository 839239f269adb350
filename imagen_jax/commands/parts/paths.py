"""Paths on the command line, and the flag of LoRAs, which are paths with weights."""

import argparse

from imagen_jax.checks import check_path, with_home
from imagen_jax.errors import UserError


def user_path(text: str) -> str:
    """Reads a path of this machine, where a leading ~ is the home directory, or an address in a bucket."""
    try:
        check_path("the path", text)
        return with_home("the path", text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def add_text_encoder_flag(sub: argparse.ArgumentParser) -> None:
    """Adds --text_encoder, for who draws."""
    sub.add_argument(
        "--text_encoder",
        type=user_path,
        metavar="PATH",
        help="pretrained text encoder; default: where the checkpoint says",
    )


def add_lora_flag(sub: argparse.ArgumentParser) -> None:
    """Adds --lora, which may be given several times."""
    sub.add_argument(
        "--lora",
        type=user_path,
        action="append",
        default=[],
        metavar="DIR[:W]",
        help="repeatable: LoRA run, or exported LoRA, to merge with weight W (1) into the stage it was trained on",
    )
