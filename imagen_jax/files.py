"""Files that are whole or absent, the JSON in them, their digests.

A file is written beside its place under a name of its own and then renamed, so a reader finds the old content or the
new, never half of it, and two processes that write the same file do not mix their bytes. `sync` also waits for the
disk, for what must outlast a power cut.
"""

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO

StrPath = str | os.PathLike[str]
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
      ValueError: it is not JSON in UTF-8, or is nested deeper than anything that this program writes or reads.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def is_file_name(name: object) -> bool:
    """Tells if a name from a file is that of one in the same folder: neither a path nor empty."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & {"/", "\\", "\0"}


def shipped_root() -> str:
    """The folder under which configs/ and data/prompts/ lie: the repository, or their copy in an installed package."""
    package = os.path.dirname(os.path.abspath(__file__))
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
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_files(paths: Sequence[StrPath]) -> list[str]:
    """The SHA-256 of each file, several at once: hashing leaves the interpreter to others.

    Raises:
      OSError: one cannot be read.
    """
    with ThreadPoolExecutor(min(_HASHED_AT_ONCE, os.cpu_count() or 1)) as threads:
        return list(threads.map(sha256_of_file, paths))


def move_synced(beside: StrPath, path: StrPath) -> None:
    """Renames a file that another library wrote, once the disk holds its bytes."""
    with open(beside, "rb") as file:
        os.fsync(file.fileno())
    os.replace(beside, path)


def sync_directory(path: StrPath) -> None:
    """Waits until the disk holds a directory's entries, and so the renames in it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
