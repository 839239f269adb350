"""Raw image-caption pairs → a corpus directory."""

import contextlib
import dataclasses
import functools
import json
import multiprocessing
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from imagen_jax.checks import check_count, check_path
from imagen_jax.data import draft as drafts
from imagen_jax.data import records
from imagen_jax.data.draft import VOCABULARY
from imagen_jax.data.raw import (
    IMAGE_FORMATS,
    Known,
    PictureForm,
    Prepared,
    Rejection,
    Source,
    prepare_part,
    prepare_part_at_once,
)
from imagen_jax.data.rejects import Counts, Rejects
from imagen_jax.data.sizes import Size, check_sizes, joined_splits, split_of_shards
from imagen_jax.errors import UserError
from imagen_jax.files import (
    AnyPath,
    LockLostError,
    StrPath,
    alone_in,
    as_path,
    check_content,
    files_under,
    is_remote,
    remove_tree,
    write_bytes,
    write_json,
)
from imagen_jax.progress import Progress
from imagen_jax.text.tokenizer import train_sentencepiece

LOCK = "build.lock"
_PROGRESS_EVERY = 500
_NAME = re.compile(r"\w+")
_OPTIONAL = ("min_size", "vocab_size", "shard_size", "quality")


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
      shard_size: most bytes of the records in one file, instead of `examples_per_shard`; a larger record is alone.
      image_format, quality: of the pictures in it; see `data.raw.PictureForm`.
    """

    name: str
    image_size: int
    sizes: tuple[Size, ...] = ()
    min_size: int | None = None
    seed: int = 0
    vocab_size: int | None = None
    examples_per_shard: int = 8192
    shard_size: int | None = None
    image_format: str = "png"
    quality: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise UserError(f"name of the corpus is {self.name!r}; use letters, digits and underscores")
        for field, least in (("image_size", 1), ("min_size", 1), ("seed", 0), ("vocab_size", 1),
                             ("examples_per_shard", 1), ("shard_size", 1), ("quality", 1)):  # fmt: skip
            value = getattr(self, field)
            if value is None and field in _OPTIONAL:
                continue
            check_count(field, value, least)
        object.__setattr__(self, "sizes", check_sizes("sizes", self.sizes, self.image_size))
        if self.sizes and self.image_format == "original":
            raise UserError(
                "sizes with image_format original: an original keeps the size it has; leave out one of them"
            )
        if self.image_format not in IMAGE_FORMATS:
            raise UserError(f"image_format is {self.image_format!r}; choose one of {', '.join(IMAGE_FORMATS)}")
        if self.image_format == "jpeg" and self.quality is None:
            raise UserError("image_format jpeg has no quality; give one from 1 to 100, e.g. quality 95")
        if self.quality is not None and (self.quality > 100 or self.image_format not in ("jpeg", "webp")):
            raise UserError(
                f"quality ({self.quality}) of image_format {self.image_format}: jpeg and webp have one, from 1 to 100"
            )

    @property
    def form(self) -> PictureForm:
        """The form of its pictures."""
        return PictureForm(
            image_size=self.image_size,
            min_size=self.image_size if self.min_size is None else self.min_size,
            image_format=self.image_format,
            quality=self.quality,
            sizes=self.sizes,
        )

    def settings(self) -> dict[str, Any]:
        """The settings in corpus.json; options that came later stand there only where they are used."""
        later = {"sizes": (), "shard_size": None, "image_format": "png", "quality": None}
        found = dataclasses.asdict(self)
        return {name: value for name, value in found.items() if name not in later or value != later[name]}


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


# Writes the shards, rejects.jsonl and repairs.jsonl of a source into the folder of a draft, which may lie in a bucket
# and hold what an earlier start left; returns the manifest's "splits".
WriteShards = Callable[[Source, AnyPath, BuildConfig], tuple[dict[str, Any], Counts]]


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

    A build that ends early leaves its whole shards in a draft (see `data.draft`), and the same build goes on there.

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
    draft = drafts.draft_of(out, settings)
    # Outside of the lock, for a corpus that may only be read.
    report = None if overwrite else _existing(out, settings)
    if report is not None and not drafts.is_begun(draft):
        return report
    with alone_in(out, LOCK, f"corpus directory {str(out)!r}", "built") as check_alone:
        # Another process may have built it since.
        report = None if overwrite else _existing(out, settings)
        if report is not None:
            remove_tree(draft)
            return report
        try:
            return _build(source, out, config, write_shards, settings, dict(extra or {}), check_alone)
        except LockLostError:
            raise
        except BaseException:
            count = 0
            with contextlib.suppress(OSError):  # What ended the build may end this too.
                count = drafts.leave(draft)
            if count:
                told = f"build {config.name}: {count} whole shards stay in {draft}; the same build goes on there"
                print(told, file=sys.stderr, flush=True)
            raise


def _build(
    source: Source,
    out: AnyPath,
    config: BuildConfig,
    write_shards: WriteShards,
    settings: Mapping[str, Any],
    extra: Mapping[str, Any],
    check_alone: Callable[[], None],
) -> BuildReport:
    draft = drafts.draft_of(out, settings)
    drafts.begin(draft)
    resumed = drafts.is_made(draft, {"settings": settings, "extra": json.loads(json.dumps(extra))})
    if not resumed:
        splits, counts = write_shards(source, draft, config)
        if config.vocab_size is not None:
            _train_vocabulary(draft, splits, config.vocab_size)
        manifest = {
            "format_version": records.FORMAT_VERSION,
            "name": config.name,
            "image_size": config.image_size,
            **({"image_format": config.image_format} if config.image_format != "png" else {}),
            "seed": config.seed,
            "num_rejected": counts.rejected,
            "num_repaired": counts.repaired,
            **({"num_dropped": counts.dropped} if counts.dropped else {}),
            "splits": splits,
            "extra": extra,
            "settings": settings,
        }
        write_json(draft / records.MANIFEST, manifest, end="\n", sync=True)
    check_alone()
    drafts.place(draft, out)
    if resumed:
        # Another build may have been here in between.
        records.Corpus(out).verify()
    return _report(records.read_manifest(out), reused=False)


def _report(manifest: Mapping[str, Any], reused: bool) -> BuildReport:
    return BuildReport(
        num_examples={split: entry["num_examples"] for split, entry in manifest["splits"].items()},
        num_rejected=manifest["num_rejected"],
        num_repaired=manifest.get("num_repaired", 0),
        num_dropped=manifest.get("num_dropped", {}),
        reused=reused,
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
    records.Corpus(out).verify()
    repaired = manifest.get("num_repaired", 0)
    check_content(out / records.MANIFEST, repaired, int, "pass --overwrite to build the corpus again", "num_repaired")
    return _report(manifest, reused=True)


def _prepared(
    source: Source, known: Mapping[int, Known], form: PictureForm, num_workers: int
) -> Iterator[tuple[int, Iterable[Prepared | Rejection]]]:
    """The number of each part that is opened, and what it comes to without what is known."""
    if num_workers == 0:
        for part, mine in known.items():
            yield part, prepare_part(source.parts[part], form, mine)
        return
    work = functools.partial(prepare_part_at_once, form=form)
    # spawn: this process holds TensorFlow's threads, which do not survive a fork.
    with multiprocessing.get_context("spawn").Pool(num_workers) as pool:
        jobs = ((source.parts[part], mine) for part, mine in known.items())
        yield from zip(known, pool.imap(work, jobs), strict=True)


def check_split(split: str, sizes: Sequence[Size] = ()) -> None:
    """Refuses a split whose name no file could bear; in a corpus of sizes it is that of `sizes.shards_name`."""
    split = split_of_shards(split) if sizes else split
    if not _NAME.fullmatch(split):
        raise UserError(f"split {split!r} must consist of letters, digits and underscores")


def serialized(one: Prepared) -> bytes:
    """The record of a prepared example."""
    names = ("image", "caption", "height", "width", "meta", "orientation", "original_size")
    return records.encode_record(records.Record(key=one.key.encode(), **{name: getattr(one, name) for name in names}))


def _write_shards(
    source: Source, draft: AnyPath, config: BuildConfig, num_workers: int
) -> tuple[dict[str, Any], Counts]:
    with contextlib.ExitStack() as stack:
        # A shard for a bucket grows on this machine.
        work = Path(stack.enter_context(tempfile.TemporaryDirectory())) if is_remote(draft) else Path(draft)
        shards = drafts.Shards(draft, work, config.examples_per_shard, config.shard_size)
        rejects = stack.enter_context(Rejects(draft))
        ledger = drafts.Ledger(rejects, source.screen)
        begun = shards.resume(ledger, len(source.parts))
        progress = stack.enter_context(
            Progress(source.num_examples, f"build {config.name}", "image", initial=begun.num_inputs)
        )
        number = told = begun.num_inputs
        for part, results in _prepared(source, begun.known, config.form, num_workers):
            inputs = iter(results)
            for key in begun.keys.get(part, ()):
                shards.write(*_again(next(inputs, None), key, draft))
            for one in inputs:
                number += 1
                if number % _PROGRESS_EVERY == 0 or number == source.num_examples:
                    progress.update(number - told)
                    told = number
                outcome = drafts.Accepted.of(one) if isinstance(one, Prepared) else one
                shards.decided(part, outcome)
                if ledger.takes(outcome) and isinstance(one, Prepared):
                    check_split(one.split, config.sizes)
                    shards.write(one.split, serialized(one))
        splits = shards.finish()
        if not splits:
            raise rejects.nothing_accepted(config.name)
        return joined_splits(splits, config.sizes) if config.sizes else splits, rejects.counts


def _again(one: Prepared | Rejection | None, key: str, draft: AnyPath) -> tuple[str, bytes]:
    """Split and record of an example that was prepared before."""
    if not isinstance(one, Prepared) or one.key != key:
        raise UserError(
            f"the source gives example {key!r} of the build begun in {draft} no more; remove that folder and start "
            "again, or restore the source"
        )
    return one.split, serialized(one)


def _train_vocabulary(draft: AnyPath, splits: Mapping[str, Any], vocab_size: int) -> None:
    if "train" not in splits:
        raise UserError(f"vocab_size is set, but there is no split 'train' to train on, only {', '.join(splits)}")

    def captions() -> Iterator[str]:
        for shard in splits["train"]["shards"]:
            # Under its name in the draft; a builder that knows their number may have given it the final one.
            names = [name for name in (drafts.draft_name(shard["file"]), shard["file"]) if name in there]
            for record in records.read_shard(draft / names[0]):
                yield records.decode_record(record).caption

    there = files_under(draft)
    with tempfile.TemporaryDirectory() as folder:
        trained = Path(folder, VOCABULARY)
        train_sentencepiece(captions(), str(trained), vocab_size)
        write_bytes(draft / VOCABULARY, trained.read_bytes())
