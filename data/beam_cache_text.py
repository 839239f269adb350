"""`imagen_jax cache_text` as an Apache Beam pipeline: the same gin files, the same bytes, more machines.

Needs the extra `beam`. Flags that are not listed here go to Beam:

    imagen_jax script data/beam_cache_text.py --gin_file=configs/experiments/demo_base.gin \\
        --gin.CORPUS_DIR=corpora/mine … \\
        --runner=DirectRunner --direct_num_workers=2 --direct_running_mode=multi_processing
"""

import argparse
import sys

from imagen_jax.commands.parts.buckets import bucket_errors
from imagen_jax.errors import exit_code


@bucket_errors()
def main() -> None:
    from imagen_jax.commands.cache_text import COMMAND
    from imagen_jax.commands.parts.gin_flags import GIN_FLAGS, add_gin_flags, load_gin, split_bindings

    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=GIN_FLAGS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_gin_flags(parser)
    options, arguments = parser.parse_known_args()

    from imagen_jax.beam.cache_text import cache_text

    bindings, pipeline_args = split_bindings(arguments)
    config, _ = load_gin(COMMAND, options, bindings)
    cache_text(config, pipeline_args)


if __name__ == "__main__":
    sys.exit(exit_code(main))
