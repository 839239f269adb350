"""Names of the contents of files that are too large to be read for it where they lie in a bucket."""

import base64
import functools
import hashlib
import os
from typing import Any, cast

from imagen_jax.files import StrPath, file_system, is_remote, local_copy


def md5_of(path: StrPath) -> str:
    """The MD5 of a file, in base64; empty if there is none. It tells files apart, no more.

    A bucket keeps it, but of objects that were composed of others.
    """
    if is_remote(path):
        try:
            known = file_system(path).info(os.fspath(path)).get("md5Hash")
        except FileNotFoundError:
            return ""
        if known:
            return str(known)
    elif not os.path.isfile(path):
        return ""
    with open(local_copy(path), "rb") as file:
        found = hashlib.file_digest(cast(Any, file), functools.partial(hashlib.md5, usedforsecurity=False))
        return base64.b64encode(found.digest()).decode()
