"""Raw image-caption pairs → a corpus directory."""

import dataclasses
import functools
import json
import multiprocessing
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from imagen_jax.array_records import SUFFIX
from imagen_jax.checks import check_count, check_path
from imagen_jax.data import records
from imagen_jax.data.card import CARD_FACTS, CARD_PAGE
from imagen_jax.data.duplicates import Screened
from imagen_jax.data.raw import Prepared, Rejection, Source, prepare_part, prepare_part_at_once
from imagen_jax.data.rejects import Counts, Rejects
from imagen_jax.data.sizes import Size, check_sizes, joined_splits, shards_name
from imagen_jax.errors import UserError
from imagen_jax.files import (
    AnyPath,
    StrPath,
    alone_in,
    as_path,
    check_content,
    is_remote,
    move_file,
    write_json,
)
from imagen_jax.progress import Progress
from imagen_jax.text.tokenizer import train_sentencepiece

VOCABULARY = "vocabulary.model"
LOCK = "build.lock"
_PROGRESS_EVERY = 500
_NAME = re.compile(r"\w+")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """Settings of a corpus build.

    Args:
      name: name of the corpus; letters, digits and underscores.
      image_size: side of the square images, in pixels.
      sizes: heights and widths that pictures come in, each in the nearest; see `data.sizes`. Empty: squares alone.
      min_size: least shorter side of a raw image, in pixels; None means image_size, so nothing is enlarged.
      seed: seed that the source was made with, recorded in corpus.json.
      vocab_size: pieces of a SentencePiece vocabulary trained from the captions of split "train";
        None trains none.
      examples_per_shard: records in one file.
    """

    name: str
    image_size: int
    sizes: tuple[Size, ...] = ()
    min_size: int | None = None
    seed: int = 0
    vocab_size: int | None = None
    examples_per_shard: int = 8192

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise UserError(f"name of the corpus is {self.name!r}; use letters, digits and underscores")
        for field, least in (("image_size", 1), ("min_size", 1), ("seed", 0), ("vocab_size", 1),
                             ("examples_per_shard", 1)):  # fmt: skip
            value = getattr(self, field)
            if value is None and field in ("min_size", "vocab_size"):
                continue
            check_count(field, value, least)
        object.__setattr__(self, "sizes", check_sizes("sizes", self.sizes, self.image_size))

    def settings(self) -> dict[str, Any]:
        """What corpus.json says of the build; of a corpus of squares it is what it was before there were sizes."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "sizes" or value}

    @property
    def least_side(self) -> int:
        """`min_size`, or what stands for it."""
        return self.image_size if self.min_size is None else self.min_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildReport:
    """Result of a corpus build.

    Args:
      num_examples: accepted examples by split.
      num_rejected: refused inputs; rejects.jsonl names each.
      num_repaired: accepted inputs of which a part could not be used; repairs.jsonl names each.
      num_dropped: refused inputs by the condition of a filter, or the like, that dropped them.
      reused: the directory already held this corpus, whole, and was left as it is.
    """

    num_examples: Mapping[str, int]
    num_rejected: int
    num_repaired: int
    num_dropped: Mapping[str, int]
    reused: bool

    def __str__(self) -> str:
        splits = ", ".join(f"{split} {count}" for split, count in self.num_examples.items())
        kept = " (already built; --overwrite builds it again)" if self.reused else ""
        repaired = f"; repaired: {self.num_repaired} (repairs.jsonl)" if self.num_repaired else ""
        dropped = ", ".join(f"{count} by {what}" for what, count in self.num_dropped.items())
        dropped = f", of these dropped {dropped}" if dropped else ""
        return f"examples: {splits}; rejected: {self.num_rejected}{dropped}{repaired}{kept}"


# Writes the shards, rejects.jsonl and repairs.jsonl of a source into a directory; returns the manifest's "splits".
WriteShards = Callable[[Source, Path, BuildConfig], tuple[dict[str, Any], Counts]]


def build_corpus(
    source: Source,
    out_dir: StrPath,
    config: BuildConfig,
    *,
    num_workers: int = 0,
    overwrite: bool = False,
    extra: Mapping[str, Any] | None = None,
) -> BuildReport:
    """Writes a corpus directory; equal sources and settings give equal bytes, however many workers.

    Args:
      source, out_dir, config, overwrite, extra: as for `assemble`.
      num_workers: processes that decode and encode; 0 does it in this one.

    Raises:
      UserError: as `assemble`.
    """
    check_count("num_workers", num_workers, 0)
    write_shards = functools.partial(_write_shards, num_workers=num_workers)
    return assemble(source, out_dir, config, write_shards, overwrite=overwrite, extra=extra)


def assemble(
    source: Source,
    out_dir: StrPath,
    config: BuildConfig,
    write_shards: WriteShards,
    *,
    overwrite: bool = False,
    extra: Mapping[str, Any] | None = None,
) -> BuildReport:
    """A corpus directory around the shards that `write_shards` writes: whole or absent, corpus.json last.

    Args:
      source: the raw pairs. A bad one is named in rejects.jsonl and passed over.
      out_dir: the corpus directory; made if absent. Files of other names in it are left alone.
      config: how to build.
      write_shards: decodes, filters, resizes and writes.
      overwrite: replace a corpus of other settings.
      extra: JSON-able facts to keep in corpus.json under "extra".

    Raises:
      UserError: out_dir holds a corpus of other settings, another process builds there, or no example was accepted.
    """
    check_path("the corpus directory", out_dir)
    out = as_path(out_dir)
    settings = json.loads(json.dumps({"build": config.settings(), "source": source.settings}))
    # Outside of the lock, for a corpus that may only be read.
    report = None if overwrite else _existing(out, settings)
    if report is not None:
        return report
    with alone_in(out, LOCK, f"corpus directory {str(out)!r}", "built"):
        # Another process may have built it since.
        return (None if overwrite else _existing(out, settings)) or _build(
            source, out, config, write_shards, settings, dict(extra or {})
        )


def _build(
    source: Source,
    out: AnyPath,
    config: BuildConfig,
    write_shards: WriteShards,
    settings: Mapping[str, Any],
    extra: Mapping[str, Any],
) -> BuildReport:
    # Beside the corpus, so that moving costs nothing; what goes to a bucket is made on this machine.
    scratch = Path(tempfile.mkdtemp(prefix=".building-", dir=None if is_remote(out) else out))
    try:
        splits, counts = write_shards(source, scratch, config)
        if config.vocab_size is not None:
            _train_vocabulary(scratch, splits, config.vocab_size)
        manifest = {
            "format_version": records.FORMAT_VERSION,
            "name": config.name,
            "image_size": config.image_size,
            "seed": config.seed,
            "num_rejected": counts.rejected,
            "num_repaired": counts.repaired,
            **({"num_dropped": counts.dropped} if counts.dropped else {}),
            "splits": splits,
            "extra": extra,
            "settings": settings,
        }
        write_json(scratch / records.MANIFEST, manifest, end="\n")
        _move_into_place(scratch, out)
    finally:
        shutil.rmtree(scratch)
    return BuildReport(
        num_examples={split: entry["num_examples"] for split, entry in splits.items()},
        num_rejected=counts.rejected,
        num_repaired=counts.repaired,
        num_dropped=counts.dropped,
        reused=False,
    )


def _existing(out: AnyPath, settings: Mapping[str, Any]) -> BuildReport | None:
    """The report of a whole corpus of the same settings; None if there is no corpus."""
    if not (out / records.MANIFEST).exists():
        return None
    manifest = records.read_manifest(out)
    found = manifest.get("settings", {})
    check_content(out / records.MANIFEST, found, {...: dict}, "pass --overwrite to build the corpus again", "settings")
    if found != settings:
        differ = [
            f"{group}.{field}"
            for group in settings
            for field in sorted(settings[group].keys() | found.get(group, {}).keys())
            if settings[group].get(field) != found.get(group, {}).get(field)
        ]
        raise UserError(
            f"{str(out)!r} already holds a corpus of other settings (different: {', '.join(differ)}); "
            "choose another directory or pass --overwrite"
        )
    corpus = records.Corpus(out)
    corpus.verify()
    counts = {split: corpus.num_examples(split) for split in corpus.splits}
    repaired = manifest.get("num_repaired", 0)
    check_content(out / records.MANIFEST, repaired, int, "pass --overwrite to build the corpus again", "num_repaired")
    return BuildReport(
        num_examples=counts,
        num_rejected=manifest["num_rejected"],
        num_repaired=repaired,
        num_dropped=manifest.get("num_dropped", {}),
        reused=True,
    )


def _prepared(source: Source, config: BuildConfig, num_workers: int) -> Iterator[Prepared | Rejection]:
    if num_workers == 0:
        for part in source.parts:
            yield from prepare_part(part, config.image_size, config.least_side, config.sizes)
        return
    work = functools.partial(
        prepare_part_at_once, image_size=config.image_size, min_size=config.least_side, sizes=config.sizes
    )
    # spawn: this process holds TensorFlow's threads, which do not survive a fork.
    with multiprocessing.get_context("spawn").Pool(num_workers) as pool:
        for results in pool.imap(work, source.parts):
            yield from results


def check_split(split: str) -> None:
    """Refuses a split whose name no file could bear."""
    if not _NAME.fullmatch(split):
        raise UserError(f"split {split!r} must consist of letters, digits and underscores")


def serialized(one: Prepared) -> bytes:
    """The record of a prepared example."""
    record = records.Record(
        key=one.key.encode(),
        image=one.png,
        caption=one.caption,
        height=one.size[0],
        width=one.size[1],
        meta=one.meta,
        original_size=one.original_size,
    )
    return records.encode_record(record)


def _write_shards(
    source: Source, scratch: Path, config: BuildConfig, num_workers: int
) -> tuple[dict[str, Any], Counts]:
    writers: dict[str, records.SplitWriter] = {}
    keys: set[str] = set()
    screened = Screened(source.screen)
    with Rejects(scratch) as rejects, Progress(source.num_examples, f"build {config.name}", "image") as progress:
        for number, one in enumerate(_prepared(source, config, num_workers), start=1):
            if number % _PROGRESS_EVERY == 0 or number == source.num_examples:
                progress.update((number - 1) % _PROGRESS_EVERY + 1)
            if isinstance(one, Rejection):
                rejects.add(one)
            elif one.key in keys:
                rejects.add_recurring(one.key)
            elif problem := screened.problem(one.key, one.picture_mark, one.caption_mark):
                rejects.add_dropped(one.key, problem)
            else:
                keys.add(one.key)
                rejects.add_repair(one.key, one.repair)
                name = shards_name(one.split, one.size if config.sizes else None)
                if name not in writers:
                    check_split(one.split)
                    writers[name] = records.SplitWriter(scratch, name, config.examples_per_shard)
                writers[name].write(serialized(one))
    if not keys:
        raise rejects.nothing_accepted(config.name)
    entries = {name: writer.finish() for name, writer in writers.items()}
    return joined_splits(entries, config.sizes) if config.sizes else entries, rejects.counts


def _train_vocabulary(scratch: Path, splits: Mapping[str, Any], vocab_size: int) -> None:
    if "train" not in splits:
        raise UserError(f"vocab_size is set, but there is no split 'train' to train on, only {', '.join(splits)}")

    def captions() -> Iterator[str]:
        for shard in splits["train"]["shards"]:
            for record in records.read_shard(scratch / shard["file"]):
                yield records.decode_record(record).caption

    train_sentencepiece(captions(), str(scratch / VOCABULARY), vocab_size)


def _move_into_place(scratch: Path, out: AnyPath) -> None:
    """Replaces the corpus in `out`: the old manifest goes first, the new one comes last."""
    manifest = out / records.MANIFEST
    if manifest.exists():
        try:
            old_splits = records.read_manifest(out)["splits"]
        except UserError:
            old_splits = {}  # What an unreadable manifest calls its own may be anybody's.
        manifest.unlink()
        for name in (VOCABULARY, CARD_FACTS, CARD_PAGE):
            (out / name).unlink(missing_ok=True)
        for entry in old_splits.values():
            for shard in entry["shards"]:
                for suffix in ("", SUFFIX):
                    (out / f"{shard['file']}{suffix}").unlink(missing_ok=True)
    for path in sorted(scratch.iterdir(), key=lambda path: path.name == records.MANIFEST):
        move_file(path, out / path.name)
