"""Builds a corpus from your own images.

FOLDER holds either image files, each with a caption in a text file of the same stem, or a list
captions.csv, captions.jsonl or captions.parquet with columns image (path relative to the list) and caption.
The list itself may be given instead of the folder.

    python data/build_folder.py --images my_photos --out corpora/mine --image_size 64 --val_fraction 0.05
"""

import argparse
import os
import sys


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, help="the folder, or a .csv, .jsonl or .parquet list")
    parser.add_argument("--out", required=True, help="corpus directory to write")
    parser.add_argument("--name", default="mine", help="name of the corpus (default %(default)s)")
    parser.add_argument("--image_size", type=int, required=True, help="side of the square images, in pixels")
    parser.add_argument("--min_size", type=int, help="least shorter side of an image, in pixels (default: image_size)")
    parser.add_argument(
        "--val_fraction",
        type=float,
        default=0.0,
        help="part of the images for split val (default %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the choice of val (default %(default)s)")
    parser.add_argument("--vocab_size", type=int, help="train a SentencePiece vocabulary of this size (default: none)")
    parser.add_argument("--num_workers", type=int, default=0, help="decoding processes (default: this one)")
    parser.add_argument("--overwrite", action="store_true", help="replace a corpus of other settings")
    options = parser.parse_args()

    # Imported late: --help answers at once, and worker processes, which import this file, stay light.
    from imagen_jax.data.builder import BuildConfig, build_corpus
    from imagen_jax.data.sources import folder_source, list_source
    from imagen_jax.errors import UserError

    try:
        open_source = list_source if os.path.isfile(options.images) else folder_source
        source = open_source(options.images, val_fraction=options.val_fraction, seed=options.seed)
        config = BuildConfig(
            name=options.name,
            image_size=options.image_size,
            min_size=options.min_size,
            seed=options.seed,
            vocab_size=options.vocab_size,
        )
        report = build_corpus(source, options.out, config, num_workers=options.num_workers, overwrite=options.overwrite)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.out}: {report}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
