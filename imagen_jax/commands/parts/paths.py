"""Paths on the command line."""

import argparse
import os

from imagen_jax.checks import check_path
from imagen_jax.errors import UserError


def user_path(text: str) -> str:
    """Reads a path of this machine; a leading ~ is the home directory, which no shell expands after an equals sign."""
    return _path(text)


def encoder_path(text: str) -> str:
    """Reads the path of a pretrained text encoder, which may lie in a bucket: gs://bucket/folder."""
    return _path(text, "gs")


def _path(text: str, *schemes: str) -> str:
    try:
        check_path("the path", text, schemes)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return os.path.expanduser(text)
