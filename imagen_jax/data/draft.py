"""A corpus while it is built: the shards that are whole, so that a build that was killed goes on after them.

    .building-DIGEST/                    in the corpus directory; a build of equal settings finds it again
      <split>-SSSSS.array_record         a whole shard: how many there will be is not known yet
      <split>-SSSSS.array_record.index
      00007.note.json                    written after both: the shard, and what was decided on the inputs since note 6
      corpus.json                        written when all else is there: what is left to do is to move it into place

A shard without a note, or whose files are not of the noted sizes, is made again, and so are those with later notes.
"""

import dataclasses
import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import PIL

from imagen_jax.array_records import SUFFIX
from imagen_jax.data import records
from imagen_jax.data.card import CARD_FACTS, CARD_PAGE
from imagen_jax.data.duplicates import Screen, Screened
from imagen_jax.data.raw import Known, Prepared, Rejection
from imagen_jax.data.rejects import Rejects
from imagen_jax.errors import UserError
from imagen_jax.files import (
    FILE_NAME,
    AnyPath,
    check_content,
    files_under,
    is_remote,
    make_dirs,
    move_file,
    read_json,
    remove_files,
    remove_tree,
    rename_file,
    write_json,
)

VOCABULARY = "vocabulary.model"
_PREFIX = ".building-"
_OLD = "replaced.json"
_NOTE = re.compile(r"\d{5,}\.note\.json")
_NUMBERED = re.compile(r"(.*-\d{5,})-of-\d{5,}(\.array_record)")
_DAMAGED = "remove the folder and start again"


class Accepted(NamedTuple):
    """The part of a prepared example that decides on it."""

    split: str
    key: str
    repair: str
    picture_mark: str
    caption_mark: str

    @classmethod
    def of(cls, one: Prepared) -> "Accepted":
        """Takes that part of an example."""
        return cls(*(getattr(one, field) for field in cls._fields))


Outcome = Accepted | Rejection


class Ledger:
    """Decides on the inputs of a build in the order of the source.

    Args:
      rejects: where refused ones are named.
      screen: what accepted ones are compared with.
    """

    def __init__(self, rejects: Rejects, screen: Screen | None):
        self._rejects, self._screened, self._keys = rejects, Screened(screen), set[str]()

    def takes(self, one: Outcome) -> bool:
        """Tells if an input becomes a record of the corpus; one that does not is named."""
        if isinstance(one, Rejection):
            self._rejects.add(one)
        elif one.key in self._keys:
            self._rejects.add_recurring(one.key)
        elif problem := self._screened.problem(one.key, one.picture_mark, one.caption_mark):
            self._rejects.add_dropped(one.key, problem)
        else:
            self._keys.add(one.key)
            self._rejects.add_repair(one.key, one.repair)
            return True
        return False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Note:
    """The note that is written once a shard is whole.

    Args:
      split: of the shard.
      shard: its entry in the manifest, under its name in the draft.
      outcomes: pairs of a part's number and what became of its next input, since the note before.
      last: the source had no more inputs.
    """

    split: str
    shard: Mapping[str, Any]
    outcomes: Sequence[tuple[int, Outcome]]
    last: bool

    def plain(self) -> dict[str, Any]:
        """The same, JSON-able."""
        return {
            **{name: getattr(self, name) for name in ("split", "shard", "last")},
            "outcomes": [
                [part, list(one) if isinstance(one, Accepted) else dataclasses.asdict(one)]
                for part, one in self.outcomes
            ],
        }

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> "Note":
        """Reads the result of `plain`."""
        outcomes = [
            (int(part), Accepted(*one) if isinstance(one, list) else Rejection(**one))
            for part, one in found["outcomes"]
        ]
        return cls(split=found["split"], shard=found["shard"], outcomes=outcomes, last=found["last"])


def draft_of(out: AnyPath, settings: Mapping[str, Any]) -> AnyPath:
    """The folder of the draft of a build.

    Args:
      out: the corpus directory.
      settings: of the build; those that fix the bytes of the shards are told apart, with the versions that do too.
    """
    build = {name: value for name, value in settings["build"].items() if name != "vocab_size"}
    told = json.dumps([build, settings["source"], records.FORMAT_VERSION, PIL.__version__], sort_keys=True)
    return out / f"{_PREFIX}{hashlib.sha256(told.encode()).hexdigest()[:16]}"


def draft_name(file: str) -> str:
    """The name of a shard's file in a draft, where the number of shards is not known yet."""
    return _NUMBERED.sub(r"\1\2", file)


def read_notes(draft: AnyPath) -> list[Note]:
    """The notes of the shards that are whole; other files are removed from the draft."""
    sizes = files_under(draft)
    notes: list[Note] = []
    kept: set[str] = set()
    while (name := f"{len(notes):05d}.note.json") in sizes:
        try:
            note = Note.of(read_json(draft / name))
            shard = note.shard
            files = {one["file"]: one["num_bytes"] for one in (shard, shard["index"])}
        except (ValueError, KeyError, TypeError):
            break
        if any(sizes.get(file) != num_bytes for file, num_bytes in files.items()):
            break
        notes.append(note)
        kept |= {name, *files}
    remove_files(draft, sizes.keys() - kept)
    return notes


class Begun(NamedTuple):
    """The state of a build that goes on.

    Args:
      known: by the number of a part, what of it is known; without the parts that need not be opened again.
      keys: of the examples to prepare again, by part.
      num_inputs: inputs that are known.
    """

    known: Mapping[int, Known]
    keys: Mapping[int, Sequence[str]]
    num_inputs: int


class Shards:
    """The shards of a build as they are written.

    Args:
      draft: the folder.
      work: folder on this machine where a shard grows: the draft itself, unless that is in a bucket.
      examples_per_shard: most records of a shard.
      shard_size: most bytes of the records of a shard of several, in place of that; None: no such limit.
    """

    def __init__(self, draft: AnyPath, work: Path, examples_per_shard: int, shard_size: int | None):
        self._draft, self._work = draft, work
        self._limits = examples_per_shard, shard_size
        self._notes = read_notes(draft)
        self._num_notes = len(self._notes)
        self._whole: dict[str, list[Mapping[str, Any]]] = {}
        self._open: dict[str, records.ShardWriter] = {}
        self._news: list[tuple[int, Outcome]] = []

    def resume(self, ledger: Ledger, num_parts: int) -> Begun:
        """Takes up what the notes tell.

        Args:
          ledger: decides on their inputs once more.
          num_parts: of the source.
        """
        whole, taken, counts = Counter[str](), Counter[str](), Counter[int]()
        for note in self._notes:
            whole[note.split] += note.shard["num_examples"]
        again: dict[int, list[tuple[int, str]]] = {}
        for part, one in (pair for note in self._notes for pair in note.outcomes):
            if ledger.takes(one) and isinstance(one, Accepted):
                self._whole.setdefault(one.split, [])
                taken[one.split] += 1
                if taken[one.split] > whole[one.split]:
                    again.setdefault(part, []).append((counts[part], one.key))
            counts[part] += 1
        for note in self._notes:
            self._whole[note.split].append(note.shard)
        first = num_parts if self._notes and self._notes[-1].last else max(counts, default=0)
        known = {
            part: Known(counts[part], tuple(number for number, _ in again.get(part, ())))
            for part in range(num_parts)
            if part >= first or part in again
        }
        self._notes = []
        keys = {part: [key for _, key in mine] for part, mine in again.items()}
        return Begun(known, keys, counts.total())

    def decided(self, part: int, one: Outcome) -> None:
        """Remembers what became of the next input of a part."""
        self._news.append((part, one))

    def write(self, split: str, serialized: bytes) -> None:
        """Appends a record."""
        self._whole.setdefault(split, [])
        writer = self._open.get(split)
        if writer is not None and is_full(writer.num_examples, writer.num_bytes + len(serialized), *self._limits):
            self._close(split, last=False)
        if split not in self._open:
            name = f"{split}-{len(self._whole[split]):05d}.array_record"
            self._open[split] = records.ShardWriter(self._work / name)
        self._open[split].write(serialized)

    def _close(self, split: str, last: bool) -> None:
        shard = self._open.pop(split).close()
        for file in (shard["file"], shard["index"]["file"]):
            move_file(self._work / file, self._draft / file, sync=True)
        note = Note(split=split, shard=shard, outcomes=self._news, last=last)
        write_json(self._draft / f"{self._num_notes:05d}.note.json", note.plain(), indent=None, sync=True)
        self._num_notes, self._news = self._num_notes + 1, []
        self._whole[split].append(shard)

    def finish(self) -> dict[str, Any]:
        """Closes the shards; returns the manifest's "splits", with the names that they get in the corpus."""
        for split in [split for split in self._whole if split in self._open]:
            self._close(split, last=True)
        return {
            split: {
                "num_examples": sum(shard["num_examples"] for shard in shards),
                "shards": [
                    records.renamed(shard, records.shard_name(split, number, len(shards)))
                    for number, shard in enumerate(shards)
                ],
            }
            for split, shards in self._whole.items()
        }


def is_full(num_examples: int, num_bytes: int, examples_per_shard: int, shard_size: int | None) -> bool:
    """Tells if the next record begins a new shard.

    Args:
      num_examples: records in the shard, at least 1.
      num_bytes: bytes of these and of the next record.
      examples_per_shard, shard_size: as for `Shards`.
    """
    return num_examples >= examples_per_shard if shard_size is None else num_bytes > shard_size


def is_made(draft: AnyPath, manifest: Mapping[str, Any]) -> bool:
    """Tells if a draft is whole, made with the settings and the extra facts of a manifest; other ones are forgotten."""
    if not (draft / records.MANIFEST).is_file():
        return False
    try:
        found = read_json(draft / records.MANIFEST)
        whole = all(found[name] == manifest[name] for name in ("settings", "extra"))
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        (draft / records.MANIFEST).unlink()
    return whole


def place(draft: AnyPath, out: AnyPath) -> None:
    """Moves a draft that is whole into its place; the old manifest goes first, the new one comes last.

    Whatever it is interrupted at, a second call brings it to its end.
    """
    _remove_replaced(draft, out)
    manifest = read_json(draft / records.MANIFEST)
    shards = [shard for entry in manifest["splits"].values() for shard in entry["shards"]]
    final = {draft_name(name): name for shard in shards for name in (shard["file"], f"{shard['file']}{SUFFIX}")}
    found = files_under(draft)
    notes = [name for name in found if _NOTE.fullmatch(name)]
    for name in found.keys() - {*notes, records.MANIFEST}:
        rename_file(draft / name, out / final.get(name, name))
    remove_files(draft, notes)
    rename_file(draft / records.MANIFEST, out / records.MANIFEST)
    remove_tree(draft)


def _remove_replaced(draft: AnyPath, out: AnyPath) -> None:
    """Removes what an older manifest in `out` names; the names are noted first, for a second call."""
    old = draft / _OLD
    if (out / records.MANIFEST).exists():
        try:
            splits = records.read_manifest(out)["splits"]
        except UserError:
            splits = {}  # What an unreadable manifest calls its own may be anybody's.
        names = [shard["file"] for entry in splits.values() for shard in entry["shards"]]
        names = [name + suffix for name in names for suffix in ("", SUFFIX)]
        write_json(old, [VOCABULARY, CARD_FACTS, CARD_PAGE, *names], sync=True)
        (out / records.MANIFEST).unlink()
    if old.exists():
        names = read_json(old)
        check_content(old, names, [FILE_NAME], _DAMAGED)
        remove_files(out, names)
        old.unlink()


def begin(draft: AnyPath, anew: bool = False) -> None:
    """Makes the folder of a draft, unless it is there; `anew` forgets what is in it."""
    if anew:
        remove_tree(draft)
    if not is_remote(draft):
        make_dirs(draft)


def leave(draft: AnyPath) -> int:
    """Removes what is not whole from the draft of a build that ends early, and the draft where nothing is.

    Returns:
      How many shards of it are whole.
    """
    if (draft / records.MANIFEST).exists():
        return sum(name.endswith(".array_record") for name in files_under(draft))
    count = len(read_notes(draft))
    if not count:
        remove_tree(draft)
    return count


def is_begun(draft: AnyPath) -> bool:
    """Tells if there is a draft."""
    return bool(files_under(draft)) or (not is_remote(draft) and draft.is_dir())
