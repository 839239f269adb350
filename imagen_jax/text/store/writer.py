"""Writes embedding stores (imagen_jax.text.store.reader): several processes at once, each free to die at any moment.

While a store is being written its directory also holds

    plan.json                       what the store will be; a writer of another plan is refused
    text-SSSSS-of-NNNNN.json, .npz  of a whole shard: its digest and counts; its example keys and their rows
    *.lock                          held by a writer for as long as it lives

A shard appears whole or not at all, and is worth nothing without its .json, which is written last. Locks are the
file system's (flock): those of a killed process are free again. Processes on several hosts need a file system that
carries them (NFS, Lustre, Filestore; not an object store).
"""

import contextlib
import fcntl
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from imagen_jax.checks import check_count
from imagen_jax.errors import UserError, file_errors
from imagen_jax.files import move_synced, read_json, sha256_of_file, whole_file, write_json
from imagen_jax.text.store.format import (
    FORMAT_VERSION,
    HEADER,
    INDEX_KEYS,
    INDEX_ROWS,
    NO_FLOAT16,
    NULL_TEXT,
    PLAN,
    STORE_DTYPES,
    file_entries,
    fingerprint_differences,
    is_whole,
    pack,
    remove_store,
    shard_name,
)
from imagen_jax.typing import Float

MAX_KEY_BYTES = 256


class StoreWriter:
    """One of the processes that write a store; one of the same plan carries on where a killed one stopped.

    Args:
      directory: the store's directory; made if absent.
      fingerprint: what makes the embeddings (TextEncoder.fingerprint); its "dtype" is the stored dtype.
      embed_dim: width of a token embedding.
      num_shards: shards of the store.
      corpus_id: name of the corpus that the keys belong to.
      overwrite: remove a finished store, or an unfinished one of another plan, instead of refusing.

    Raises:
      UserError: the directory holds a finished store, or an unfinished one of another plan; or `overwrite` is
        asked for while another process writes there.
    """

    def __init__(
        self,
        directory: str,
        *,
        fingerprint: Mapping[str, Any],
        embed_dim: int,
        num_shards: int = 1,
        corpus_id: str = "",
        overwrite: bool = False,
    ):
        check_count("num_shards", num_shards)
        if fingerprint.get("dtype") not in STORE_DTYPES:
            raise UserError(
                f"dtype must be one of {tuple(STORE_DTYPES)}; got {fingerprint.get('dtype')!r} ({NO_FLOAT16})"
            )
        self.directory, self.num_shards = directory, num_shards
        self._dtype, self._width = fingerprint["dtype"], embed_dim
        self._plan: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "fingerprint": dict(fingerprint),
            "embed_dim": embed_dim,
            "num_shards": num_shards,
            "corpus": {"id": corpus_id},
        }
        if os.path.exists(self._path(HEADER)) and not overwrite:
            raise UserError(
                f"{directory!r} holds a finished embedding store; set overwrite or point STORE_DIR elsewhere"
            )
        os.makedirs(directory, exist_ok=True)
        with contextlib.ExitStack() as verifying:
            with _locked(self._path("plan.lock")):
                # Held for as long as this object lives.
                self._alive = open(self._path("writers.lock"), "a+b")  # noqa: SIM115
                try:
                    resumes = self._join(overwrite)
                except BaseException:
                    self._alive.close()
                    raise
                if resumes:
                    verifying.enter_context(_locked(self._path("finish.lock")))
            # Others may join and write what is missing meanwhile; `missing_shards` has them wait before they finish.
            if resumes:
                self._remove_damaged()

    def _path(self, name: str) -> str:
        return os.path.join(self.directory, name)

    def _beside(self, shard: int, kind: str = "array_record") -> str:
        return self._path(shard_name(shard, self.num_shards, kind))

    def _join(self, overwrite: bool) -> bool:
        """Agrees with other writers on the plan; True: there are none, and shards of killed ones may be damaged."""
        alone = _lock(self._alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finished, begun = os.path.exists(self._path(HEADER)), os.path.exists(self._path(PLAN))
        lines = fingerprint_differences(read_json(self._path(PLAN)), self._plan) if begun else []
        if lines and not overwrite:
            raise UserError(
                f"{self.directory!r} holds an unfinished embedding store of another plan:\n  "
                + "\n  ".join(lines)
                + "\nfinish it with its own settings, set overwrite, or point STORE_DIR elsewhere"
            )
        if finished or lines:
            if not alone:
                raise UserError(
                    f"another process is writing an embedding store of other settings to {self.directory!r}; wait for "
                    "it or stop it, or point STORE_DIR elsewhere"
                )
            remove_store(self.directory)
        write_json(self._path(PLAN), self._plan, sync=True)
        _lock(self._alive, fcntl.LOCK_SH)
        return alone and begun and not lines

    def _remove_damaged(self) -> None:
        for shard in range(self.num_shards):
            note = self._beside(shard, "json")
            if os.path.exists(note) and not is_whole(self.directory, read_json(note)):
                os.remove(note)

    def missing_shards(self) -> list[int]:
        """Shards that nobody has finished yet, in order; none is said when those of killed writers are verified too."""
        if missing := self._not_noted():
            return missing
        with contextlib.suppress(FileNotFoundError), open(self._path("finish.lock"), "rb") as file:
            _lock(file, fcntl.LOCK_SH)
        return self._not_noted()

    def _not_noted(self) -> list[int]:
        if os.path.exists(self._path(HEADER)):
            return []
        return [shard for shard in range(self.num_shards) if not os.path.exists(self._beside(shard, "json"))]

    def is_missing(self, shard: int) -> bool:
        """Tells if nobody has finished a shard yet."""
        return not os.path.exists(self._beside(shard, "json")) and not os.path.exists(self._path(HEADER))

    @contextlib.contextmanager
    def claim(self, shard: int) -> Iterator[bool]:
        """Claims the shard for this process; True if it was not finished and no other process is at it."""
        if not self.is_missing(shard):
            yield False
            return
        with _locked(self._beside(shard, "lock"), wait=False) as free:
            yield free and self.is_missing(shard)

    def write_shard(
        self,
        shard: int,
        embeddings: Iterable[Float[np.ndarray, "_n _d"]],
        keys: Sequence[bytes],
        rows: Sequence[int],
        **notes: int,
    ) -> None:
        """Writes a shard and notes it as whole.

        Args:
          shard: its number.
          embeddings: in the order of their captions' digests (`caption_digest`).
          keys: example keys of these embeddings.
          rows: which embedding of this shard each key means.
          **notes: counts to add up in store.json (num_truncated).

        Raises:
          UserError: a key recurs in the shard or is not allowed.
        """
        sorted_keys, order = sort_keys(keys)
        beside = self._beside(shard) + ".tmp"
        # One record a group: random access reads one embedding. Floats hardly compress.
        with file_errors():
            writer = ArrayRecordWriter(beside, "group_size:1,uncompressed")
        num_embeddings, num_tokens = 0, 0
        for embedding in embeddings:
            if embedding.ndim != 2 or embedding.shape[1] != self._width:
                raise ValueError(f"embedding of shape {embedding.shape}; expected (n, {self._width})")
            with file_errors():
                writer.write(pack(embedding, self._dtype))
            num_embeddings += 1
            num_tokens += len(embedding)
        with file_errors():
            writer.close()
        if len(keys) != len(rows) or (len(rows) and not 0 <= min(rows) <= max(rows) < num_embeddings):
            raise ValueError(f"shard {shard}: {len(keys)} keys, {len(rows)} rows, {num_embeddings} embeddings")
        move_synced(beside, self._beside(shard))
        self.note_shard(shard, sorted_keys, np.asarray(rows, np.int64)[order], num_embeddings, num_tokens, **notes)

    def note_shard(
        self, shard: int, keys: np.ndarray, rows: np.ndarray, num_embeddings: int, num_tokens: int, **notes: int
    ) -> None:
        """Notes a shard that lies there as whole."""
        path = self._beside(shard)
        with whole_file(self._beside(shard, "npz"), sync=True) as file:
            np.savez(file, keys=keys, rows=rows)
        entry = {
            "file": os.path.basename(path),
            "num_embeddings": num_embeddings,
            "num_tokens": num_tokens,
            "num_bytes": os.path.getsize(path),
            "sha256": sha256_of_file(path),
            **notes,
        }
        write_json(self._beside(shard, "json"), entry, sync=True)

    def finish(self, null_text: Float[np.ndarray, "_n _d"]) -> None:
        """Writes the index and store.json, unless another process did: from here on the store is whole.

        Args:
          null_text: embedding of "", kept beside the others whether or not a caption is empty.

        Raises:
          UserError: a key recurs in several shards.
        """
        if os.path.exists(self._path(HEADER)):
            return
        with _locked(self._path("finish.lock")):
            if os.path.exists(self._path(HEADER)):
                return
            if missing := self._not_noted():
                raise ValueError(f"shards {missing} are not written")
            shards = [read_json(self._beside(i, "json")) for i in range(self.num_shards)]
            index = self._write_index(shards)
            null = self._write_file(NULL_TEXT, null_text.astype(np.float32))
            counts = {name: sum(one[name] for one in shards) for name in shards[0] if isinstance(shards[0][name], int)}
            del counts["num_bytes"]
            counts["num_keys"] = index.pop("num_keys")
            header = {**self._plan, **counts, "null_text": null, "index": index, "shards": shards}
            write_json(self._path(HEADER), header, sync=True)
            for shard in range(self.num_shards):
                for kind in ("json", "npz", "lock"):
                    _remove(self._beside(shard, kind))
            for name in (PLAN, "writers.lock", "finish.lock", "plan.lock"):
                _remove(self._path(name))

    def _write_index(self, shards: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        keys, rows, first = [], [], 0
        for number, entry in enumerate(shards):
            with np.load(self._beside(number, "npz")) as mine:
                keys.append(mine["keys"])
                rows.append(mine["rows"] + first)
            first += entry["num_embeddings"]
        # Numbers as narrow as they may be: the index is read by every host.
        rows_array = np.concatenate(rows).astype(np.uint32 if first < 2**32 else np.int64)
        keys_array = np.concatenate(keys)
        order = _order(keys_array)
        return {
            "num_keys": len(keys_array),
            "keys": self._write_file(INDEX_KEYS, keys_array[order]),
            "rows": self._write_file(INDEX_ROWS, rows_array[order]),
        }

    def _write_file(self, name: str, array: np.ndarray) -> dict[str, Any]:
        path = self._path(name)
        with whole_file(path, sync=True) as file:
            np.save(file, array)
        return {"file": name, "num_bytes": os.path.getsize(path), "sha256": sha256_of_file(path)}


def reopen(directory: str, damaged: Collection[str]) -> None:
    """Turns a finished store into one that lacks its damaged shards, for `StoreWriter` to finish again.

    The example keys of the whole shards are read from the index; where that is damaged too, every shard counts as
    missing. Where another process did the same meanwhile, nothing is left to do.

    Args:
      directory: the store.
      damaged: names of its damaged files.
    """
    with _locked(os.path.join(directory, "plan.lock")):
        if not os.path.exists(os.path.join(directory, HEADER)):
            return
        header = read_json(os.path.join(directory, HEADER))
        if all(is_whole(directory, entry) for entry in file_entries(header) if entry["file"] in damaged):
            return
        shards, num_shards = header["shards"], header["num_shards"]
        plan = {name: header[name] for name in ("format_version", "fingerprint", "embed_dim", "num_shards", "corpus")}
        write_json(os.path.join(directory, PLAN), plan, sync=True)
        if not {INDEX_KEYS, INDEX_ROWS} & set(damaged):
            keys = np.load(os.path.join(directory, INDEX_KEYS), mmap_mode="r")
            rows = np.load(os.path.join(directory, INDEX_ROWS), mmap_mode="r")
            starts = np.cumsum([0, *(entry["num_embeddings"] for entry in shards)])
            for shard, entry in enumerate(shards):
                if entry["file"] in damaged:
                    continue
                mine = np.flatnonzero((rows >= starts[shard]) & (rows < starts[shard + 1]))
                kept = {"keys": keys[mine], "rows": rows[mine].astype(np.int64) - starts[shard]}
                path = os.path.join(directory, shard_name(shard, num_shards, "npz"))
                with whole_file(path, sync=True) as file:
                    np.savez(file, **kept)
                write_json(os.path.join(directory, shard_name(shard, num_shards, "json")), entry, sync=True)
        os.remove(os.path.join(directory, HEADER))


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.remove(path)


def _lock(file: Any, how: int) -> bool:
    try:
        fcntl.flock(file, how)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _locked(path: str, wait: bool = True) -> Iterator[bool]:
    """Holds a file's lock; without `wait`, tells whether it was to be had."""
    with open(path, "a+b") as file:
        yield _lock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


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
    order = _order(array)
    return array[order], order


def _order(keys: np.ndarray) -> np.ndarray:
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    recurring = np.flatnonzero(ordered[1:] == ordered[:-1])
    if len(recurring):
        raise UserError(
            f"{len(recurring)} example keys recur, the first is {bytes(ordered[recurring[0]])!r}; keys must be "
            "unique: rebuild the corpus"
        )
    return order
