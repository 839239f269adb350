"""Errors of buckets that cannot be read or written, in words for people."""

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator

from imagen_jax.errors import UserError

_LIBRARIES = ("gcsfs", "aiohttp", "google")
_CREDENTIALS = "set GOOGLE_APPLICATION_CREDENTIALS to the file of a key, or run `gcloud auth application-default login`"


@contextlib.contextmanager
def bucket_errors() -> Iterator[None]:
    """Around a mode: what gcsfs raises, in classes of its own or without the object's name, is told in one line.

    Raises:
      UserError: a bucket does not exist, credentials are missing or do not suffice, or its server does not answer.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if "gcsfs" not in sys.modules or not _from_a_bucket(error):
            raise
        raise UserError(_told(error)) from error


def _told(error: Exception) -> str:
    what = " ".join(str(error).split()) or type(error).__name__
    code = str(getattr(error, "code", ""))
    if isinstance(error, FileNotFoundError):
        return f"there is no such bucket or object: {what}; check the name, or make the bucket"
    if "Forbidden" in what or code == "403":
        return f"these credentials do not suffice: {what}; ask for the role Storage Object User, or {_CREDENTIALS}"
    if code == "401" or type(error).__module__.startswith("google.auth"):
        return f"the bucket asks for credentials: {what}; {_CREDENTIALS}"
    return f"the bucket's server does not answer as it should: {what}; run the same command again"


def _from_a_bucket(error: BaseException) -> bool:
    """Tells if an exception was raised below a call into gcsfs."""
    parts = {part for frame in traceback.extract_tb(error.__traceback__) for part in frame.filename.split(os.sep)}
    return not parts.isdisjoint(_LIBRARIES)
