"""Errors of buckets that cannot be read or written, in words for people."""

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator

from imagen_jax.errors import UserError

_AMAZON = ("s3fs", "aiobotocore", "botocore")
_LIBRARIES = ("gcsfs", "aiohttp", "google", *_AMAZON)
# How to get credentials, and what they must allow.
_GOOGLE_NEEDS = (
    "set GOOGLE_APPLICATION_CREDENTIALS to the file of a key, or run `gcloud auth application-default login`",
    "ask for the role Storage Object User",
)
_AMAZON_NEEDS = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run `aws configure`",
    "ask for s3:ListBucket, s3:GetObject, s3:PutObject and s3:DeleteObject",
)


@contextlib.contextmanager
def bucket_errors() -> Iterator[None]:
    """Around a mode: what gcsfs and s3fs raise, often without the name of the object, is told in one line.

    Raises:
      UserError: a bucket does not exist, credentials are missing or do not suffice, or its server does not answer.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        below = _called(error) if not sys.modules.keys().isdisjoint(("gcsfs", "s3fs")) else set()
        if below.isdisjoint(_LIBRARIES):
            raise
        raise UserError(_told(error, *(_GOOGLE_NEEDS if below.isdisjoint(_AMAZON) else _AMAZON_NEEDS))) from error


def _told(error: Exception, credentials: str, rights: str) -> str:
    what = " ".join(str(error).split()) or type(error).__name__
    code = str(getattr(error, "code", ""))
    if isinstance(error, FileNotFoundError):
        return f"there is no such bucket or object: {what}; check the name, or make the bucket"
    if "Forbidden" in what or code == "403" or isinstance(error, PermissionError):
        return f"these credentials do not suffice: {what}; {rights}, or {credentials}"
    kind = f"{type(error).__module__}.{type(error).__name__}"
    if code == "401" or kind.startswith("google.auth") or kind.endswith("CredentialsError"):
        return f"the bucket asks for credentials: {what}; {credentials}"
    return f"the bucket's server does not answer as it should: {what}; run the same command again"


def _called(error: BaseException) -> set[str]:
    """Parts of the files' names through which an exception came."""
    return {part for frame in traceback.extract_tb(error.__traceback__) for part in frame.filename.split(os.sep)}
