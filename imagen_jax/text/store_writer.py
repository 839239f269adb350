"""Writes embedding stores (imagen_jax.text.store) so that a kill at any moment loses one shard at most."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from imagen_jax.errors import UserError, file_errors
from imagen_jax.text.store_format import (
    FORMAT_VERSION,
    STORE_DTYPES,
    file_sha256,
    fingerprint_differences,
    read_json,
    remove_store,
    shard_name,
    write_json,
)
from imagen_jax.typing import Float

MAX_KEY_BYTES = 256


class StoreWriter:
    """Writes a store shard by shard; a writer of the same plan carries on where a killed one stopped.

    Args:
      directory: the store's directory; made if absent.
      fingerprint: what makes the embeddings (TextEncoder.fingerprint); its "dtype" is the stored dtype.
      embed_dim: width of a token embedding.
      num_embeddings: distinct embeddings to come.
      shard_size: embeddings in one shard.
      corpus_id: name of the corpus that the keys belong to.
      corpus_sha256: digest of its keys and captions.
      overwrite: remove a finished store, or an unfinished one of another plan, instead of refusing.

    Raises:
      UserError: the directory holds a finished store, or an unfinished one of another plan.
    """

    def __init__(
        self,
        directory: str,
        *,
        fingerprint: Mapping[str, Any],
        embed_dim: int,
        num_embeddings: int,
        shard_size: int = 50_000,
        corpus_id: str = "",
        corpus_sha256: str = "",
        overwrite: bool = False,
    ):
        if num_embeddings < 1 or shard_size < 1:
            raise UserError(f"num_embeddings and shard_size must be at least 1; got {num_embeddings} and {shard_size}")
        if fingerprint.get("dtype") not in STORE_DTYPES:
            raise UserError(
                f"dtype must be one of {tuple(STORE_DTYPES)}; got {fingerprint.get('dtype')!r} "
                "(float16 is not offered: T5's outputs overflow it)"
            )
        if os.path.exists(os.path.join(directory, "store.json")):
            if not overwrite:
                raise UserError(
                    f"{directory!r} holds a finished embedding store; set overwrite or point STORE_DIR elsewhere"
                )
            remove_store(directory)
        self._directory, self._dtype = directory, STORE_DTYPES[fingerprint["dtype"]]
        self._size, self._num_shards = shard_size, -(-num_embeddings // shard_size)
        self._plan: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "fingerprint": dict(fingerprint),
            "embed_dim": embed_dim,
            "num_embeddings": num_embeddings,
            "shard_size": shard_size,
            "corpus": {"id": corpus_id, "sha256": corpus_sha256},
        }
        self._partial_path = os.path.join(directory, "partial.json")
        os.makedirs(directory, exist_ok=True)
        self._shards: dict[str, dict[str, Any]] = self._resume(overwrite)

    def _resume(self, overwrite: bool) -> dict[str, dict[str, Any]]:
        if not os.path.isfile(self._partial_path):
            return {}
        partial = read_json(self._partial_path)
        lines = fingerprint_differences(partial["plan"], self._plan)
        if lines and overwrite:
            remove_store(self._directory)
            return {}
        if lines:
            raise UserError(
                f"{self._directory!r} holds an unfinished embedding store of another plan:\n  "
                + "\n  ".join(lines)
                + "\nfinish it with its own settings, set overwrite, or point STORE_DIR elsewhere"
            )
        whole = {}
        for file, entry in partial["shards"].items():
            path = os.path.join(self._directory, file)
            if os.path.isfile(path) and file_sha256(path) == entry["sha256"]:
                whole[file] = entry
        return whole

    def missing_shards(self) -> list[int]:
        """Shards still to be written, in order."""
        return [i for i in range(self._num_shards) if shard_name(i, self._num_shards) not in self._shards]

    def rows(self, shard: int) -> range:
        """The embeddings that belong into a shard."""
        start = shard * self._size
        return range(start, min(start + self._size, self._plan["num_embeddings"]))

    def write_shard(self, shard: int, embeddings: Iterable[Float[np.ndarray, "_n d"]]) -> None:
        """Writes the embeddings of `rows(shard)`, in order, and notes the shard as whole."""
        name = shard_name(shard, self._num_shards)
        path = os.path.join(self._directory, name)
        beside = f"{path}.tmp"
        # One record a group: random access reads one embedding. Floats hardly compress.
        with file_errors():
            writer = ArrayRecordWriter(beside, "group_size:1,uncompressed")
        num_embeddings, num_tokens, width = 0, 0, self._plan["embed_dim"]
        for embedding in embeddings:
            if embedding.ndim != 2 or embedding.shape[1] != width:
                raise ValueError(f"embedding of shape {embedding.shape}; expected (n, {width})")
            with file_errors():
                writer.write(np.ascontiguousarray(embedding, self._dtype).tobytes())
            num_embeddings += 1
            num_tokens += len(embedding)
        with file_errors():
            writer.close()
        expected = len(self.rows(shard))
        if num_embeddings != expected:
            raise ValueError(f"shard {shard}: got {num_embeddings} embeddings, expected {expected}")
        with open(beside, "rb") as file:
            os.fsync(file.fileno())
        self._shards[name] = {
            "file": name,
            "num_embeddings": num_embeddings,
            "num_tokens": num_tokens,
            "num_bytes": os.path.getsize(beside),
            "sha256": file_sha256(beside),
        }
        os.replace(beside, path)
        write_json(self._partial_path, {"plan": self._plan, "shards": self._shards})

    def finish(self, keys: Sequence[bytes], rows: Sequence[int], **notes: int) -> None:
        """Writes the index and store.json: from here on the store is whole.

        Args:
          keys: example keys, each once, 1 to 256 bytes, not ending in a zero byte.
          rows: which embedding each key means.
          **notes: counts to keep in store.json (num_truncated).

        Raises:
          UserError: a key recurs or is not allowed.
        """
        if self.missing_shards():
            raise ValueError(f"shards {self.missing_shards()} are not written")
        if len(keys) != len(rows) or min(rows) < 0 or max(rows) >= self._plan["num_embeddings"]:
            raise ValueError(f"{len(keys)} keys, {len(rows)} rows in {min(rows)}..{max(rows)}")
        index = os.path.join(self._directory, "index.npz")
        sorted_keys, order = sort_keys(keys)
        with open(f"{index}.tmp", "wb") as file:
            np.savez(file, keys=sorted_keys, rows=np.asarray(rows, np.int64)[order])
            file.flush()
            os.fsync(file.fileno())
        os.replace(f"{index}.tmp", index)
        shards = [self._shards[shard_name(i, self._num_shards)] for i in range(self._num_shards)]
        header = {
            **self._plan,
            "num_tokens": sum(shard["num_tokens"] for shard in shards),
            "num_keys": len(keys),
            **notes,
            "index": {"file": "index.npz", "num_bytes": os.path.getsize(index), "sha256": file_sha256(index)},
            "shards": shards,
        }
        write_json(os.path.join(self._directory, "store.json"), header)
        os.remove(self._partial_path)


def sort_keys(keys: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Example keys sorted, and their order.

    Raises:
      UserError: a key recurs, is empty, is longer than MAX_KEY_BYTES or ends in a zero byte.
    """
    for key in keys:
        if not 0 < len(key) <= MAX_KEY_BYTES or key.endswith(b"\0"):
            raise UserError(
                f"example key {key[:300]!r} is not allowed: expected 1 to {MAX_KEY_BYTES} bytes, the last one not zero"
            )
    array = np.array(list(keys), dtype=np.bytes_)
    order = np.argsort(array, kind="stable")
    array = array[order]
    recurring = np.flatnonzero(array[1:] == array[:-1])
    if len(recurring):
        raise UserError(
            f"{len(recurring)} example keys recur, the first is {bytes(array[recurring[0]])!r}; keys must be "
            "unique: rebuild the corpus"
        )
    return array, order
