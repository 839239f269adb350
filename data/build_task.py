"""Builds a corpus from a seqio task that gives key, image and caption, such as TFDS's coco_captions.

The dataset must be prepared first (`tfds build coco_captions`, about 38 GB of downloads):

    imagen_jax script data/build_task.py --task coco_captions --splits train,val --out corpora/coco --image_size 64
"""

import argparse
import importlib
import sys

from imagen_jax.commands.parts.buckets import bucket_errors
from imagen_jax.commands.parts.corpus_flags import add_form_flags, form_settings
from imagen_jax.errors import exit_code


@bucket_errors()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="coco_captions", help="name of the task (default %(default)s)")
    parser.add_argument("--module", help="module to import first, which registers the task")
    parser.add_argument(
        "--splits", default="train,val", help="splits of the task, comma-separated (default %(default)s)"
    )
    parser.add_argument("--out", required=True, help="corpus directory to write")
    parser.add_argument("--image_size", type=int, required=True, help="side of the square images, in pixels")
    parser.add_argument("--min_size", type=int, help="least shorter side of an image, in pixels (default: image_size)")
    parser.add_argument("--vocab_size", type=int, help="train a SentencePiece vocabulary of this size (default: none)")
    add_form_flags(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace a corpus of other settings")
    options = parser.parse_args()

    from imagen_jax.data.builder import BuildConfig, build_corpus
    from imagen_jax.data.sources import task_source

    if options.module:
        importlib.import_module(options.module)
    config = BuildConfig(
        name=options.task.replace("-", "_"),
        image_size=options.image_size,
        min_size=options.min_size,
        vocab_size=options.vocab_size,
        **form_settings(options),
    )
    source = task_source(options.task, options.splits.split(","))
    report = build_corpus(source, options.out, config, overwrite=options.overwrite)
    print(f"{options.out}: {report}")


if __name__ == "__main__":
    sys.exit(exit_code(main))
