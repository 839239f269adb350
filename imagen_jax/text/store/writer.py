"""Writes embedding stores (imagen_jax.text.store.reader): several processes at once, each free to die at any moment.

While a store is being written its directory also holds

    plan.json                       what the store will be; a writer of another plan is refused
    text-SSSSS-of-NNNNN.json, .npz  of a whole shard: its digest and counts; its example keys and their rows
    *.lock                          held by a writer for as long as it lives

A shard appears whole or not at all, and is worth nothing without its .json, which is written last. Locks of a killed
process become free again (`files.locks`). Processes on several hosts need a bucket, or a file system that carries locks
(NFS, Lustre, Filestore).
"""

import contextlib
import math
import os
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from imagen_jax.array_records import SUFFIX, write_index
from imagen_jax.checks import check_count
from imagen_jax.errors import UserError, file_errors, listed
from imagen_jax.files import (
    LEASE_S,
    Presence,
    check_content,
    files_under,
    is_remote,
    local_copy,
    locked,
    make_dirs,
    move_file,
    read_json,
    remove_files,
    sha256_of_file,
    size_of,
    whole_file,
    write_json,
)
from imagen_jax.text.store.format import (
    FORMAT_VERSION,
    HEADER,
    INDEX_KEYS,
    INDEX_ROWS,
    NO_FLOAT16,
    NULL_TEXT,
    PLAN,
    REBUILD,
    SHARD_FORM,
    STORE_DTYPES,
    file_entries,
    fingerprint_differences,
    is_whole,
    own_files,
    pack,
    remove_store,
    shard_name,
)
from imagen_jax.text.store.keys import sort_keys, unique_order
from imagen_jax.typing import Float

_SCRATCH = ".writing-"
_PLAN_LOCK, _WRITERS, _CHECK_LOCK, _FINISH_LOCK = "plan.lock", "writers.lock", "check.lock", "finish.lock"


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
        if self._has(HEADER) and not overwrite:
            raise UserError(
                f"{directory!r} holds a finished embedding store; set overwrite or point STORE_DIR elsewhere"
            )
        make_dirs(directory)
        # Counted in for as long as this object lives.
        self._presence = Presence(self._path(_WRITERS))
        with contextlib.ExitStack() as checking:
            with locked(self._path(_PLAN_LOCK), math.inf):
                self._presence.enter()
                try:
                    check = self._join(overwrite)
                except BaseException:
                    self._presence.leave()
                    raise
                if check:
                    checking.enter_context(locked(self._path(_CHECK_LOCK), math.inf))
            # Others may join and write what is missing meanwhile; `missing_shards` has them wait before they finish.
            if check:
                self._remove_damaged()

    def _path(self, name: str) -> str:
        return os.path.join(self.directory, name)

    def _has(self, name: str) -> bool:
        return size_of(self._path(name)) is not None

    def _beside(self, shard: int, kind: str = "array_record") -> str:
        return self._path(shard_name(shard, self.num_shards, kind))

    def _join(self, overwrite: bool) -> bool:
        """Makes way for the plan and writes it; tells if what is there of it is to be checked."""
        finished, begun = self._has(HEADER), self._has(PLAN)
        lines = self._plan_differences() if begun else []
        if lines and not overwrite:
            raise UserError(
                f"{self.directory!r} holds an unfinished embedding store of another plan: {listed(lines)}; "
                "finish it with its own settings, set overwrite, or point STORE_DIR elsewhere"
            )
        if finished or lines:
            # In a bucket, those of another machine that were killed have to be seen unchanged for a while.
            if not self._presence.alone(LEASE_S + 5 if is_remote(self.directory) else 0.0):
                raise UserError(
                    f"another process is writing an embedding store of other settings to {self.directory!r}; wait for "
                    "it or stop it, or point STORE_DIR elsewhere"
                )
            remove_store(self.directory)
        write_json(self._path(PLAN), self._plan, sync=True)
        return begun and not lines and self._presence.alone()

    def _plan_differences(self) -> list[str]:
        try:
            plan = read_json(self._path(PLAN))
            check_content(self._path(PLAN), plan, {}, REBUILD)
        except ValueError as error:
            return [f"{PLAN} is damaged ({error})"]
        return fingerprint_differences(plan, self._plan)

    def _remove_damaged(self) -> None:
        noted = set(range(self.num_shards)) - set(self._not_noted())
        damaged = [shard for shard in sorted(noted) if not self._is_noted_whole(shard)]
        remove_files(self.directory, [shard_name(shard, self.num_shards, "json") for shard in damaged])

    def _is_noted_whole(self, shard: int) -> bool:
        """Tells if a shard is what its note says, and its note and its keys can be read."""
        path = self._beside(shard, "json")
        try:
            note = read_json(path)
            check_content(path, note, SHARD_FORM, REBUILD)
            with np.load(local_copy(self._beside(shard, "npz"))) as mine:
                # numpy gives what is no array as bytes.
                keys, rows = np.asarray(mine["keys"]), np.asarray(mine["rows"])
        except Exception:  # zipfile and numpy raise what their parsers happen to raise.
            return False
        if keys.dtype.kind != "S" or rows.dtype.kind not in "iu" or keys.shape != rows.shape or keys.ndim != 1:
            return False
        own = note["file"] == shard_name(shard, self.num_shards)
        inside = len(rows) == 0 or 0 <= rows.min() <= rows.max() < note["num_embeddings"]
        return bool(own and inside) and is_whole(self.directory, note)

    def missing_shards(self) -> list[int]:
        """Shards that nobody has finished yet, in order; none is said when those of killed writers are checked too."""
        missing = self._not_noted()
        if not missing and not self._has(HEADER):
            with locked(self._path(_CHECK_LOCK), math.inf):
                missing = self._not_noted()
        return missing

    def _not_noted(self) -> list[int]:
        names = files_under(self.directory)
        if HEADER in names:
            return []
        return [i for i in range(self.num_shards) if shard_name(i, self.num_shards, "json") not in names]

    def is_missing(self, shard: int) -> bool:
        """Tells if nobody has finished a shard yet."""
        return not self._has(shard_name(shard, self.num_shards, "json")) and not self._has(HEADER)

    @contextlib.contextmanager
    def claim(self, shard: int) -> Iterator[bool]:
        """Claims the shard for this process; True if it was not finished and no other process is at it."""
        if not self.is_missing(shard):
            yield False
            return
        with locked(self._beside(shard, "lock")) as free:
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
        path = self._beside(shard)
        with self._scratch() as own:
            local = os.path.join(own, os.path.basename(path))
            num_embeddings, num_tokens = self._write_records(local, embeddings)
            if len(keys) != len(rows) or (len(rows) and not 0 <= min(rows) <= max(rows) < num_embeddings):
                raise ValueError(f"shard {shard}: {len(keys)} keys, {len(rows)} rows, {num_embeddings} embeddings")
            entry = {
                "file": os.path.basename(path),
                "num_embeddings": num_embeddings,
                "num_tokens": num_tokens,
                "num_bytes": os.path.getsize(local),
                "sha256": sha256_of_file(local),
                "index": write_index(local, num_embeddings),
                **notes,
            }
            for suffix in ("", SUFFIX):
                move_file(local + suffix, path + suffix, sync=True)
        with whole_file(self._beside(shard, "npz"), sync=True) as file:
            np.savez(file, keys=sorted_keys, rows=np.asarray(rows, np.int64)[order])
        write_json(self._beside(shard, "json"), entry, sync=True)

    def _write_records(self, path: str, embeddings: Iterable[Float[np.ndarray, "_n _d"]]) -> tuple[int, int]:
        """Writes embeddings as records; returns their number and that of their tokens."""
        # One record a group: random access reads one embedding. Floats hardly compress.
        with file_errors():
            writer = ArrayRecordWriter(path, "group_size:1,uncompressed")
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
        return num_embeddings, num_tokens

    def finish(self, null_text: Float[np.ndarray, "_n _d"]) -> None:
        """Writes the index and store.json, unless another process did: from here on the store is whole.

        Args:
          null_text: embedding of "", kept beside the others whether or not a caption is empty.

        Raises:
          UserError: a key recurs in several shards.
        """
        try:
            if not self._has(HEADER):
                self._finish(null_text)
        finally:
            self._presence.leave()

    def leave(self) -> None:
        """Counts this process out: it writes nothing more."""
        self._presence.leave()

    def _finish(self, null_text: Float[np.ndarray, "_n _d"]) -> None:
        with locked(self._path(_FINISH_LOCK), math.inf), locked(self._path(_CHECK_LOCK), math.inf):
            if self._has(HEADER):
                return
            if missing := self._not_noted():
                raise ValueError(f"shards {missing} are not written")
            shards = [read_json(self._beside(i, "json")) for i in range(self.num_shards)]
            index = self._write_index(shards)
            null = self._write_file(NULL_TEXT, null_text.astype(np.float32))
            names = [name for name in shards[0] if all(isinstance(one.get(name), int) for one in shards)]
            counts = {name: sum(one[name] for one in shards) for name in names}
            del counts["num_bytes"]
            counts["num_keys"] = index.pop("num_keys")
            header = {**self._plan, **counts, "null_text": null, "index": index, "shards": shards}
            write_json(self._path(HEADER), header, sync=True)
        kept = {HEADER, *(entry["file"] for entry in file_entries(header))}
        kept |= {f"{entry['file']}{SUFFIX}" for entry in shards}
        remove_files(self.directory, [name for name in own_files(self.directory) if name not in kept])
        if not is_remote(self.directory):
            # Left by processes that were killed: none is at a shard any more.
            for scratch in Path(self.directory).glob(f"{_SCRATCH}*"):
                shutil.rmtree(scratch)

    def _write_index(self, shards: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        keys, rows, first = [], [], 0
        for number, entry in enumerate(shards):
            with np.load(local_copy(self._beside(number, "npz"))) as mine:
                keys.append(mine["keys"])
                rows.append(mine["rows"] + first)
            first += entry["num_embeddings"]
        # Numbers as narrow as they may be: the index is read by every host.
        rows_array = np.concatenate(rows).astype(np.uint32 if first < 2**32 else np.int64)
        keys_array = np.concatenate(keys)
        order = unique_order(keys_array)
        return {
            "num_keys": len(keys_array),
            "keys": self._write_file(INDEX_KEYS, keys_array[order]),
            "rows": self._write_file(INDEX_ROWS, rows_array[order]),
        }

    def _write_file(self, name: str, array: np.ndarray) -> dict[str, Any]:
        with self._scratch() as own:
            local = os.path.join(own, name)
            np.save(local, array)
            entry = {"file": name, "num_bytes": os.path.getsize(local), "sha256": sha256_of_file(local)}
            move_file(local, self._path(name), sync=True)
        return entry

    def _scratch(self) -> tempfile.TemporaryDirectory[str]:
        """A folder on this machine; beside the store where that is here too, so that moving costs nothing."""
        return tempfile.TemporaryDirectory(dir=None if is_remote(self.directory) else self.directory, prefix=_SCRATCH)


def reopen(directory: str, damaged: Collection[str]) -> None:
    """Turns a finished store into one that lacks its damaged shards, for `StoreWriter` to finish again.

    The example keys of the whole shards are read from the index; where that is damaged too, every shard counts as
    missing. Where another process did the same meanwhile, nothing is left to do.

    Args:
      directory: the store.
      damaged: names of its damaged files.
    """
    with locked(os.path.join(directory, _PLAN_LOCK), math.inf):
        if size_of(os.path.join(directory, HEADER)) is None:
            return
        header = read_json(os.path.join(directory, HEADER))
        if all(is_whole(directory, entry) for entry in file_entries(header) if entry["file"] in damaged):
            return
        shards, num_shards = header["shards"], header["num_shards"]
        plan = {name: header[name] for name in ("format_version", "fingerprint", "embed_dim", "num_shards", "corpus")}
        write_json(os.path.join(directory, PLAN), plan, sync=True)
        if not {INDEX_KEYS, INDEX_ROWS} & set(damaged):
            keys = np.load(local_copy(os.path.join(directory, INDEX_KEYS)), mmap_mode="r")
            rows = np.load(local_copy(os.path.join(directory, INDEX_ROWS)), mmap_mode="r")
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
        remove_files(directory, [HEADER])
