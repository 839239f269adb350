"""Parts of files in buckets, many at once.

By tensorstore, whose requests cost a fifth of gcsfs's work on this machine.
"""

import functools
import resource
from collections.abc import Sequence

import tensorstore

from imagen_jax.files.places import bucket_of, key_of, kvstore_spec, scheme_of

AT_ONCE = 256
# A request may hold a connection: all of them are a part of the handles that this process may have.
_SHARE, _LEAST_AT_ONCE = 4, 8


def read_ranges(paths: Sequence[str], spans: Sequence[tuple[int, int | None]]) -> list[bytes | None]:
    """The bytes from a first to before a second place of each file; None where there is no such file.

    Args:
      paths: addresses, one a span; a file may recur.
      spans: first byte, and the byte after the last; None: to the end.

    Raises:
      OSError: the bucket cannot be read.
    """
    futures = [
        _store(f"{scheme_of(path)}://{bucket_of(path)}").read(key_of(path), byte_range=slice(*span))
        for path, span in zip(paths, spans, strict=True)
    ]
    try:
        found = [future.result() for future in futures]
    except (ValueError, RuntimeError) as error:  # What tensorstore makes of every failure.
        raise OSError(str(error).partition("\n")[0]) from error
    return [None if one.state == "missing" else one.value for one in found]


@functools.cache
def _store(bucket: str) -> tensorstore.KvStore:
    handles = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    at_once = min(AT_ONCE, max(_LEAST_AT_ONCE, handles // _SHARE))
    limits = {f"{driver}_request_concurrency": {"limit": at_once} for driver in ("gcs", "s3")}
    return tensorstore.KvStore.open(kvstore_spec(bucket), context=tensorstore.Context(limits)).result()
