"""cache_text with Beam: the same bytes as `imagen_jax.text.store.cache.cache_text` gives.

    1. parallel     shards of the corpus → (key, caption)
    2. by key       keys that recur or are not allowed are refused, before anything is encoded
    3. by shard     of the store, which the digest of the caption tells → what belongs into it, as a file
    4. parallel     shards of the store that are not whole yet are encoded and written

Steps 1 to 3 and step 4 are two pipelines: a store that is not refused is begun between them.
"""

import functools
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.utils.shared import Shared

from imagen_jax.beam.files import WriteLines, packed, read_lines, remove_abandoned, shared_folder, unpacked
from imagen_jax.beam.runner import pipeline_options, run
from imagen_jax.data.records import Corpus, decode_record
from imagen_jax.errors import UserError
from imagen_jax.files import AnyPath, as_path, is_remote, write_bytes
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.text.store.cache import (
    CacheConfig,
    ShardPlan,
    check_num_examples,
    finish,
    is_done,
    num_shards_of,
    plan_shard,
    write_if_free,
)
from imagen_jax.text.store.format import caption_digest, shard_of
from imagen_jax.text.store.keys import sort_keys
from imagen_jax.text.store.writer import StoreWriter

_BATCH = 64
_WAIT_S = 0.5
# How names of folders begin that the steps hand files on in.
_WORK = ".captions-"
_COUNTS, _REFUSED, _WRITTEN = "counts", "refused", "written"

Pair = tuple[bytes, str]


def cache_text(config: CacheConfig, pipeline_args: Sequence[str]) -> None:
    """Encodes the captions of config.corpus_dir into config.store_dir, or says that it is whole already.

    Args:
      config: corpus, encoder and store; all workers must see its directories and files under these names.
      pipeline_args: Beam's options.

    Raises:
      UserError: as `imagen_jax.text.store.cache.cache_text`; or Beam does not know an option.
    """
    options = pipeline_options(pipeline_args)
    corpus = Corpus(config.corpus_dir)
    num_examples = sum(corpus.num_examples(split) for split in corpus.splits)
    num_shards = num_shards_of(num_examples, config.shard_size)
    encoder = config.encoder()
    fingerprint = encoder.fingerprint(config.dtype)
    # Beside the store; a store that is a whole bucket has no place beside it.
    store_dir = as_path(config.store_dir)
    parent = store_dir if is_remote(store_dir) else store_dir.parent
    remove_abandoned(parent, _WORK)
    if is_done(config, {"fingerprint": fingerprint, "corpus": {"id": corpus.digest}}):
        return
    with shared_folder(parent, _WORK) as work:
        run(functools.partial(_divide, corpus=corpus, num_shards=num_shards, work=work), options)
        sort_keys([bytes.fromhex(key) for key in sorted(read_lines(work / _REFUSED))])
        counts = {shard: (num_keys, num_captions) for shard, num_keys, num_captions in read_lines(work / _COUNTS)}
        check_num_examples(sum(num_keys for num_keys, _ in counts.values()), num_examples)
        plan: dict[str, Any] = {
            "embed_dim": encoder.sizes.embed_dim,
            "num_shards": num_shards,
            "corpus_id": corpus.digest,
        }
        writer = StoreWriter(config.store_dir, fingerprint=fingerprint, overwrite=config.overwrite, **plan)
        missing = writer.missing_shards()
        print(
            f"cache_text: {num_examples} captions, {sum(number for _, number in counts.values())} distinct; "
            f"{len(missing)} of {num_shards} shards of {config.store_dir} to write",
            flush=True,
        )
        if missing:
            run(functools.partial(_encode, missing=missing, config=config, plan=plan, work=work), options)
        finish(config, writer, encoder)


def _divide(pipeline: beam.Pipeline, corpus: Corpus, num_shards: int, work: AnyPath) -> None:
    pairs = (
        pipeline
        | beam.Create(list(_spans(corpus)))
        | "one worker a span" >> beam.Reshuffle()
        | "read" >> beam.ParDo(_Read(str(corpus.directory)))
    )
    (
        pairs
        | beam.Keys()
        | beam.combiners.Count.PerElement()
        | "refuse" >> beam.FlatMap(_refused)
        | "refused" >> WriteLines(work / _REFUSED)
    )
    (
        pairs
        | "shard" >> beam.Map(_with_shard, num_shards=num_shards)
        | beam.GroupByKey()
        | "plan" >> beam.Map(_save_plan, work=work)
        | "counts" >> WriteLines(work / _COUNTS)
    )


def _spans(corpus: Corpus) -> Iterator[tuple[str, int, int]]:
    """(split, first record, end) of every shard of a corpus."""
    for split in corpus.splits:
        start = 0
        for shard in corpus.manifest["splits"][split]["shards"]:
            yield split, start, start + shard["num_examples"]
            start += shard["num_examples"]


class _Read(beam.DoFn):
    """Span of a corpus → (key, caption) of every record."""

    def __init__(self, corpus_dir: str):
        self._corpus_dir = corpus_dir

    def setup(self) -> None:
        self._corpus = Corpus(self._corpus_dir)

    def process(self, span: tuple[str, int, int]) -> Iterator[Pair]:
        split, start, end = span
        for first in range(start, end, _BATCH):
            for serialized in self._corpus.read(split, range(first, min(first + _BATCH, end))):
                record = decode_record(serialized)
                yield record.key, record.caption


def _refused(counted: tuple[bytes, int]) -> Iterator[str]:
    """A key as often as it occurs, unless it may stand in a store."""
    key, count = counted
    try:
        sort_keys([key] * count)
    except UserError:
        yield from [key.hex()] * count


def _with_shard(pair: Pair, num_shards: int) -> tuple[int, Pair]:
    return shard_of(caption_digest(pair[1]), num_shards), pair


def _plan_of(work: AnyPath, shard: int) -> AnyPath:
    return work / f"plan-{shard:07d}"


def _save_plan(group: tuple[int, Iterable[Pair]], work: AnyPath) -> tuple[int, int, int]:
    shard, pairs = group
    keys_of: dict[str, list[bytes]] = {}
    for key, caption in pairs:
        keys_of.setdefault(caption, []).append(key)
    plan = plan_shard(keys_of)
    write_bytes(_plan_of(work, shard), packed([list(plan.captions), list(plan.keys), list(plan.rows)]))
    return shard, len(plan.keys), len(plan.captions)


def _encode(
    pipeline: beam.Pipeline, missing: Sequence[int], config: CacheConfig, plan: dict[str, Any], work: AnyPath
) -> None:
    (
        pipeline
        | beam.Create(missing)
        | "one worker a shard" >> beam.Reshuffle()
        | "encode" >> beam.ParDo(_Encode(config, plan, work))
    )


class _Encode(beam.DoFn):
    """Shard of the store → the shard, written."""

    def __init__(self, config: CacheConfig, plan: dict[str, Any], work: AnyPath):
        self._config, self._plan, self._work = config, plan, work
        # One encoder a worker process, however many of these it runs.
        self._shared = Shared()

    def setup(self) -> None:
        self._encoder: TextEncoder = self._shared.acquire(self._config.encoder)
        # Of this worker's encoder, so that one of other files is refused.
        fingerprint = self._encoder.fingerprint(self._config.dtype)
        self._writer = StoreWriter(self._config.store_dir, fingerprint=fingerprint, **self._plan)

    def process(self, shard: int) -> None:
        path = _plan_of(self._work, shard)
        plan = ShardPlan(*unpacked(path.read_bytes())) if path.exists() else plan_shard({})
        # Another process may be at it, and die.
        while self._writer.is_missing(shard):
            if not write_if_free(self._writer, shard, plan, self._config, self._encoder):
                time.sleep(_WAIT_S)

    def teardown(self) -> None:
        self._writer.leave()
