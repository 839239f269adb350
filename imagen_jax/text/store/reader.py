"""The embedding store: token embeddings of a corpus' captions, computed once and looked up by example key.

Section 2.1: the text encoder is frozen, so its embeddings are computed offline. A directory holds

    store.json                            what it is, with a digest of every file; written last
    null_text.npy                         the embedding of "", float32
    index_keys.npy, index_rows.npy        example keys, sorted, and the row of each; mapped, not read
    text-SSSSS-of-NNNNN.array_record      one record an embedding, unpadded (see format)

Rows are in the order of the captions' SHA-256, and a shard is a range of digests: whoever has a caption knows its
shard. Several keys may point to one embedding, so a caption that recurs is stored once. Fingerprints state what made
the embeddings; `check` compares them part by part. ArrayRecord, because it gives a record by its number at the cost
of one read, with a few bytes of overhead a record.
"""

import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from imagen_jax.array_records import RecordFiles, Wanted
from imagen_jax.checks import check_path
from imagen_jax.errors import UserError, listed
from imagen_jax.files import check_content, files_under, local_copy, read_json
from imagen_jax.text.store.format import (
    FORMAT_VERSION,
    HEADER,
    HEADER_FORM,
    PLAN,
    REBUILD,
    STORE_DTYPES,
    bytes_per_token,
    damaged_files,
    file_entries,
    fingerprint_differences,
    read_dtype,
    unpack,
)
from imagen_jax.text.store.writer import StoreWriter
from imagen_jax.typing import Float

__all__ = ["MEMORY_BYTES", "EmbeddingStore", "StoreWriter"]

# Embeddings of a store up to this size are held in memory after the first lookup; larger ones are read
# from the shards record by record.
MEMORY_BYTES = 1_000_000_000


class EmbeddingStore:
    """A finished store, open for reading; `lookup` may be called from several threads.

    Attributes:
      fingerprint: what made the embeddings (see TextEncoder.fingerprint).
      dtype: of what is read: float32 of a store of float32, else bfloat16, in which it travels to the device.
      embed_dim: width of a token embedding.
      num_embeddings: distinct embeddings.
      num_keys: example keys.
      num_tokens: token embeddings in all.
      corpus_id: the corpus that the keys belong to, as its builder named it.
    """

    def __init__(self, directory: str, header: Mapping[str, Any]):
        self._directory, self._header = directory, header
        self.fingerprint: dict[str, Any] = header["fingerprint"]
        self.embed_dim: int = header["embed_dim"]
        self.num_embeddings: int = header["num_embeddings"]
        self.num_keys: int = header["num_keys"]
        self.num_tokens: int = header["num_tokens"]
        self.corpus_id: str = header["corpus"]["id"]
        self._dtype: str = self.fingerprint["dtype"]
        if self._dtype not in STORE_DTYPES or not self.embed_dim:
            raise self._damaged(f"{HEADER}: dtype {self._dtype!r}, embed_dim {self.embed_dim}")
        self.dtype: np.dtype = read_dtype(self._dtype)
        self._keys = self._array(header["index"]["keys"], "S", (self.num_keys,))
        self._rows = self._array(header["index"]["rows"], "iu", (self.num_keys,))
        self._shard_starts = np.cumsum([0, *(shard["num_embeddings"] for shard in header["shards"])])
        if self._shard_starts[-1] != self.num_embeddings:
            raise self._damaged(
                f"{HEADER}: the shards hold {self._shard_starts[-1]} of {self.num_embeddings} embeddings"
            )
        self._lock = threading.Lock()
        self._files = RecordFiles(REBUILD)
        self._memory: list[bytes] | None = None

    @classmethod
    def open(cls, directory: str) -> "EmbeddingStore":
        """Opens a finished store; reads no embeddings yet.

        Raises:
          UserError: there is no finished store, or a file is missing or of another size.
        """
        check_path("the embedding store", directory)
        path = os.path.join(directory, HEADER)
        sizes = files_under(directory)
        if HEADER not in sizes:
            begun = PLAN in sizes
            state = "is not finished" if begun else "does not exist"
            raise UserError(
                f"the embedding store {directory!r} {state} (no store.json); run "
                "`imagen_jax cache_text --gin_file=…`, which also finishes one that was interrupted"
            )
        try:
            header = read_json(path)
        except ValueError as error:
            raise UserError(f"{path} is damaged ({error}); {REBUILD}") from error
        version = header.get("format_version") if isinstance(header, dict) else None
        if version != FORMAT_VERSION:
            raise UserError(
                f"the embedding store {directory!r} has format_version {version!r}; expected {FORMAT_VERSION}; "
                f"{REBUILD}"
            )
        check_content(path, header, HEADER_FORM, REBUILD)
        for entry in file_entries(header):
            size = sizes.get(entry["file"])
            if size != entry["num_bytes"]:
                got = "no such file" if size is None else f"{size} bytes"
                raise UserError(
                    f"the embedding store {directory!r} is damaged: {entry['file']}: got {got}, expected "
                    f"{entry['num_bytes']} bytes; {REBUILD}"
                )
        return cls(directory, header)

    def _damaged(self, what: str) -> UserError:
        return UserError(f"the embedding store {self._directory!r} is damaged: {what}; {REBUILD}")

    def _array(self, entry: Mapping[str, Any], kinds: str, shape: tuple[int | None, ...]) -> np.ndarray:
        """A .npy file, mapped; a dimension of None may be any.

        Raises:
          UserError: it is damaged, of a dtype of other kinds or of another shape.
        """
        try:
            array = np.load(local_copy(os.path.join(self._directory, entry["file"])), mmap_mode="r")
        except Exception as error:  # Its header is Python text: what a parser of that happens to raise.
            raise self._damaged(f"{entry['file']} cannot be read ({error})") from error
        if not isinstance(array, np.ndarray):
            raise self._damaged(f"{entry['file']} is no array")
        fits = len(array.shape) == len(shape) and all(
            want in (None, n) for n, want in zip(array.shape, shape, strict=True)
        )
        if array.dtype.kind not in kinds or not fits:
            raise self._damaged(f"{entry['file']} holds {array.dtype} {array.shape}; expected {shape}")
        return array

    def _unpacked(self, record: bytes) -> Float[np.ndarray, "_n d"]:
        try:
            return unpack(record, self._dtype, self.embed_dim)
        except ValueError as error:
            raise self._damaged(f"a record of {len(record)} bytes is no embedding ({error})") from error

    @property
    def null_text(self) -> Float[np.ndarray, "_n d"]:
        """The embedding of "", unpadded: what DeepFloyd IF trains with in place of dropped text."""
        return np.array(self._array(self._header["null_text"], "f", (None, self.embed_dim)))

    def check(self, expected: Mapping[str, Any]) -> None:
        """Refuses a store that another encoder, vocabulary or length made.

        Args:
          expected: the run's own TextEncoder.fingerprint(...), or the parts of it that matter.

        Raises:
          UserError: names every part that differs.
        """
        lines = fingerprint_differences(self.fingerprint, expected)
        if lines:
            raise UserError(
                f"the embedding store {self._directory!r} was made with other text settings: {listed(lines)}; {REBUILD}"
            )

    def verify(self) -> None:
        """Reads every file again and compares its digest.

        Raises:
          UserError: names every damaged file.
        """
        bad = damaged_files(self._directory, file_entries(self._header))
        if bad:
            raise UserError(
                f"the embedding store {self._directory!r} is damaged: the contents of {', '.join(bad)} "
                f"differ from the digest in store.json; `imagen_jax cache_text` with the same settings rebuilds them "
                "and nothing else"
            )

    def lookup(self, keys: Sequence[bytes]) -> list[Float[np.ndarray, "_n d"]]:
        """Embeddings of example keys, in the order given: of `dtype`, unpadded, read-only.

        Raises:
          UserError: a key is not in the store, or a shard is damaged or cannot be opened.
        """
        rows = self._find(keys)
        num_bytes = self.num_tokens * bytes_per_token(self._dtype, self.embed_dim)
        with self._lock:
            if self._memory is None and num_bytes <= MEMORY_BYTES:
                self._memory = self._load_all()
            memory = self._memory
        # Outside of the lock: batches are read beside each other.
        if memory is None:
            return self._read(rows)
        return [self._unpacked(memory[row]) for row in rows.tolist()]

    def _find(self, keys: Sequence[bytes]) -> np.ndarray:
        wanted = np.array(list(keys), dtype=self._keys.dtype)  # cuts keys that are too long; caught below
        places = np.minimum(np.searchsorted(self._keys, wanted), max(len(self._keys) - 1, 0))
        found = self._keys[places].tolist() if len(self._keys) else [None] * len(keys)
        for key, have in zip(keys, found, strict=True):
            if key != have:
                raise UserError(
                    f"example key {key!r} is not in the embedding store {self._directory!r} "
                    f"(corpus {self.corpus_id!r}, {self.num_keys} keys); expected a store of this corpus; "
                    f"{REBUILD}"
                )
        rows = self._rows[places]
        if len(rows) and not 0 <= rows.min() <= rows.max() < self.num_embeddings:
            raise self._damaged(f"{self._header['index']['rows']['file']} leads to rows that are not there")
        return rows

    def _load_all(self) -> list[bytes]:
        memory: list[bytes] = []
        for shard in self._header["shards"]:
            memory += self._files.read_all(os.path.join(self._directory, shard["file"]), shard["num_embeddings"])
        self._files.close()
        return memory

    def _read(self, rows: np.ndarray) -> list[np.ndarray]:
        unique, places = np.unique(rows, return_inverse=True)
        shards = np.searchsorted(self._shard_starts, unique, side="right") - 1
        wanted = [
            Wanted(
                os.path.join(self._directory, self._header["shards"][shard]["file"]),
                self._header["shards"][shard]["num_embeddings"],
                (unique[shards == shard].astype(np.int64) - self._shard_starts[shard]).tolist(),
            )
            for shard in np.unique(shards).tolist()
        ]
        found = [self._unpacked(record) for one in self._files.read(wanted) for record in one]
        return [found[place] for place in places.tolist()]
