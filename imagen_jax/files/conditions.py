"""Objects in buckets that are made, replaced and removed only if nobody else changed them meanwhile.

An object's version is its generation in gs://, and in s3:// its ETag, a digest of its content: two writes of the same
bytes are one version there. Sources: docs.cloud.google.com/storage/docs/request-preconditions,
docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-requests.html.
"""

import contextlib
from collections.abc import Iterator

from imagen_jax.files.places import bucket_of, file_system, key_of, scheme_of

# S3's words for an object that is not as the condition says, and for two requests at the same moment.
_REFUSALS = ("PreconditionFailed", "ConditionalRequestConflict")
_VERSION = {"gs": "generation", "s3": "ETag"}


def read(url: str) -> tuple[str, bytes] | None:
    """Version and content of an object; None where there is none.

    The content may be newer than the version, never older: a change on the condition of that version is then refused.
    """
    files = file_system(url)
    try:
        return str(files.info(url)[_VERSION[scheme_of(url)]]), files.cat_file(url)
    except FileNotFoundError:
        return None


def create(url: str, content: bytes) -> None:
    """Makes an object.

    Raises:
      FileExistsError: there is one.
    """
    with _refused_as_changed(or_gone=False):  # Not found: that is the bucket.
        file_system(url).pipe_file(url, content, mode="create")


def replace(url: str, content: bytes, version: str) -> str:
    """Gives an object other content.

    Returns:
      Its new version.

    Raises:
      FileExistsError: it is not of that version any more, or gone.
    """
    files = file_system(url)
    with _refused_as_changed():
        if scheme_of(url) == "s3":
            place = {"Bucket": bucket_of(url), "Key": key_of(url)}
            return str(files.call_s3("put_object", **place, Body=content, IfMatch=version)["ETag"])
        written = files.call(
            "POST",
            files.base.replace("/storage/v1/", f"/upload/storage/v1/b/{bucket_of(url)}/o"),
            uploadType="media",
            name=key_of(url),
            ifGenerationMatch=version,
            data=content,
            headers={"Content-Type": "application/octet-stream"},
            json_out=True,
        )
        return str(written["generation"])


def remove(url: str, version: str) -> None:
    """Removes an object.

    Raises:
      FileExistsError: it is not of that version any more, or gone.
    """
    files = file_system(url)
    with _refused_as_changed():
        if scheme_of(url) == "s3":
            files.call_s3("delete_object", Bucket=bucket_of(url), Key=key_of(url), IfMatch=version)
        else:
            files.call("DELETE", "b/{}/o/{}", bucket_of(url), key_of(url), ifGenerationMatch=version)


@contextlib.contextmanager
def _refused_as_changed(or_gone: bool = True) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        answer = getattr(error.__cause__, "response", {})
        refused = answer.get("Error", {}).get("Code") in _REFUSALS
        if refused or (or_gone and isinstance(error, FileNotFoundError)):
            raise FileExistsError(str(error)) from error
        raise
