"""Proof that a checkpoint holds all that was written, and as it was written.

Digests of all files tell what changed since. They are taken of what lies there, so what a process wrote elsewhere is
not missed by them: before they are taken, the chunks of every array are counted.
"""

import itertools
import json
import math
import os
from pathlib import Path
from typing import Any

import tensorstore

from imagen_jax.errors import UserError
from imagen_jax.files import read_json, sha256_of_files, write_json

DIGESTS = "digests.json"
DAMAGED = ".damaged"
MAX_LISTED = 10
ONE_FOLDER = "MODEL_DIR must be one folder that every process sees"


class DamagedCheckpointError(UserError):
    """A checkpoint whose files are not those that were written."""


def verify(path: Path) -> None:
    """Compares every file of a checkpoint with the digest taken when it was written.

    Raises:
      DamagedCheckpointError: names the files that changed, are missing or are new.
      UserError: a file cannot be read, which says nothing about its bytes.
    """
    try:
        expected, found = read_json(path / DIGESTS), digests(path)
        if not isinstance(expected, dict):
            raise ValueError("no JSON object")
    except (FileNotFoundError, ValueError) as error:
        raise DamagedCheckpointError(f"{path} has no readable {DIGESTS} ({error}); {_fix(path)}") from error
    except OSError as error:
        raise UserError(
            f"checkpoint {path} cannot be read ({error}); its bytes may be sound: fix the permissions or the disk, "
            "then run the same command again"
        ) from error
    wrong = [f"{name} (changed)" for name in expected if name in found and found[name] != expected[name]]
    wrong += [f"{name} (missing)" for name in expected if name not in found]
    wrong += [f"{name} (not written by the run)" for name in found if name not in expected]
    if wrong:
        raise DamagedCheckpointError(f"checkpoint {path} is damaged: {listed(wrong)}; {_fix(path)}")


def digests(path: Path) -> dict[str, str]:
    """SHA-256 of all files of a checkpoint but their list, by their names in it.

    Raises:
      OSError: a file or a folder cannot be read.
    """
    files = sorted(file for file in _files(path) if file != path / DIGESTS)
    names = [file.relative_to(path).as_posix() for file in files]
    return dict(zip(names, sha256_of_files(files), strict=True))


def _files(path: Path) -> list[Path]:
    def refuse(error: OSError) -> None:
        raise error  # A folder that may not be listed must not pass for an empty one.

    files = (Path(folder, name) for folder, _, names in os.walk(path, onerror=refuse) for name in names)
    return [file for file in files if file.is_file()]


def write_digests(path: Path) -> None:
    """Writes the digests of all files of a checkpoint, its last file."""
    write_json(path / DIGESTS, digests(path), sync=True)


def check_chunks(item: Path, num_arrays: int) -> None:
    """Raises UserError unless all chunks of all arrays of an orbax item (OCDBT, zarr) are there.

    What is not there would be read as zeros. Chunks are counted by their names; no values are read.

    Args:
      item: its directory.
      num_arrays: how many arrays were to be written.
    """
    base = {"driver": "file", "path": f"{item.absolute()}/"}
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
    keys = {key.decode() for key in store.list().result()}
    arrays = [key.removesuffix("/.zarray") for key in keys if key.endswith("/.zarray")]
    missing = [f"{num_arrays - len(arrays)} arrays"] if len(arrays) != num_arrays else []
    for name in sorted(arrays):
        missing += sorted(_chunks(name, json.loads(store.read(f"{name}/.zarray").result().value)) - keys)
    if missing:
        raise UserError(f"{len(missing)} parts of {item.name} were not written: {listed(missing)}; {ONE_FOLDER}")


def _chunks(name: str, zarray: dict[str, Any]) -> set[str]:
    """Keys of an array's chunks, by its zarr (version 2) metadata."""
    counts = [math.ceil(size / chunk) for size, chunk in zip(zarray["shape"], zarray["chunks"], strict=True)]
    places = itertools.product(*map(range, counts))
    return {f"{name}/{zarray['dimension_separator'].join(map(str, place)) or '0'}" for place in places}


def listed(parts: list[str]) -> str:
    """The first parts of a list in words, and how many more there are."""
    more = f"; and {len(parts) - MAX_LISTED} more" if len(parts) > MAX_LISTED else ""
    return "; ".join(parts[:MAX_LISTED]) + more


def _fix(path: Path) -> str:
    return f"restore it from a copy, or rename it to {path.name}{DAMAGED} to use the checkpoint before it"
