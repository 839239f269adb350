"""Builds a corpus with Beam: the same bytes as `imagen_jax.data.builder.build_corpus` gives.

    1. parallel     parts of the source → decoded, filtered, resized records and the list of what became of each input
    2. by key       all but the first example of a key are refused, in the order of the source
    3. here         what the screen drops; where each record belongs; rejects.jsonl
    4. parallel     records → shards

The records of step 1 are files until step 4 has copied them, so a build needs room for two corpora.
"""

import dataclasses
import functools
import itertools
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from imagen_jax.beam.files import WriteLines, load_item, read_lines, read_records, save_items, write_records
from imagen_jax.beam.runner import pipeline_options, run
from imagen_jax.data.builder import BuildConfig, BuildReport, assemble, check_split, serialized
from imagen_jax.data.draft import Accepted, begin, is_full
from imagen_jax.data.duplicates import Screened
from imagen_jax.data.raw import Part, Rejection, Source, prepare_part
from imagen_jax.data.records import shard_name
from imagen_jax.data.rejects import Counts, Rejects
from imagen_jax.data.sizes import Size, joined_splits
from imagen_jax.files import AnyPath

_PARTS, _SHARDS, _OUTCOMES, _RECURRING, _ENTRIES, _KEYS = "parts", "shards", "outcomes", "recurring", "entries", "keys"

# Of an accepted example, for those steps that do not see its record.
_KEPT = Accepted._fields
# And the bytes of its record.
_BYTES = "num_bytes"

# Number of a part of the source, number of a record among those of the part.
Place = tuple[int, int]
# A record's bytes too.
Sized = tuple[Place, int]


def build_corpus(
    source: Source,
    out_dir: str | os.PathLike[str],
    config: BuildConfig,
    pipeline_args: Sequence[str],
    *,
    overwrite: bool = False,
    extra: Mapping[str, Any] | None = None,
) -> BuildReport:
    """Writes a corpus directory with Beam.

    Args:
      source: the raw pairs. Its parts are functions, or `functools.partial` of functions with arguments that
        `files.packed` takes: the functions travel with the pipeline, the arguments in a file.
      out_dir: the corpus directory; workers must see it, and the source's files, under these names.
      config: how to build.
      pipeline_args: Beam's options.
      overwrite, extra: as for `imagen_jax.data.builder.assemble`.

    Raises:
      UserError: as `assemble`; or Beam does not know an option.
    """
    write_shards = functools.partial(_write_shards, options=pipeline_options(pipeline_args))
    return assemble(source, out_dir, config, write_shards, overwrite=overwrite, extra=extra)


def _write_shards(
    source: Source, draft: AnyPath, config: BuildConfig, options: PipelineOptions
) -> tuple[dict[str, Any], Counts]:
    # What an earlier start left is not gone on with.
    begin(draft, anew=True)
    scratch = Path(draft)
    with tempfile.TemporaryDirectory(prefix="work-", dir=scratch) as name, Rejects(scratch) as rejects:
        work = Path(name)
        functions, arguments = _taken_apart(source.parts)
        save_items(work / _PARTS, arguments)
        prepare = _Prepare(work, config, functions)
        run(functools.partial(_prepare, prepare=prepare, work=work, num_parts=len(source.parts)), options)
        places = _plan(work, rejects, Screened(source.screen), config.sizes)
        if not places:
            raise rejects.nothing_accepted(config.name)
        shards = list(_shards(places, config))
        save_items(work / _SHARDS, shards)
        run(functools.partial(_copy, work=work, scratch=scratch, num_shards=len(shards)), options)
        entries = dict(read_lines(work / _ENTRIES))
        splits = {
            split: {
                "num_examples": len(mine),
                "shards": [entries[number] for number, shard in enumerate(shards) if shard[0] == split],
            }
            for split, mine in places.items()
        }
        return joined_splits(splits, config.sizes) if config.sizes else splits, rejects.counts


def _taken_apart(parts: Sequence[Part]) -> tuple[list[Callable[..., Any]], list[Any]]:
    """The functions that parts call, few, and for each part [number of its function, arguments, named arguments]."""
    functions: dict[Callable[..., Any], int] = {}
    arguments = []
    for part in parts:
        whole = part if isinstance(part, functools.partial) else functools.partial(part)
        number = functions.setdefault(whole.func, len(functions))
        arguments.append([number, whole.args, whole.keywords])
    return list(functions), arguments


def _prepare(pipeline: beam.Pipeline, prepare: "_Prepare", work: Path, num_parts: int) -> None:
    prepared = (
        pipeline
        | beam.Create(range(num_parts))
        | "one worker a part" >> beam.Reshuffle()
        | "prepare" >> beam.ParDo(prepare).with_outputs(_KEYS, main=_OUTCOMES)
    )
    prepared[_OUTCOMES] | "outcomes" >> WriteLines(work / _OUTCOMES)
    (
        prepared[_KEYS]
        | beam.GroupByKey()
        | "all but the first" >> beam.FlatMap(_all_but_the_first)
        | "recurring" >> WriteLines(work / _RECURRING)
    )


class _Prepare(beam.DoFn):
    """Part → its records as a file, (part, [outcome of each input]), and (key, place) of each record.

    An outcome is the refusal, or what _KEPT names of what was accepted.
    """

    def __init__(self, work: Path, config: BuildConfig, functions: Sequence[Callable[..., Any]]):
        self._work, self._config, self._functions = work, config, functions

    def process(self, part: int) -> Iterator[Any]:
        number, arguments, named = load_item(self._work / _PARTS, part)
        taken = functools.partial(self._functions[number], *arguments, **named)
        outcomes: list[dict[str, Any]] = []
        accepted: list[bytes] = []
        for one in prepare_part(taken, self._config.form):
            if isinstance(one, Rejection):
                outcomes.append(dataclasses.asdict(one))
            else:
                yield beam.pvalue.TaggedOutput(_KEYS, (one.key, (part, len(accepted))))
                outcomes.append({field: getattr(one, field) for field in _KEPT})
                accepted.append(serialized(one))
                outcomes[-1][_BYTES] = len(accepted[-1])
        write_records(_records_of(self._work, part), accepted)
        yield part, outcomes


def _records_of(work: Path, part: int) -> Path:
    return work / f"part-{part:07d}"


def _all_but_the_first(key_places: tuple[str, Iterable[Place]]) -> Iterator[tuple[str, Place]]:
    key, places = key_places
    for place in sorted(places)[1:]:
        yield key, place


def _plan(work: Path, rejects: Rejects, screened: Screened, sizes: Sequence[Size]) -> dict[str, list[Sized]]:
    """Records of each split in the order of the source; the refused inputs go to `rejects`."""
    recurring = {tuple(place): key for key, place in read_lines(work / _RECURRING)}
    places: dict[str, list[Sized]] = {}
    for part, outcomes in sorted(read_lines(work / _OUTCOMES)):
        record = itertools.count()
        for outcome in outcomes:
            if "reason" in outcome:
                rejects.add(Rejection(**outcome))
                continue
            place = part, next(record)
            if place in recurring:
                rejects.add_recurring(recurring[place])
                continue
            problem = screened.problem(outcome["key"], outcome["picture_mark"], outcome["caption_mark"])
            if problem:
                rejects.add_dropped(outcome["key"], problem)
                continue
            split = outcome["split"]
            rejects.add_repair(outcome["key"], outcome["repair"])
            if split not in places:
                check_split(split, sizes)
                places[split] = []
            places[split].append((place, outcome[_BYTES]))
    return places


def _shards(places: Mapping[str, Sequence[Sized]], config: BuildConfig) -> Iterator[tuple[str, str, Sequence[Place]]]:
    """(split, file name, records) of every shard."""
    for split, mine in places.items():
        shards: list[list[Place]] = []
        num_bytes = 0
        for place, size in mine:
            num_bytes += size
            if not shards or is_full(len(shards[-1]), num_bytes, config.examples_per_shard, config.shard_size):
                shards.append([])
                num_bytes = size
            shards[-1].append(place)
        for number, shard in enumerate(shards):
            yield split, shard_name(split, number, len(shards)), shard


def _copy(pipeline: beam.Pipeline, work: Path, scratch: Path, num_shards: int) -> None:
    (
        pipeline
        | beam.Create(range(num_shards))
        | "one worker a shard" >> beam.Reshuffle()
        | "write" >> beam.Map(_write_shard, work=work, scratch=scratch)
        | "entries" >> WriteLines(work / _ENTRIES)
    )


def _write_shard(number: int, work: Path, scratch: Path) -> tuple[int, dict[str, Any] | None]:
    _, name, places = load_item(work / _SHARDS, number)
    records = (
        record
        for part, mine in itertools.groupby(places, key=lambda place: place[0])
        for record in read_records(_records_of(work, part), [one for _, one in mine])
    )
    return number, write_records(scratch / name, records)
