"""`imagen_jax build_corpus` as an Apache Beam pipeline: the same flags, the same bytes, more machines.

Needs the extra `beam`. Flags that are not listed here go to Beam, and so does --num_workers:

    imagen_jax script data/beam_build.py --images my_pictures --output corpora/mine --image_size 64 \\
        --runner=DirectRunner --direct_num_workers=2 --direct_running_mode=multi_processing
"""

import argparse
import sys

from imagen_jax.commands.parts.buckets import bucket_errors
from imagen_jax.errors import exit_code


@bucket_errors()
def main() -> None:
    from imagen_jax.commands.build_corpus import add_flags, build_inputs

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_flags(parser)
    options, pipeline_args = parser.parse_known_args()
    if options.num_workers:
        pipeline_args.append(f"--num_workers={options.num_workers}")

    from imagen_jax.beam.build import build_corpus
    from imagen_jax.commands.parts.corpus_card import write_card

    source, config = build_inputs(options)
    report = build_corpus(source, options.output, config, pipeline_args, overwrite=options.overwrite)
    write_card(options.output)
    print(f"{options.output}: {report}")


if __name__ == "__main__":
    sys.exit(exit_code(main))
