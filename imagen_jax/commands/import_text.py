"""`imagen_jax import_text`: another program's text encoder to a copy that loads fast."""

import argparse

from imagen_jax.commands.parts.command import Command
from imagen_jax.commands.parts.paths import encoder_path, user_path


def add_flags(sub: argparse.ArgumentParser) -> None:
    """Adds the flags that name the encoder and its copy."""
    sub.add_argument(
        "--from",
        type=encoder_path,
        dest="source",
        required=True,
        metavar="PATH",
        help="t5x checkpoint (local or gs://), or Hugging Face folder with .safetensors files",
    )
    sub.add_argument("--to", type=user_path, dest="directory", required=True, metavar="DIR", help="copy to write")
    sub.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of the matrices (default float32)"
    )
    sub.add_argument("--overwrite", action="store_true", help="replace a copy that is there")


def run(args: argparse.Namespace) -> None:
    """Writes the copy."""
    from imagen_jax.text.weights.encoder_copy import import_text

    import_text(args.source, args.directory, dtype=args.dtype, overwrite=args.overwrite)


COMMAND = Command(
    name="import_text",
    help="copy the text encoder of a t5x checkpoint or a Hugging Face folder",
    run=run,
    add_flags=add_flags,
    order=2,
)
