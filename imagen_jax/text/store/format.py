"""Format of embedding stores (imagen_jax.text.store.reader): files, names, digests and fingerprints.

One record is one embedding of n tokens, C order, little-endian:

    float32, bfloat16    n x embed_dim numbers
    int8                 n float32 scales, then n x embed_dim numbers: x = scale * number, scale = max|x| / 127

A scale a token, as tokens differ in size by far more than the numbers of one token do.
"""

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from imagen_jax.files import FILE_NAME, files_under, remove_files, sha256_of_file, sha256_of_files, size_of
from imagen_jax.typing import Float

FORMAT_VERSION = 2
STORE_DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "int8": np.dtype(np.int8),
}
NO_FLOAT16 = "float16 is not offered: T5's outputs overflow it"
_SCALE = np.dtype(np.float32)
REBUILD = "rebuild it (`imagen_jax cache_text --gin_file=…`) or point STORE_DIR elsewhere"
HEADER, PLAN, NULL_TEXT = "store.json", "plan.json", "null_text.npy"
INDEX_KEYS, INDEX_ROWS = "index_keys.npy", "index_rows.npy"
FILE_FORM = {"file": FILE_NAME, "num_bytes": int, "sha256": str}
SHARD_FORM = {**FILE_FORM, "num_embeddings": int, "num_tokens": int}
HEADER_FORM = {
    "fingerprint": {"dtype": str},
    "embed_dim": int,
    "num_shards": int,
    "corpus": {"id": str},
    "num_embeddings": int,
    "num_keys": int,
    "num_tokens": int,
    "null_text": FILE_FORM,
    "index": {"keys": FILE_FORM, "rows": FILE_FORM},
    "shards": [SHARD_FORM],
}
_FILES = re.compile(
    r"(text-\d+-of-\d+\.(array_record(\.index)?|json|npz|lock)|(index_keys|index_rows|null_text)\.npy|index\.npz|"
    r"(plan|partial|store)\.json|(plan|writers|check|finish)\.lock)(\.tmp[-\d]*)?"
)


def pack(embedding: Float[np.ndarray, "_n _d"], dtype: str) -> bytes:
    """One embedding as a record.

    Args:
      embedding: numbers of any float dtype.
      dtype: a name among STORE_DTYPES.
    """
    if dtype != "int8":
        return np.ascontiguousarray(embedding, STORE_DTYPES[dtype]).tobytes()
    values = np.asarray(embedding, np.float32)
    scales = np.maximum(np.abs(values).max(axis=1, initial=0.0), np.finfo(np.float32).tiny) / 127
    return scales.astype(_SCALE).tobytes() + np.rint(values / scales[:, None]).astype(np.int8).tobytes()


def unpack(record: bytes, dtype: str, embed_dim: int) -> Float[np.ndarray, "_n d"]:
    """The embedding of a record, read-only; numbers of int8 are rounded to bfloat16 after their scale.

    Raises:
      ValueError: the record's length is not that of an embedding.
    """
    if dtype != "int8":
        values = np.frombuffer(record, STORE_DTYPES[dtype]).reshape(-1, embed_dim)
    else:
        num_tokens = len(record) // (embed_dim + _SCALE.itemsize)
        scales = np.frombuffer(record, _SCALE, num_tokens)
        numbers = np.frombuffer(record, np.int8, offset=scales.nbytes).reshape(num_tokens, embed_dim)
        values = (numbers * scales[:, None]).astype(ml_dtypes.bfloat16)
    values.flags.writeable = False
    return values


def read_dtype(dtype: str) -> np.dtype:
    """The dtype that embeddings of a store have where they are read."""
    return STORE_DTYPES["float32" if dtype == "float32" else "bfloat16"]


def bytes_per_token(dtype: str, embed_dim: int) -> int:
    """Bytes that one token takes in a record."""
    return embed_dim * STORE_DTYPES[dtype].itemsize + (_SCALE.itemsize if dtype == "int8" else 0)


def caption_digest(caption: str) -> bytes:
    """Row order of a store: SHA-256 of the caption's UTF-8, so that no process need know the others."""
    return hashlib.sha256(caption.encode()).digest()


def shard_of(digest: bytes, num_shards: int) -> int:
    """The shard of a caption: shards are equal ranges of digests, in order."""
    return int.from_bytes(digest[:8], "big") * num_shards >> 64


def is_whole(directory: str, entry: Mapping[str, Any]) -> bool:
    """Tells if a file is there with the size and digest that its entry ("file", "num_bytes", "sha256") notes."""
    path = os.path.join(directory, entry["file"])
    return size_of(path) == entry["num_bytes"] and sha256_of_file(path) == entry["sha256"]


def damaged_files(directory: str, entries: Sequence[Mapping[str, Any]], contents: bool = True) -> list[str]:
    """Names of the files that are not as their entries note.

    Args:
      directory: of the store.
      entries: see `is_whole`.
      contents: compare digests too, not sizes alone.
    """
    sizes = files_under(directory)
    sized = [entry for entry in entries if sizes.get(entry["file"]) == entry["num_bytes"]]
    digests = sha256_of_files([os.path.join(directory, entry["file"]) for entry in sized]) if contents else []
    whole = {
        entry["file"]
        for entry, digest in zip(sized, digests if contents else [entry["sha256"] for entry in sized], strict=True)
        if digest == entry["sha256"]
    }
    return [entry["file"] for entry in entries if entry["file"] not in whole]


def file_entries(header: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The entries of a finished store's files."""
    return [header["null_text"], header["index"]["keys"], header["index"]["rows"], *header["shards"]]


def shard_name(shard: int, num_shards: int, kind: str = "array_record") -> str:
    """File name of shard `shard` of `num_shards`; of another kind, of what stands beside it while work goes on."""
    return f"text-{shard:05d}-of-{num_shards:05d}.{kind}"


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


def remove_store(directory: str) -> None:
    """Removes a store's own files from a directory, store.json first, so that no half store looks whole."""
    remove_files(directory, [HEADER])
    # Locks may be held.
    remove_files(directory, [name for name in own_files(directory) if not name.endswith(".lock")])


def own_files(directory: str) -> list[str]:
    """Names of the files in a directory that a store, or one that is being written, has there."""
    return [name for name in files_under(directory) if _FILES.fullmatch(name)]
