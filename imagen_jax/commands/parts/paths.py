"""Paths on the command line."""

import argparse
import os

from imagen_jax.checks import check_path
from imagen_jax.errors import UserError


def user_path(text: str) -> str:
    """Reads a path of this machine or an address in a bucket.

    A leading ~ is the home directory, which no shell expands after an equals sign.
    """
    try:
        check_path("the path", text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return os.path.expanduser(text)
