"""The corpus builder and cache_text as Apache Beam pipelines, for more machines than one.

Workers and the launching process see the same directories, of a shared file system or in a bucket. Beam carries
numbers, keys and captions; pictures and embeddings are files from the start, so a pipeline's description stays small
and its engine needs no room for them.
"""

import importlib.util

from imagen_jax.errors import UserError

if importlib.util.find_spec("apache_beam") is None:
    raise UserError(
        "Apache Beam is not installed; in an environment of its own: pip install -c constraints-beam.txt -e '.[beam]'"
    )
