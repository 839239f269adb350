"""Checks of settings that are counts or paths, with one wording."""

import importlib.util
import os
import re

from imagen_jax.errors import UserError
from imagen_jax.files import SCHEMES

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*):/", re.IGNORECASE)


def check_count(name: str, value: object, least: int = 1, hint: str = "") -> None:
    """Refuses what is no integer of at least `least`; True and False are no integers here.

    Args:
      name: the setting, as its user writes it.
      value: what it was set to.
      least: smallest value allowed.
      hint: what is usual, or another way to set it.

    Raises:
      UserError: names the setting, its value and the bound.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(f"{name} ({value!r}) must be an integer >= {least}" + (f"; {hint}" if hint else ""))


def check_path(name: str, value: object) -> None:
    """Refuses what is neither a path of this machine nor an address in a bucket, such as gs://bucket/folder.

    An address of another kind would be taken for a folder, such as one named "http:".

    Args:
      name: the setting, as its user writes it.
      value: what it was set to.

    Raises:
      UserError: it is no path, empty, of characters that no file name has, or an address that nothing here can read.
        One in s3:// needs s3fs.
    """
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise UserError(f"{name} ({value!r}) must be the path of a file or folder")
    text = os.fspath(value)
    if not _is_name(text):
        raise UserError(f"{name} ({value!r}) holds a character that no file name can; give another path")
    scheme = _SCHEME.match(text)
    if scheme is None:
        return
    known = " and ".join(f"{one}://" for one in SCHEMES)
    if scheme[1] not in SCHEMES:
        raise UserError(
            f"{name} ({text}) begins with {scheme[0]}, and only paths of this machine and of buckets ({known}) can "
            "be read and written; copy it there, or mount it as a folder"
        )
    if not re.match(r"[a-z0-9]+://[a-z0-9][a-z0-9._-]+(/|$)", text):
        raise UserError(f"{name} ({text}) must name a bucket: {scheme[1]}://bucket/folder")
    if scheme[1] == "s3" and importlib.util.find_spec("s3fs") is None:
        raise UserError(f"{name} ({text}) needs the library s3fs; install it with: pip install 'imagen_jax[s3]'")


def _is_name(path: str) -> bool:
    """Tells if the system takes a path at all: it has no NUL, and its characters have bytes."""
    try:
        return b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        return False
