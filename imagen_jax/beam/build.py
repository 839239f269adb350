"""Builds a corpus with Beam: the same bytes as `imagen_jax.data.builder.build_corpus` gives.

    1. parallel     parts of the source → decoded, filtered, resized records and the list of what became of each input
    2. by key       all but the first example of a key are refused, in the order of the source
       by mark      which pictures look alike, if one of them is to be kept
    3. here         what the screen drops; where each record belongs; rejects.jsonl
    4. parallel     records → shards

The records of step 1 are files until step 4 has copied them, so a build needs room for two corpora. They lie with the
draft in the corpus directory, in a bucket as on a disk: workers of other machines see them. Step 3 reads the lists one
by one: it holds 12 bytes a record, the keys that recur and the marks that are alike.
"""

import array
import collections
import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from imagen_jax.beam.files import (
    WriteLines,
    load_item,
    read_lines,
    read_records,
    save_items,
    shared_folder,
    write_records,
)
from imagen_jax.beam.runner import pipeline_options, run
from imagen_jax.data.builder import BuildConfig, BuildReport, assemble, check_split, serialized
from imagen_jax.data.draft import Accepted, begin, is_full
from imagen_jax.data.duplicates import Screened, groups_of, pairs_of_group
from imagen_jax.data.raw import Part, Rejection, Source, prepare_part
from imagen_jax.data.records import shard_name
from imagen_jax.data.rejects import Counts, Rejects
from imagen_jax.data.sizes import Size, joined_splits
from imagen_jax.files import AnyPath

_PARTS, _SHARDS, _RECURRING, _ALIKE, _ENTRIES, _KEYS, _MARKS = (
    "parts", "shards", "recurring", "alike", "entries", "keys", "marks"
)  # fmt: skip

# Of an accepted example, for those steps that do not see its record.
_KEPT = Accepted._fields
# And the bytes of its record.
_BYTES = "num_bytes"

# Number of a part of the source, number of a record among those of the part.
Place = tuple[int, int]
_RECORD_BITS = 32


class _Records(NamedTuple):
    """Records of a split, as plain numbers: there is one entry a record in memory.

    Args:
      places: of each record, the part in the upper bits and the record's number in the lower 32.
      sizes: bytes of each record.
    """

    places: "array.array[int]"
    sizes: "array.array[int]"


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
    with shared_folder(draft, "work-") as work, Rejects(draft) as rejects:
        functions, arguments = _taken_apart(source.parts)
        save_items(work / _PARTS, arguments)
        dedupe = source.screen is not None and source.screen.dedupe
        prepare = _Prepare(work, config, functions, len(arguments), dedupe)
        run(functools.partial(_prepare, prepare=prepare, work=work), options)
        records = _plan(work, len(arguments), rejects, Screened(source.screen, _alike(work)), config.sizes)
        if not records:
            raise rejects.nothing_accepted(config.name)
        save_items(work / _SHARDS, (shard for _, shard in _shards(records, config)))
        split_of = [split for split, _ in _shards(records, config)]
        run(functools.partial(_copy, work=work, draft=draft, num_shards=len(split_of)), options)
        entries = dict(read_lines(work / _ENTRIES))
        splits = {
            split: {
                "num_examples": len(mine.places),
                "shards": [entries[number] for number, its in enumerate(split_of) if its == split],
            }
            for split, mine in records.items()
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


def _prepare(pipeline: beam.Pipeline, prepare: "_Prepare", work: AnyPath) -> None:
    prepared = (
        pipeline
        | beam.Create(range(prepare.num_parts))
        | "one worker a part" >> beam.Reshuffle()
        | "prepare" >> beam.ParDo(prepare).with_outputs(_KEYS, _MARKS)
    )
    (
        prepared[_KEYS]
        | beam.GroupByKey()
        | "all but the first" >> beam.FlatMap(_all_but_the_first)
        | "recurring" >> WriteLines(work / _RECURRING)
    )
    counted = prepared[_MARKS] | beam.combiners.Count.PerElement()
    often = counted | "more than once" >> beam.FlatMap(_twice_if_it_recurs)
    near = (
        counted | "by group" >> beam.FlatMap(_by_group) | "group" >> beam.GroupByKey() | "near" >> beam.FlatMap(_near)
    )
    (often, near) | beam.Flatten() | "alike" >> WriteLines(work / _ALIKE)


class _Prepare(beam.DoFn):
    """Part → its records as a file, the outcome of each input as another, and (key, place) and mark of each record.

    An outcome is the refusal, or what _KEPT names of what was accepted. Marks are those of pictures, if asked for.
    """

    def __init__(
        self,
        work: AnyPath,
        config: BuildConfig,
        functions: Sequence[Callable[..., Any]],
        num_parts: int,
        marks: bool = False,
    ):
        self._work, self._config, self._functions, self._marks = work, config, functions, marks
        self.num_parts = num_parts

    def process(self, part: int) -> Iterator[Any]:
        number, arguments, named = load_item(self._work / _PARTS, part, self.num_parts)
        taken = functools.partial(self._functions[number], *arguments, **named)
        outcomes: list[dict[str, Any]] = []
        accepted: list[bytes] = []
        for one in prepare_part(taken, self._config.form):
            if isinstance(one, Rejection):
                outcomes.append(dataclasses.asdict(one))
                continue
            yield beam.pvalue.TaggedOutput(_KEYS, (one.key, (part, len(accepted))))
            if self._marks:
                yield beam.pvalue.TaggedOutput(_MARKS, one.picture_mark)
            accepted.append(serialized(one))
            outcomes.append({**{field: getattr(one, field) for field in _KEPT}, _BYTES: len(accepted[-1])})
        write_records(_records_of(self._work, part), accepted)
        save_items(_outcomes_of(self._work, part), [outcomes])


def _records_of(work: AnyPath, part: int) -> AnyPath:
    return work / f"part-{part:07d}"


def _outcomes_of(work: AnyPath, part: int) -> AnyPath:
    return work / f"outcomes-{part:07d}"


def _all_but_the_first(key_places: tuple[str, Iterable[Place]]) -> Iterator[tuple[str, Place]]:
    key, places = key_places
    for place in sorted(places)[1:]:
        yield key, place


def _twice_if_it_recurs(counted: tuple[str, int]) -> Iterator[tuple[str, str]]:
    mark, count = counted
    if count > 1:
        yield mark, mark


def _by_group(counted: tuple[str, int]) -> Iterator[tuple[tuple[int, int], str]]:
    mark, _ = counted
    for key in groups_of(mark):
        yield key, mark


def _near(group_marks: tuple[tuple[int, int], Iterable[str]]) -> Iterator[tuple[str, str]]:
    (group, _), marks = group_marks
    return pairs_of_group(group, list(marks))


def _alike(work: AnyPath) -> dict[str, list[str]]:
    """For each mark that recurs or that another looks like, those others."""
    alike = collections.defaultdict[str, list[str]](list)
    for one, other in read_lines(work / _ALIKE):
        alike[one].append(other)
        alike[other].append(one)
    return dict(alike)


def _plan(
    work: AnyPath, num_parts: int, rejects: Rejects, screened: Screened, sizes: Sequence[Size]
) -> dict[str, _Records]:
    """The records of each split in the order of the source; the refused inputs go to `rejects`."""
    recurring = {_packed_place(*place): key for key, place in read_lines(work / _RECURRING)}
    records: dict[str, _Records] = {}
    for part in range(num_parts):
        record = itertools.count()
        for outcome in load_item(_outcomes_of(work, part), 0, 1):
            if "reason" in outcome:
                rejects.add(Rejection(**outcome))
                continue
            place = _packed_place(part, next(record))
            if place in recurring:
                rejects.add_recurring(recurring[place])
                continue
            problem = screened.problem(outcome["key"], outcome["picture_mark"], outcome["caption_mark"])
            if problem:
                rejects.add_dropped(outcome["key"], problem)
                continue
            split = outcome["split"]
            rejects.add_repair(outcome["key"], outcome["repair"])
            if split not in records:
                check_split(split, sizes)
                records[split] = _Records(array.array("Q"), array.array("I"))
            records[split].places.append(place)
            records[split].sizes.append(outcome[_BYTES])
    return records


def _packed_place(part: int, record: int) -> int:
    return part << _RECORD_BITS | record


def _shards(records: Mapping[str, _Records], config: BuildConfig) -> Iterator[tuple[str, tuple[str, Sequence[Place]]]]:
    """Of every shard its split, and its file name with the places of its records."""
    for split, mine in records.items():
        starts = [0]
        num_bytes = 0
        for number, size in enumerate(mine.sizes):
            num_bytes += size
            held = number - starts[-1]
            if held and is_full(held, num_bytes, config.examples_per_shard, config.shard_size):
                starts.append(number)
                num_bytes = size
        for shard, (start, stop) in enumerate(itertools.pairwise([*starts, len(mine.sizes)])):
            places = [(place >> _RECORD_BITS, place & 2**_RECORD_BITS - 1) for place in mine.places[start:stop]]
            yield split, (shard_name(split, shard, len(starts)), places)


def _copy(pipeline: beam.Pipeline, work: AnyPath, draft: AnyPath, num_shards: int) -> None:
    (
        pipeline
        | beam.Create(range(num_shards))
        | "one worker a shard" >> beam.Reshuffle()
        | "write" >> beam.Map(_write_shard, work=work, draft=draft, num_shards=num_shards)
        | "entries" >> WriteLines(work / _ENTRIES)
    )


def _write_shard(number: int, work: AnyPath, draft: AnyPath, num_shards: int) -> tuple[int, dict[str, Any] | None]:
    name, places = load_item(work / _SHARDS, number, num_shards)
    records = (
        record
        for part, mine in itertools.groupby(places, key=lambda place: place[0])
        for record in read_records(_records_of(work, part), [one for _, one in mine])
    )
    return number, write_records(draft / name, records)
