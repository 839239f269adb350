"""Fills an embedding store with the captions of a corpus (the `cache_text` mode).

Equal captions are encoded and stored once. The work may be killed at any moment: shards appear whole,
a second run keeps them and ends with the same bytes, and store.json is written last. Any number of processes may
run the same command on the same store: each takes the shards that no other has. Of a finished store that was damaged
since, the damaged shards alone are made again.
"""

import dataclasses
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from imagen_jax.checks import check_count, check_path
from imagen_jax.errors import UserError, listed
from imagen_jax.files import is_remote, read_json, size_of
from imagen_jax.progress import Progress
from imagen_jax.sharding.mesh import MeshConfig
from imagen_jax.text.encoder import TextConfig, TextEncoder
from imagen_jax.text.store.format import (
    FORMAT_VERSION,
    HEADER,
    NO_FLOAT16,
    STORE_DTYPES,
    bytes_per_token,
    caption_digest,
    damaged_files,
    file_entries,
    fingerprint_differences,
    shard_of,
)
from imagen_jax.text.store.keys import sort_keys
from imagen_jax.text.store.writer import StoreWriter, reopen
from imagen_jax.typing import Float

# Captions that sizes and times are estimated from.
_SAMPLE = 10_000
_WAIT_S = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """The cache_text work.

    Args:
      text: the text encoder.
      corpus_dir: the corpus whose captions are encoded.
      store_dir: the embedding store to write.
      dtype: stored dtype: "float32", "bfloat16" (half the bytes) or "int8" (a quarter; a scale a token).
      batch_size: captions encoded at once, over all devices of this process.
      shard_size: captions in one shard, about; the unit of resuming and of dividing the work.
      mesh: division of this process's devices; the encoder's parameters lie on it as its axes say.
      num_validated: captions that `validate_cache` encodes again.
      overwrite: replace a store of other text settings or another corpus instead of refusing.
    """

    text: TextConfig
    corpus_dir: str
    store_dir: str
    dtype: str = "float32"
    batch_size: int = 256
    shard_size: int = 50_000
    mesh: MeshConfig = MeshConfig()
    num_validated: int = 256
    overwrite: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.text, TextConfig):
            raise UserError(f"CacheConfig.text must be a TextConfig; got {self.text!r}")
        for name in ("corpus_dir", "store_dir"):
            check_path(f"CacheConfig.{name}", getattr(self, name))
        if self.dtype not in STORE_DTYPES:
            raise UserError(
                f"CacheConfig.dtype must be one of {tuple(STORE_DTYPES)}; got {self.dtype!r} ({NO_FLOAT16})"
            )
        if not isinstance(self.mesh, MeshConfig):
            raise UserError(f"CacheConfig.mesh must be a MeshConfig; got {self.mesh!r}")
        for name in ("batch_size", "shard_size", "num_validated"):
            check_count(f"CacheConfig.{name}", getattr(self, name))
        if not isinstance(self.overwrite, bool):
            raise UserError(f"CacheConfig.overwrite must be True or False; got {self.overwrite!r}")

    def encoder(self) -> TextEncoder:
        """The text encoder on this process's devices."""
        return TextEncoder(self.text, self.mesh.build(jax.local_devices()))


@dataclasses.dataclass(frozen=True)
class ShardPlan:
    """Captions of one shard.

    Args:
      captions: distinct, in the order of their digests.
      keys: example keys of these captions.
      rows: which of the captions each key means.
    """

    captions: Sequence[str]
    keys: Sequence[bytes]
    rows: Sequence[int]


def plan_shards(examples: Iterable[tuple[bytes, str]], num_shards: int) -> list[ShardPlan]:
    """Divides examples among shards by the digests of their captions.

    Args:
      examples: (key, caption) in any order.
      num_shards: shards of the store.
    """
    keys_of: list[dict[str, list[bytes]]] = [{} for _ in range(num_shards)]
    for key, caption in examples:
        keys_of[shard_of(caption_digest(caption), num_shards)].setdefault(caption, []).append(key)
    plans = []
    for mine in keys_of:
        plans.append(plan_shard(mine))
        mine.clear()
    return plans


def plan_shard(keys_of: Mapping[str, Sequence[bytes]]) -> ShardPlan:
    """Plans the captions of one shard.

    Args:
      keys_of: the example keys of each caption whose digest lies in the shard.
    """
    captions = sorted(keys_of, key=caption_digest)
    keys = [key for caption in captions for key in keys_of[caption]]
    rows = [row for row, caption in enumerate(captions) for _ in keys_of[caption]]
    return ShardPlan(captions, keys, rows)


def num_shards_of(num_examples: int, shard_size: int) -> int:
    """Shards that `shard_size` captions each make."""
    return max(1, -(-num_examples // shard_size))


def cache_text(
    config: CacheConfig,
    examples: Iterable[tuple[bytes, str]],
    *,
    num_examples: int,
    corpus_id: str,
    process_index: int = 0,
    process_count: int = 1,
) -> None:
    """Encodes the captions of `examples` into config.store_dir, or says that it is whole already.

    Args:
      config: encoder, store and batch sizes; the caller reads config.corpus_dir.
      examples: (key, caption) of every example; read once.
      num_examples: how many there are.
      corpus_id: names the corpus' contents (e.g. a digest of corpus.json); a store of another id is refused.
      process_index, process_count: which of the processes this is that do this work together; each begins at shards
        of its own and helps the others when those are done.

    Raises:
      UserError: a store of other settings is in the way, a key recurs, or `examples` is empty or not
        num_examples long.
    """
    encoder = config.encoder()
    wanted = {"fingerprint": encoder.fingerprint(config.dtype), "corpus": {"id": corpus_id}}
    if is_done(config, wanted):
        return
    plans = _plans(config, examples, num_examples)
    if is_done(config, wanted):  # By another process, while the captions were read.
        return
    writer = StoreWriter(
        config.store_dir,
        fingerprint=wanted["fingerprint"],
        embed_dim=encoder.sizes.embed_dim,
        num_shards=len(plans),
        corpus_id=corpus_id,
        overwrite=config.overwrite,
    )
    captions = [caption for plan in plans for caption in plan.captions]
    missing = writer.missing_shards()
    num_left = sum(len(plans[shard].captions) for shard in missing)
    print(estimate(config, encoder, captions, num_examples, num_left, process_count), flush=True)
    with Progress(len(captions), "cache_text", "caption", initial=len(captions) - num_left) as progress:
        while missing:
            first = len(missing) * process_index // process_count
            mine = {
                shard
                for shard in (*missing[first:], *missing[:first])
                if write_if_free(writer, shard, plans[shard], config, encoder, progress)
            }
            left = writer.missing_shards()
            progress.update(sum(len(plans[shard].captions) for shard in set(missing) - set(left) - mine))
            missing = left
            if missing and not mine:
                time.sleep(_WAIT_S)  # Other processes are at what is missing; one that dies leaves its shard to us.
    finish(config, writer, encoder)


def finish(config: CacheConfig, writer: StoreWriter, encoder: TextEncoder) -> None:
    """Makes the store of shards that are all written, and says so."""
    writer.finish(encoder.encode_unpadded([""])[0])
    header = read_json(os.path.join(config.store_dir, HEADER))
    print(
        f"cache_text: {config.store_dir} is whole; {header['num_truncated']} of {header['num_keys']} captions were "
        f"longer than max_length ({config.text.max_length}) and cut",
        flush=True,
    )


def is_done(config: CacheConfig, wanted: Mapping[str, Any]) -> bool:
    """Tells if the store is finished and whole; damaged shards of one that is finished are given up for new ones.

    Raises:
      UserError: a finished store of other settings is there, and config.overwrite is not set.
    """
    path = os.path.join(config.store_dir, HEADER)
    if size_of(path) is None:
        return False
    header = read_json(path)
    lines = fingerprint_differences(header, wanted)
    if lines and config.overwrite:
        return False
    if lines:
        raise UserError(
            f"{config.store_dir!r} holds an embedding store of other settings than this run's: {listed(lines)}; "
            "set overwrite to replace it, or point STORE_DIR elsewhere"
        )
    if header.get("format_version") != FORMAT_VERSION:
        if config.overwrite:
            return False
        raise UserError(
            f"{config.store_dir!r} has format_version {header.get('format_version')}; expected {FORMAT_VERSION}; set "
            "overwrite to replace it, or point STORE_DIR elsewhere"
        )
    # A bucket checks what it takes; to read all of it again is for `validate_cache`.
    damaged = damaged_files(config.store_dir, file_entries(header), contents=not is_remote(config.store_dir))
    if not damaged:
        print(f"cache_text: {config.store_dir} is whole already: {header['num_keys']} captions", flush=True)
        return True
    print(f"cache_text: {config.store_dir} is damaged: {', '.join(damaged)}; making them again", flush=True)
    reopen(config.store_dir, damaged)
    return False


def _plans(config: CacheConfig, examples: Iterable[tuple[bytes, str]], num_examples: int) -> list[ShardPlan]:
    plans = plan_shards(examples, num_shards_of(num_examples, config.shard_size))
    keys = [key for plan in plans for key in plan.keys]
    check_num_examples(len(keys), num_examples)
    sort_keys(keys)  # refuses recurring keys before hours of work, not after
    return plans


def check_num_examples(num_keys: int, num_examples: int) -> None:
    """Refuses a corpus that gave another number of examples than it states, or none."""
    if not num_keys or num_keys != num_examples:
        raise UserError(f"the corpus gave {num_keys} examples; expected {num_examples}, at least 1; rebuild the corpus")


def estimate(
    config: CacheConfig, encoder: TextEncoder, captions: Sequence[str], num_keys: int, num_left: int, num_processes: int
) -> str:
    """Estimates the work in one line: bytes from the token counts of a sample, seconds from one timed batch."""
    sample = captions[:: -(-len(captions) // _SAMPLE)]
    most = config.text.max_length
    tokens = sum(min(count, most) for count in encoder.count_tokens(sample)) / len(sample)
    num_bytes = len(captions) * tokens * bytes_per_token(config.dtype, encoder.sizes.embed_dim)
    line = (
        f"cache_text: {num_keys} captions, {len(captions)} distinct of {tokens:.1f} tokens: "
        f"{num_bytes / 1e6:.4g} MB in {config.store_dir}"
    )
    if not num_left:
        return line
    batch = sample[: config.batch_size]
    encoder.encode_unpadded(batch, config.batch_size)  # compiles
    start = time.perf_counter()
    encoder.encode_unpadded(batch, config.batch_size)
    rate = len(batch) / (time.perf_counter() - start) * num_processes
    return (
        f"{line}; about {num_left / rate:.0f} s for {num_left} of them at {rate:.0f}/s in {num_processes} process(es)"
    )


def write_if_free(
    writer: StoreWriter,
    shard: int,
    plan: ShardPlan,
    config: CacheConfig,
    encoder: TextEncoder,
    progress: Progress | None = None,
) -> bool:
    """Writes a shard unless it is whole or another process is at it; tells whether it did."""
    with writer.claim(shard) as mine:
        if mine:
            counts = encoder.count_tokens(plan.captions)
            num_truncated = sum(counts[row] > config.text.max_length for row in plan.rows)
            embeddings = _encoded(encoder, plan.captions, config.batch_size, progress)
            writer.write_shard(shard, embeddings, plan.keys, plan.rows, num_truncated=num_truncated)
    return mine


def _encoded(
    encoder: TextEncoder, captions: Sequence[str], batch_size: int, progress: Progress | None
) -> Iterator[Float[np.ndarray, "_n d"]]:
    # Chunks of many batches let the encoder put captions of like length together; they start at the shard's
    # first row, so a resumed run forms the same batches and writes the same bytes.
    chunk = 16 * batch_size
    for start in range(0, len(captions), chunk):
        chosen = captions[start : start + chunk]
        yield from encoder.encode_unpadded(chosen, batch_size)
        if progress is not None:
            progress.update(len(chosen))
