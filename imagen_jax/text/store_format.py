"""File names, digests and fingerprints of embedding stores (imagen_jax.text.store)."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

FORMAT_VERSION = 1
STORE_DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
REBUILD = "rebuild it (`imagen_jax cache_text --gin_file=…`) or point STORE_DIR elsewhere"
_FILES = re.compile(r"(text-\d+-of-\d+\.array_record|index\.npz|partial\.json|store\.json)(\.tmp[-\d]*)?")


def file_sha256(path: str) -> str:
    """Hex SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def shard_name(shard: int, num_shards: int) -> str:
    """File name of shard `shard` of `num_shards`."""
    return f"text-{shard:05d}-of-{num_shards:05d}.array_record"


def fingerprint_differences(got: Mapping[str, Any], expected: Mapping[str, Any], prefix: str = "") -> list[str]:
    """One line "part: got …, expected …" for each part of `expected` that `got` lacks or states otherwise."""
    lines: list[str] = []
    for part, want in expected.items():
        have = got.get(part, "nothing")
        if isinstance(want, Mapping) and isinstance(have, Mapping):
            lines += fingerprint_differences(have, want, f"{prefix}{part}.")
        elif have != want:
            lines.append(f"{prefix}{part}: got {have}, expected {want}")
    return lines


def write_json(path: str, value: Mapping[str, Any]) -> None:
    """Writes JSON beside `path`, then renames: the file is whole or absent."""
    beside = f"{path}.tmp-{os.getpid()}"
    with open(beside, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def read_json(path: str) -> dict[str, Any]:
    """A JSON object from a file."""
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def remove_store(directory: str) -> None:
    """Removes a store's own files from a directory, store.json first, so that no half store looks whole."""
    names = [name for name in os.listdir(directory) if _FILES.fullmatch(name)]
    for name in sorted(names, key=lambda name: name != "store.json"):
        os.remove(os.path.join(directory, name))
