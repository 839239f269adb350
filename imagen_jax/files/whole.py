"""Files that are whole or absent, the JSON in them, their digests.

A file is written beside its place under a name of its own and then renamed, so a reader finds the old content or the
new, never half of it, and two processes that write the same file do not mix their bytes. `sync` also waits for the
disk, for what must outlast a power cut. An object in a bucket appears whole or not at all by itself: what is written is
kept on this machine until the block ends, then sent.
"""

import contextlib
import hashlib
import json
import os
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, NoReturn, cast

from imagen_jax.errors import UserError
from imagen_jax.files.places import StrPath, as_path, file_system, is_remote

FILE_NAME = "a file name"
# What Linux file systems take.
_MAX_NAME_BYTES = 255
# Characters of a value that a message quotes.
_SHOWN = 80
_HASHED_AT_ONCE = 16


@contextlib.contextmanager
def whole_file(path: StrPath, sync: bool = False) -> Iterator[BinaryIO]:
    """Opens a file to write, which takes the place of `path` when the block ends without an error.

    Args:
      path: the file to make or replace; its directory exists.
      sync: wait until the disk holds the bytes before they take their place.

    Raises:
      OSError: it cannot be written. What was at `path` is untouched, and nothing is left beside it.
    """
    if is_remote(path):
        with tempfile.NamedTemporaryFile() as local:
            yield cast(BinaryIO, local)
            local.flush()
            file_system(path).put_file(local.name, os.fspath(path))
        return
    beside = f"{os.fspath(path)}.tmp-{secrets.randbits(64)}"
    try:
        with open(beside, "xb") as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(beside)
        raise


def write_bytes(path: StrPath, content: bytes, sync: bool = False) -> None:
    """Writes a file whole or not at all; see `whole_file`."""
    if is_remote(path):
        file_system(path).pipe_file(os.fspath(path), content)
        return
    with whole_file(path, sync) as file:
        file.write(content)


def write_text(path: StrPath, content: str, sync: bool = False) -> None:
    """Writes a UTF-8 file whole or not at all; see `whole_file`."""
    write_bytes(path, content.encode(), sync)


def write_json(path: StrPath, value: Any, indent: int | None = 1, end: str = "", sync: bool = False) -> None:
    """Writes a JSON file whole or not at all; see `whole_file`.

    Args:
      path: the file to make or replace.
      value: what `json` can hold.
      indent: spaces a level; None puts all on one line.
      end: text after the value, such as a line's end.
      sync: wait for the disk.
    """
    write_text(path, json.dumps(value, indent=indent) + end, sync)


def read_json(path: StrPath) -> Any:
    """The content of a JSON file.

    Raises:
      OSError: it cannot be read.
      ValueError: it is not JSON in UTF-8.
    """
    try:
        return json.loads(as_path(path).read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def check_content(path: StrPath, value: Any, wanted: Any, fix: str, where: str = "") -> None:
    """Refuses JSON that is not of the wanted form, before any of it is used.

    Args:
      path: the file that it came from.
      value: what `read_json` gave.
      wanted: `int`, a count below 2**63; `FILE_NAME`, the name of a file in the same folder;
        another type, such as `dict`; `[form]`, a list of that form; `{name: form}`, an object with at least these
        names; `{...: form}`, an object with any names.
      fix: what to do about it, the end of the message.
      where: place of the value in the file, "" for all of it.

    Raises:
      UserError: names the file and the first place that differs.
    """
    if isinstance(wanted, list | dict):
        if not isinstance(value, type(wanted)):
            _refuse(path, value, "a list" if isinstance(wanted, list) else "an object", fix, where)
        if isinstance(wanted, list):
            for number, one in enumerate(value):
                check_content(path, one, wanted[0], fix, f"{where}[{number}]")
            return
        for name, form in {name: wanted[...] for name in value}.items() if ... in wanted else wanted.items():
            place = f"{where}.{name}" if where else name
            if name not in value:
                raise UserError(f"{path} has no {place}; {fix}")
            check_content(path, value[name], form, fix, place)
    elif wanted is int:
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
            _refuse(path, value, "a count", fix, where)
    elif wanted is FILE_NAME:
        if not is_file_name(value):
            _refuse(path, value, "the name of a file in the same folder", fix, where)
    elif not isinstance(value, wanted):
        _refuse(path, value, f"a {wanted.__name__}", fix, where)


def _refuse(path: StrPath, value: Any, expected: str, fix: str, where: str) -> NoReturn:
    text = ascii(value)
    got = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
    raise UserError(f"{path} has {got} for {where or 'its content'}; expected {expected}; {fix}")


def is_unicode(text: str) -> bool:
    """Tells if UTF-8 can hold a text: file names, arguments and JSON may hold halves of characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_file_name(name: object) -> bool:
    """Tells if a name from a file is that of one in the same folder: neither a path nor empty."""
    if not isinstance(name, str) or not is_unicode(name) or len(name.encode()) > _MAX_NAME_BYTES:
        return False
    return name not in ("", ".", "..") and not set(name) & {"/", "\\", "\0"}


def shipped_root() -> str:
    """The folder under which configs/, data/ and launch/ lie: the repository, or their copy in an installed package."""
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    installed = os.path.join(package, "shipped")
    return installed if os.path.isdir(installed) else os.path.dirname(package)


def shipped_file(path: str) -> str:
    """Finds a file that a command names as in the repository, such as data/prompts/demo.txt, from any folder.

    Returns:
      The path as it is where it is absolute, exists, or did not come with the package either.
    """
    copy = os.path.join(shipped_root(), path)
    return path if os.path.isabs(path) or os.path.exists(path) or not os.path.isfile(copy) else copy


def sha256_of_file(path: StrPath) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal.

    Raises:
      OSError: it cannot be read.
    """
    with as_path(path).open("rb") as file:
        return hashlib.file_digest(cast(Any, file), "sha256").hexdigest()


def sha256_of_files(paths: Sequence[StrPath]) -> list[str]:
    """The SHA-256 of each file, several at once: hashing leaves the interpreter to others.

    Raises:
      OSError: one cannot be read.
    """
    with ThreadPoolExecutor(min(_HASHED_AT_ONCE, os.cpu_count() or 1)) as threads:
        return list(threads.map(sha256_of_file, paths))


def move_file(beside: StrPath, path: StrPath, sync: bool = False) -> None:
    """Gives a file of this machine, that another library wrote, its place.

    Args:
      beside: the file; it is gone afterwards.
      path: its place, on the same file system or in a bucket.
      sync: wait until the disk holds its bytes before they take their place.
    """
    if is_remote(path):
        file_system(path).put_file(os.fspath(beside), os.fspath(path))
        os.remove(beside)
        return
    if sync:
        with open(beside, "rb") as file:
            os.fsync(file.fileno())
    os.replace(beside, path)


def rename_file(path: StrPath, other: StrPath) -> None:
    """Gives a file another place on the same file system or in the same bucket, whose server then copies it.

    Args:
      path: the file; in a bucket, a process that is killed may leave it beside its copy.
      other: its new place.
    """
    if not is_remote(path):
        os.replace(path, other)
        return
    files = file_system(path)
    files.cp_file(os.fspath(path), os.fspath(other))
    files.rm_file(os.fspath(path))


def sync_directory(path: StrPath) -> None:
    """Waits until the disk holds a directory's entries, and so the renames in it; no wait for a bucket's."""
    if is_remote(path):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
