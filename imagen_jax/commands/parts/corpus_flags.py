"""Flags that every command which builds a corpus has, for the form of its pictures and the size of its files."""

import argparse
from typing import Any

_FORM = ("image_format", "quality", "shard_size")


def add_form_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    parser.add_argument(
        "--image_format",
        default="png",
        metavar="FORMAT",
        help="of the pictures in it: png (default), jpeg, webp, or original, which keeps JPEG files as they are",
    )
    parser.add_argument(
        "--quality", type=int, metavar="N", help="of jpeg and webp, 1 to 100; webp without it is lossless"
    )
    parser.add_argument(
        "--shard_size", type=int, metavar="BYTES", help="most bytes of records in a file (default: 8192 records)"
    )


def form_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Values of the flags, as settings of `data.builder.BuildConfig`."""
    return {name: getattr(options, name) for name in _FORM}
