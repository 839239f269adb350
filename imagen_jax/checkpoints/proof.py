"""Proof that a checkpoint holds all that was written, and as it was written.

Digests of all files tell what changed since. They are taken of what lies there, so what a process wrote elsewhere is
not missed by them: before they are taken, the chunks of every array are counted.
"""

import contextlib
import itertools
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorstore

from imagen_jax.checkpoints.folders import DAMAGED, DIGESTS
from imagen_jax.errors import UserError, listed
from imagen_jax.files import (
    AnyPath,
    check_content,
    files_under,
    is_remote,
    kvstore_spec,
    read_json,
    sha256_of_files,
    write_json,
)

_CACHED_BYTES = 100 << 20
ONE_FOLDER = "MODEL_DIR must be one folder that every process sees"


class DamagedCheckpointError(UserError):
    """A checkpoint whose files are not those that were written."""


def verify(path: AnyPath) -> None:
    """Compares every file of a checkpoint with the digest taken when it was written.

    Raises:
      DamagedCheckpointError: names the files that changed, are missing or are new.
      UserError: a file cannot be read, which says nothing about its bytes.
    """
    expected = read_digests(path)
    with readable(path):
        found = digests(path)
    check_digests(path, expected, found)


def check_digests(path: AnyPath, expected: dict[str, str], found: dict[str, str]) -> None:
    """Compares digests of a checkpoint's files with those of what was written.

    Raises:
      DamagedCheckpointError: names the files that changed, are missing or are new.
    """
    wrong = [f"{name} (changed)" for name in expected if name in found and found[name] != expected[name]]
    wrong += [f"{name} (missing)" for name in expected if name not in found]
    wrong += [f"{name} (not written by the run)" for name in found if name not in expected]
    if wrong:
        raise DamagedCheckpointError(f"checkpoint {path} is damaged: {listed(wrong)}; {fix(path)}")


def read_digests(path: AnyPath) -> dict[str, str]:
    """The digest of every file of a checkpoint, by its name there, when it was written.

    Raises:
      DamagedCheckpointError, UserError: as `read_part`.
    """
    return read_part(path, DIGESTS, {...: str})


def read_part(path: AnyPath, name: str, form: Any) -> Any:
    """Reads what a JSON file of a checkpoint holds, of the form that `files.check_content` takes.

    Raises:
      DamagedCheckpointError: it is missing, or holds something else.
      UserError: it cannot be read, which says nothing about its bytes.
    """
    try:
        with readable(path):
            content = read_json(path / name)
        check_content(path / name, content, form, fix(path))
    except DamagedCheckpointError:
        raise
    except UserError as error:
        raise error if isinstance(error.__cause__, OSError) else DamagedCheckpointError(str(error)) from error
    except ValueError as error:
        raise DamagedCheckpointError(f"{path} has no readable {name} ({error}); {fix(path)}") from error
    return content


@contextlib.contextmanager
def readable(path: AnyPath) -> Iterator[None]:
    """A block that reads files of a checkpoint and tells what a failure means.

    Raises:
      DamagedCheckpointError: a file was not there.
      UserError: one cannot be read, which says nothing about its bytes.
    """
    try:
        yield
    except (FileNotFoundError, IsADirectoryError) as error:
        raise DamagedCheckpointError(f"{path} lacks a file that it had ({error}); {fix(path)}") from error
    except OSError as error:
        raise UserError(
            f"checkpoint {path} cannot be read ({error}); its bytes may be sound: fix the permissions or the disk, "
            "then run the same command again"
        ) from error


def digests(path: AnyPath) -> dict[str, str]:
    """SHA-256 of all files of a checkpoint but their list, by their names in it.

    Raises:
      OSError: a file or a folder cannot be read.
    """
    names = sorted(name for name in listed_files(path) if name != DIGESTS)
    return dict(zip(names, sha256_of_files([path / name for name in names]), strict=True))


def listed_files(path: AnyPath) -> list[str]:
    """The files of a checkpoint, by their names in it.

    Raises:
      OSError: a folder cannot be listed.
    """
    if is_remote(path):
        return list(files_under(path))

    def refuse(error: OSError) -> None:
        raise error  # A folder that may not be listed must not pass for an empty one.

    files = (Path(folder, name) for folder, _, names in os.walk(path, onerror=refuse) for name in names)
    return [file.relative_to(path).as_posix() for file in files if file.is_file()]


def write_digests(path: AnyPath, known: dict[str, str] | None = None) -> None:
    """Writes the digests of all files of a checkpoint, its last file; None: they are taken of what lies there."""
    write_json(path / DIGESTS, digests(path) if known is None else known, sync=True)


def check_chunks(item: AnyPath, num_arrays: int) -> None:
    """Raises UserError unless all chunks of all arrays of an orbax item (OCDBT, zarr) are there.

    What is not there would be read as zeros. Chunks are counted by their names; no values are read.

    Args:
      item: its directory.
      num_arrays: how many arrays were to be written.
    """
    # What was read once is not asked for again: in a bucket each question takes its time.
    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": _CACHED_BYTES}})
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": kvstore_spec(item)}, context=context).result()
    keys = {key.decode() for key in store.list().result()}
    arrays = [key.removesuffix("/.zarray") for key in keys if key.endswith("/.zarray")]
    missing = [f"{num_arrays - len(arrays)} arrays"] if len(arrays) != num_arrays else []
    found = [store.read(f"{name}/.zarray", staleness_bound=float("-inf")) for name in sorted(arrays)]
    for name, one in zip(sorted(arrays), found, strict=True):
        missing += sorted(_chunks(name, json.loads(one.result().value)) - keys)
    if missing:
        raise UserError(f"{len(missing)} parts of {item.name} were not written: {listed(missing)}; {ONE_FOLDER}")


def _chunks(name: str, zarray: dict[str, Any]) -> set[str]:
    """Keys of an array's chunks, by its zarr (version 2) metadata."""
    counts = [math.ceil(size / chunk) for size, chunk in zip(zarray["shape"], zarray["chunks"], strict=True)]
    places = itertools.product(*map(range, counts))
    return {f"{name}/{zarray['dimension_separator'].join(map(str, place)) or '0'}" for place in places}


def fix(path: AnyPath) -> str:
    """Advice about a damaged checkpoint, the end of a message."""
    if is_remote(path):
        return f"restore it from a copy, or rename its {DIGESTS} to {DIGESTS}{DAMAGED} to use the checkpoint before it"
    return f"restore it from a copy, or rename it to {path.name}{DAMAGED} to use the checkpoint before it"
