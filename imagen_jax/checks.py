"""Checks of settings that are counts or paths, with one wording."""

import importlib.util
import math
import os
import re
import types
import typing
from collections.abc import Sequence
from typing import Any

from imagen_jax.errors import UserError
from imagen_jax.files import SCHEMES

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*):/", re.IGNORECASE)


def check_count(name: str, value: object, least: int = 1, hint: str = "", most: int | None = None) -> None:
    """Refuses what is no integer from `least` to `most`; True and False are no integers here.

    Args:
      name: the setting, as its user writes it.
      value: what it was set to.
      least: smallest value allowed.
      hint: what is usual, or another way to set it.
      most: largest value allowed, where larger ones would fill the memory; None: any.

    Raises:
      UserError: names the setting, its value and the bound.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(f"{name} ({value!r}) must be an integer >= {least}" + (f"; {hint}" if hint else ""))
    if most is not None and value > most:
        raise UserError(f"{name} ({value}) must be at most {most}" + (f"; {hint}" if hint else ""))


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


def with_home(name: str, path: str) -> str:
    """A path with the home directory for a leading ~, which no shell puts there after an equals sign.

    Args:
      name: the setting, as its user writes it.
      path: what it was set to.

    Raises:
      UserError: ~NAME, and there is no such user; it would be taken for a folder of that name.
    """
    found = os.path.expanduser(path)
    if found.startswith("~"):
        user = path.partition("/")[0]
        raise UserError(
            f"{name} ({path}) begins with {user}, and there is no such user or home directory; write ./{user} for a "
            "file or folder of that name"
        )
    return found


_PLAIN = {int: "a whole number", float: "a number", bool: "True or False", str: "text", types.NoneType: "None"}
_LITERALS = (*_PLAIN, tuple, list)


def fits(value: Any, wanted: Any) -> bool:
    """Tells if a value is of a field's type; of which class an object is, those who take it look themselves.

    True and False are no numbers here, a whole number is a float too, and a list is a tuple.
    """
    parts = typing.get_args(wanted)
    if typing.get_origin(wanted) in (typing.Union, types.UnionType):
        return any(fits(value, part) for part in parts)
    if typing.get_origin(wanted) in (tuple, Sequence):
        if not isinstance(value, tuple | list):
            return False
        if len(parts) == 2 and parts[1] is Ellipsis or len(parts) == 1:
            return all(fits(one, parts[0]) for one in value)
        return len(value) == len(parts) and all(map(fits, value, parts))
    if wanted is float:
        return type(value) in (int, float)
    if wanted in _PLAIN:
        return type(value) is wanted
    if wanted is tuple:
        return isinstance(value, tuple | list)
    return wanted is Any or not (isinstance(wanted, type) and isinstance(value, _LITERALS))


def words_of(wanted: Any) -> str:
    """A field's type in words, such as "a whole number or None"."""
    parts = typing.get_args(wanted)
    if typing.get_origin(wanted) in (typing.Union, types.UnionType):
        return " or ".join(map(words_of, parts))
    if typing.get_origin(wanted) in (tuple, Sequence):
        rows = [words_of(part) for part in parts if part is not Ellipsis]
        return f"a tuple ({', '.join(rows)}{', …' if len(rows) == 1 else ''})"
    return _PLAIN.get(wanted) or f"a {getattr(wanted, '__name__', wanted)}, which @…() gives"


def check_field(name: str, value: Any, wanted: Any, infinite: bool = False) -> None:
    """Refuses a value that is not of its field's type, and numbers that are none.

    Args:
      name: the setting, as its user writes it.
      value: what it was set to.
      wanted: type of the field.
      infinite: infinity is allowed.

    Raises:
      UserError: names the setting, its value and what fits.
    """
    if not fits(value, wanted):
        raise UserError(f"{name} ({_shown(value)}) must be {words_of(wanted)}")
    for number in _floats(value):
        if not (math.isfinite(number) or infinite and number == math.inf):
            raise UserError(f"{name} ({_shown(value)}) must be a finite number")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def _floats(value: Any) -> list[float]:
    if isinstance(value, tuple | list):
        return [number for one in value for number in _floats(one)]
    return [value] if isinstance(value, float) else []


def _is_name(path: str) -> bool:
    """Tells if the system takes a path at all: it has no NUL, and its characters have bytes."""
    try:
        return b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        return False
