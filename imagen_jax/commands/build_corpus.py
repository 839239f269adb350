"""`imagen_jax build_corpus`: raw pairs of image and caption to a corpus directory."""

import argparse
import dataclasses
from typing import Any

from imagen_jax.commands.parts.command import Command
from imagen_jax.commands.parts.corpus_flags import add_form_flags, form_settings
from imagen_jax.commands.parts.paths import user_path
from imagen_jax.errors import UserError


def add_flags(sub: argparse.ArgumentParser) -> None:
    """Adds the flags that name the pairs, the corpus and how it is built."""
    sub.add_argument(
        "--images",
        type=user_path,
        metavar="PATH",
        help="folder of images with captions beside them; a .csv, .jsonl or .parquet list; img2dataset's .tar files "
        "(one, their folder, or a pattern in quotes); a folder of the library datasets",
    )
    sub.add_argument("--image_column", metavar="NAME", help="column of the images in a list or dataset (default image)")
    sub.add_argument("--caption_column", metavar="NAME", help="column of the captions (default caption, or text)")
    sub.add_argument("--output", type=user_path, metavar="DIR", help="corpus directory to write")
    sub.add_argument("--image_size", type=int, metavar="N", help="side of the squares, in pixels")
    sub.add_argument(
        "--sizes",
        default="",
        metavar="HxW,…",
        help="let pictures keep their shape, in the nearest of these sizes, each of about image_size x image_size "
        "pixels, e.g. 40x24,32x32,24x40 (default: squares alone)",
    )
    sub.add_argument(
        "--min_size", type=int, metavar="N", help="least shorter side of an image, in pixels (default: image_size)"
    )
    add_form_flags(sub)
    sub.add_argument("--name", default="images", help="name of the corpus (default images)")
    sub.add_argument(
        "--val_fraction", type=float, default=0.0, metavar="F", help="part of the images kept for validation"
    )
    sub.add_argument("--seed", type=int, default=0, help="fixes which images those are (default 0)")
    sub.add_argument(
        "--filter",
        metavar="EXPRESSION",
        help="keep what it holds for, e.g. 'similarity >= 0.28 and punsafe < 0.1 and min(width, height) >= 256'",
    )
    sub.add_argument("--min_caption", type=int, metavar="N", help="least length of a caption, in characters")
    sub.add_argument("--max_caption", type=int, metavar="N", help="greatest length of a caption, in characters")
    sub.add_argument("--dedupe", action="store_true", help="drop pictures that look like an earlier one")
    sub.add_argument(
        "--exclude",
        type=user_path,
        action="append",
        default=[],
        metavar="PATH",
        help="drop the captions and pictures of a corpus, of pairs as for --images, or the lines of a .txt; repeatable",
    )
    sub.add_argument("--vocab_size", type=int, metavar="N", help="also train a vocabulary of at most N pieces")
    sub.add_argument("--licence", metavar="TEXT", help="of all pictures, for the data card")
    sub.add_argument("--consent", metavar="TEXT", help="of those who made or are in the pictures, for the data card")
    sub.add_argument("--num_workers", type=int, default=0, metavar="N", help="decoding processes (default none)")
    sub.add_argument("--overwrite", action="store_true", help="replace a corpus of other settings")
    sub.add_argument(
        "--audit", type=user_path, metavar="CORPUS_DIR", help="only write the data card of a corpus that is there"
    )


def build_inputs(args: argparse.Namespace) -> tuple[Any, Any]:
    """Builds the Source and the BuildConfig that the flags name.

    Raises:
      UserError: one of the flags that a build needs is missing, or the source cannot be read.
    """
    missing = [f"--{name}" for name in ("images", "output", "image_size") if getattr(args, name) is None]
    if missing:
        raise UserError(f"build_corpus needs {' and '.join(missing)}; or --audit CORPUS_DIR for a corpus that is there")
    from imagen_jax.data.builder import BuildConfig
    from imagen_jax.data.exclusion import excluded
    from imagen_jax.data.filters import filtered
    from imagen_jax.data.opening import open_source
    from imagen_jax.data.raw import screened
    from imagen_jax.data.sizes import parse_sizes

    config = BuildConfig(
        name=args.name,
        image_size=args.image_size,
        sizes=parse_sizes(args.sizes) if args.sizes else (),
        min_size=args.min_size,
        seed=args.seed,
        vocab_size=args.vocab_size,
        **form_settings(args),
    )
    source = open_source(
        args.images,
        val_fraction=args.val_fraction,
        seed=args.seed,
        image_column=args.image_column,
        caption_column=args.caption_column,
    )
    bounds = {"min_caption": ">=", "max_caption": "<="}
    lengths = [f"caption_length {sign} {getattr(args, flag)}" for flag, sign in bounds.items() if getattr(args, flag)]
    source = filtered(source, [*lengths, *([args.filter] if args.filter is not None else [])])
    screen = dataclasses.replace(excluded(args.exclude, args.image_size), dedupe=args.dedupe)
    rights = {name: getattr(args, name) for name in ("licence", "consent") if getattr(args, name) is not None}
    source = dataclasses.replace(source, settings={**source.settings, **rights})
    return screened(source, screen), config


def run(args: argparse.Namespace) -> None:
    """Writes the corpus with its data card and prints its report; with --audit the card alone."""
    from imagen_jax.commands.parts.corpus_card import write_card
    from imagen_jax.data.builder import build_corpus

    if args.audit is not None:
        if any(value is not None for value in (args.images, args.output, args.image_size)):
            raise UserError("--audit builds nothing; leave out --images, --output and --image_size, or --audit")
        print(write_card(args.audit))
        return
    source, config = build_inputs(args)
    report = build_corpus(source, args.output, config, num_workers=args.num_workers, overwrite=args.overwrite)
    write_card(args.output)
    print(f"{args.output}: {report}")


COMMAND = Command(
    name="build_corpus",
    help="turn pairs of image and caption into a corpus directory of sharded records",
    run=run,
    add_flags=add_flags,
    order=1,
)
