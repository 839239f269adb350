"""Paths on the command line."""

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
