"""Fills an embedding store with the captions of a corpus (the `cache_text` mode).

Equal captions are encoded and stored once. The work may be killed at any moment: shards appear whole,
a second run keeps them and ends with the same bytes, and store.json is written last.
"""

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from imagen_jax.errors import UserError
from imagen_jax.progress import Progress
from imagen_jax.text.encoder import TextConfig, TextEncoder
from imagen_jax.text.store import EmbeddingStore
from imagen_jax.text.store_format import STORE_DTYPES, fingerprint_differences, read_json
from imagen_jax.text.store_writer import StoreWriter, sort_keys
from imagen_jax.typing import Float


@dataclasses.dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """The cache_text work.

    Args:
      text: the text encoder.
      corpus_dir: the corpus whose captions are encoded.
      store_dir: the embedding store to write.
      dtype: stored dtype, "float32" or "bfloat16" (half the bytes).
      batch_size: captions encoded at once.
      shard_size: distinct captions in one shard, the unit of resuming.
      overwrite: replace a store of other text settings or another corpus instead of refusing.
    """

    text: TextConfig
    corpus_dir: str
    store_dir: str
    dtype: str = "float32"
    batch_size: int = 256
    shard_size: int = 50_000
    overwrite: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.text, TextConfig):
            raise UserError(f"CacheConfig.text must be a TextConfig; got {self.text!r}")
        for name in ("corpus_dir", "store_dir"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value:
                raise UserError(f"CacheConfig.{name} must be a directory name; got {value!r}")
        if self.dtype not in STORE_DTYPES:
            raise UserError(
                f"CacheConfig.dtype must be one of {tuple(STORE_DTYPES)}; got {self.dtype!r} "
                "(float16 is not offered: T5's outputs overflow it)"
            )
        for name in ("batch_size", "shard_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UserError(f"CacheConfig.{name} must be a positive integer; got {value!r}")
        if not isinstance(self.overwrite, bool):
            raise UserError(f"CacheConfig.overwrite must be True or False; got {self.overwrite!r}")


def cache_text(
    config: CacheConfig, examples: Iterable[tuple[bytes, str]], *, num_examples: int, corpus_id: str
) -> None:
    """Encodes the captions of `examples` into config.store_dir, or says that it is whole already.

    Args:
      config: encoder, store and batch sizes; the caller reads config.corpus_dir.
      examples: (key, caption) of every example; read once.
      num_examples: how many there are.
      corpus_id: names the corpus' contents (e.g. a digest of corpus.json); a store of another id is refused.

    Raises:
      UserError: a store of other settings is in the way, a key recurs, or `examples` is empty or not
        num_examples long.
    """
    encoder = TextEncoder(config.text)
    fingerprint = encoder.fingerprint(config.dtype)
    if _is_whole(config, {"fingerprint": fingerprint, "corpus": {"id": corpus_id}}):
        return
    keys, rows, captions, digest = _read_examples(examples, num_examples)
    counts, most = encoder.count_tokens(captions), config.text.max_length
    num_truncated = sum(counts[row] > most for row in rows)
    num_tokens = sum(min(count, most) for count in counts)
    writer = StoreWriter(
        config.store_dir,
        fingerprint=fingerprint,
        embed_dim=encoder.sizes.embed_dim,
        num_embeddings=len(captions),
        shard_size=config.shard_size,
        corpus_id=corpus_id,
        corpus_sha256=digest,
        overwrite=config.overwrite,
    )
    num_bytes = num_tokens * encoder.sizes.embed_dim * STORE_DTYPES[config.dtype].itemsize
    print(
        f"cache_text: {len(keys)} captions, {len(captions)} distinct of "
        f"{num_tokens / len(captions):.1f} tokens: {num_bytes / 1e6:.4g} MB in {config.store_dir}",
        flush=True,
    )
    missing = writer.missing_shards()
    num_left = sum(len(writer.rows(shard)) for shard in missing)
    with Progress(len(captions), "cache_text", "caption", initial=len(captions) - num_left) as progress:
        for shard in missing:
            rows_here = writer.rows(shard)
            writer.write_shard(shard, _encoded(encoder, captions, rows_here, config.batch_size, progress))
    writer.finish(keys, rows, num_truncated=num_truncated)
    print(
        f"cache_text: {config.store_dir} is whole; {num_truncated} of {len(keys)} captions were longer than "
        f"max_length ({most}) and cut",
        flush=True,
    )


def _is_whole(config: CacheConfig, wanted: Mapping[str, Any]) -> bool:
    path = os.path.join(config.store_dir, "store.json")
    if not os.path.isfile(path):
        return False
    lines = fingerprint_differences(read_json(path), wanted)
    if lines and config.overwrite:
        return False
    if lines:
        raise UserError(
            f"{config.store_dir!r} holds an embedding store of other settings than this run's:\n  "
            + "\n  ".join(lines)
            + "\nset overwrite to replace it, or point STORE_DIR elsewhere"
        )
    store = EmbeddingStore.open(config.store_dir)
    store.verify()
    print(f"cache_text: {config.store_dir} is whole already: {store.num_keys} captions", flush=True)
    return True


def _read_examples(
    examples: Iterable[tuple[bytes, str]], num_examples: int
) -> tuple[list[bytes], list[int], list[str], str]:
    """Keys, the row of each key, the distinct captions (one a row), and a digest of it all."""
    rows_of: dict[str, int] = {}
    keys, rows, digest = [], [], hashlib.sha256()
    for key, caption in examples:
        keys.append(key)
        rows.append(rows_of.setdefault(caption, len(rows_of)))
        for part in (key, caption.encode()):
            digest.update(len(part).to_bytes(8, "little") + part)
    if not keys or len(keys) != num_examples:
        raise UserError(
            f"the corpus gave {len(keys)} examples; expected {num_examples}, at least 1; rebuild the corpus"
        )
    sort_keys(keys)  # refuses recurring keys before hours of work, not after
    return keys, rows, list(rows_of), digest.hexdigest()


def _encoded(
    encoder: TextEncoder, captions: Sequence[str], rows: range, batch_size: int, progress: Progress
) -> Iterator[Float[np.ndarray, "_n d"]]:
    # Chunks of many batches let the encoder put captions of like length together; they start at the shard's
    # first row, so a resumed run forms the same batches and writes the same bytes.
    chunk = 16 * batch_size
    for start in range(rows.start, rows.stop, chunk):
        chosen = captions[start : min(start + chunk, rows.stop)]
        yield from encoder.encode_unpadded(chosen, batch_size)
        progress.update(len(chosen))
