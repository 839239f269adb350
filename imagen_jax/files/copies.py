"""Copies of bucket files on this machine, within a given size.

IMAGEN_JAX_CACHE_DIR says where they lie (default: ~/.cache/imagen_jax) and IMAGEN_JAX_CACHE_GB how many gigabytes
they may take in all (default: 50). The longest unused go first. Processes of a machine share them.
"""

import contextlib
import hashlib
import os
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from imagen_jax.errors import UserError
from imagen_jax.files.places import StrPath, file_system, files_under, is_remote
from imagen_jax.files.whole import sha256_of_file

DIRECTORY, GIGABYTES = "IMAGEN_JAX_CACHE_DIR", "IMAGEN_JAX_CACHE_GB"
_DEFAULT_GB = 50.0
_MOVED_AT_ONCE = 16
# Bytes for which room is made at a time, at most this part of all room: a look at all copies takes long.
_AHEAD, _AHEAD_PART = 64 << 20, 8
_room_lock = threading.Lock()
# Folder of the copies and their limit -> bytes for which there is room.
_room: dict[tuple[Path, float], float] = {}


def local_copy(path: StrPath) -> str:
    """The path of a file on this machine with the content of `path`: itself, or a copy of a bucket's file.

    A copy belongs to one version of the object: once the object is replaced, it is fetched again.

    Raises:
      FileNotFoundError: there is no such file in the bucket.
      OSError: it cannot be read, or the copy not be written.
    """
    if not is_remote(path):
        return os.fspath(path)
    copy = copy_place(path)
    while True:
        if not copy.exists():
            _fetch(path, copy)
        with contextlib.suppress(FileNotFoundError):  # Another process needed the room.
            os.utime(copy)
            return os.fspath(copy)


def _fetch(path: StrPath, copy: Path) -> None:
    """Makes a copy, unless another process needs its room at once."""
    take_room(file_system(path).info(os.fspath(path))["size"])
    beside = copy.with_name(f"{copy.name}.tmp-{secrets.token_hex(8)}")
    try:
        file_system(path).get_file(os.fspath(path), os.fspath(beside))
        with contextlib.suppress(FileNotFoundError):
            os.replace(beside, copy)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def local_folder(folder: StrPath, names: Iterable[str]) -> str:
    """The path of a folder on this machine that holds files of `folder`: itself, or one of copies.

    Args:
      folder: where they are.
      names: those wanted of a bucket's, from the folder on.

    Raises:
      OSError: see `local_copy`.
    """
    if not is_remote(folder):
        return os.fspath(folder)
    copies = {name: local_copy(f"{os.fspath(folder).rstrip('/')}/{name}") for name in sorted(names)}
    together = _root() / "folders" / hashlib.sha256(repr(copies).encode()).hexdigest()[:32]
    together.mkdir(parents=True, exist_ok=True)
    for name, copy in copies.items():
        (together / name).parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            (together / name).symlink_to(copy)
    return os.fspath(together)


def copy_place(path: StrPath) -> Path:
    """Where a copy of a bucket's file lies on this machine, in a folder that exists; it may not be there yet.

    Raises:
      FileNotFoundError: there is no such file in the bucket.
    """
    url = os.fspath(path)
    info = file_system(url).info(url)
    version = f"{url} {info.get('generation') or info.get('ETag')} {info['size']}"
    version = hashlib.sha256(version.encode()).hexdigest()[:32]
    folder = _root() / version[:2] / version[2:]
    folder.mkdir(parents=True, exist_ok=True)
    return folder / os.path.basename(url)


def take_room(num_bytes: int) -> None:
    """Makes sure that copies of `num_bytes` fit; room is made ahead, so that few calls look at the copies.

    Raises:
      UserError: as `make_room`.
    """
    limit = copies_limit()
    place = (_root(), limit)
    with _room_lock:
        if num_bytes > _room.get(place, 0):
            ahead = max(num_bytes, int(min(_AHEAD, limit / _AHEAD_PART)))
            make_room(ahead)
            _room[place] = ahead
        _room[place] -= num_bytes


def make_room(num_bytes: int) -> None:
    """Removes the copies that were unused for longest, until `num_bytes` more fit.

    Raises:
      UserError: the variable is no number of gigabytes, or no room can be made.
    """
    limit = copies_limit()
    if num_bytes > limit:
        raise UserError(
            f"a file of {num_bytes / 1e9:.2f} GB is to be copied to this machine, and copies may take {limit / 1e9:g} "
            f"GB; raise {GIGABYTES}"
        )
    files, now = [], time.time()
    for file in _root().rglob("*"):
        with contextlib.suppress(OSError):  # Another process may remove it.
            found = file.stat()
            if file.is_file() and not file.is_symlink():
                # Of before the clock was set back: when, nobody can tell any more.
                used = found.st_mtime if found.st_mtime <= now else 0.0
                # What a file takes on the disk: those of records have holes.
                files.append((used, found.st_blocks * 512, file))
    total = sum(size for _, size, _ in files) + num_bytes
    for _, size, file in sorted(files):
        if total <= limit:
            return
        # Its folder stays: another process may be about to write there.
        file.unlink(missing_ok=True)
        total -= size


def copies_limit() -> float:
    """The bytes that all copies may take.

    Raises:
      UserError: the variable is no number of gigabytes.
    """
    text = os.environ.get(GIGABYTES, str(_DEFAULT_GB))
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = -1.0
    if not gigabytes >= 0:
        raise UserError(f"the variable {GIGABYTES} ({text!r}) must be a number of gigabytes, e.g. 50")
    return gigabytes * 1e9


def _root() -> Path:
    """The folder of all copies; one among temporary files where the home directory cannot be written."""
    named = os.environ.get(DIRECTORY)
    if named:
        return Path(named)
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    root = Path(caches, "imagen_jax")
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            return root
    except OSError:
        return Path(tempfile.gettempdir(), f"imagen_jax-{os.getuid()}")


def send_files(local: StrPath, folder: StrPath) -> dict[str, tuple[int, str]]:
    """Sends all files of a folder of this machine to one in a bucket, many at once.

    Args:
      local: the folder here.
      folder: where they go, under their names from `local` on.

    Returns:
      Bytes and SHA-256 of each by its name.

    Raises:
      OSError: one cannot be read or sent.
    """
    sizes, files = files_under(local), file_system(folder)

    def send(name: str) -> str:
        here = os.path.join(local, name)
        files.put_file(here, f"{os.fspath(folder).rstrip('/')}/{name}")
        return sha256_of_file(here)

    with ThreadPoolExecutor(_MOVED_AT_ONCE) as threads:
        return {name: (sizes[name], digest) for name, digest in zip(sizes, threads.map(send, sizes), strict=True)}


def fetch_files(folder: StrPath, names: Iterable[str], local: StrPath) -> dict[str, str]:
    """Copies files of a folder in a bucket to one of this machine, many at once.

    Args:
      folder: where they are.
      names: their names from `folder` on, of files as `files_under` tells them.
      local: where they go; these copies are the caller's and count for no limit.

    Returns:
      The SHA-256 of each by its name.

    Raises:
      OSError: one is not there, or cannot be read or written.
    """
    files, wanted = file_system(folder), list(names)

    def fetch(name: str) -> str:
        here = os.path.join(local, name)
        os.makedirs(os.path.dirname(here), exist_ok=True)
        files.get_file(f"{os.fspath(folder).rstrip('/')}/{name}", here)
        return sha256_of_file(here)

    with ThreadPoolExecutor(_MOVED_AT_ONCE) as threads:
        return dict(zip(wanted, threads.map(fetch, wanted), strict=True))


def copy_tree(folder: StrPath, to: StrPath) -> None:
    """Copies all files of a folder to one that has none, by way of this machine where one of both is in a bucket.

    Args:
      folder: what is copied, on a disk or in a bucket.
      to: where the files go, likewise.

    Raises:
      OSError: one cannot be read or written; some may be copied by then.
    """
    names = list(files_under(folder))
    if is_remote(folder) and is_remote(to):
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as here:
            fetch_files(folder, names, here)
            send_files(here, to)
    elif is_remote(folder):
        os.makedirs(to, exist_ok=True)
        fetch_files(folder, names, to)
    elif is_remote(to):
        send_files(folder, to)
    else:
        shutil.copytree(folder, to)
