"""Checks of settings that are counts or paths, with one wording."""

import os
import re
from collections.abc import Collection

from imagen_jax.errors import UserError

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


def check_path(name: str, value: object, schemes: Collection[str] = ()) -> None:
    """Refuses what is no path of this machine: gs://bucket/x would be taken for a folder named "gs:".

    Args:
      name: the setting, as its user writes it.
      value: what it was set to.
      schemes: of addresses that can be read all the same, e.g. "gs".

    Raises:
      UserError: it is no path, empty, of characters that no file name has, or an address with a scheme.
    """
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise UserError(f"{name} ({value!r}) must be the path of a file or folder")
    if not _is_name(os.fspath(value)):
        raise UserError(f"{name} ({value!r}) holds a character that no file name can; give another path")
    scheme = _SCHEME.match(os.fspath(value))
    if scheme is not None and scheme[1] not in schemes:
        raise UserError(
            f"{name} ({os.fspath(value)}) begins with {scheme[0]}, and only paths of this machine can be read and "
            "written; copy it here, or mount the bucket as a folder"
        )


def _is_name(path: str) -> bool:
    """Tells if the system takes a path at all: it has no NUL, and its characters have bytes."""
    try:
        return b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        return False
