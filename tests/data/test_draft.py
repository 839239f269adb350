"""A build that is killed at any step goes on at the shard that is not whole and ends with the same bytes."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from imagen_jax.data import builder, draft, records
from imagen_jax.data.builder import BuildConfig, build_corpus
from imagen_jax.data.duplicates import Screen
from imagen_jax.data.raw import RawExample, Rejection, Source, screened
from imagen_jax.data.records import Corpus
from imagen_jax.errors import UserError

# What touches files: (module or class, its function).
_STEPS = (
    (draft, "move_file"), (draft, "write_json"), (draft, "rename_file"), (draft, "remove_files"),
    (draft, "remove_tree"), (builder, "write_json"), (records.ShardWriter, "write"), (records.ShardWriter, "close"),
)  # fmt: skip


class Killed(BaseException):
    """Stands for the end of the process."""


def _example(number: int) -> RawExample:
    image = np.random.default_rng(number % 7).integers(0, 256, (9, 8, 3), np.uint8)
    key, split = f"k{number % 10}", "val" if number % 3 == 0 else "train"
    return RawExample(key=key, image=image, caption=f"number {number}", split=split)


def _part(first: int) -> Iterator[RawExample | Rejection]:
    """Refused, recurring and alike ones among them."""
    yield Rejection(source=f"bad {first}", reason="broken")
    for number in range(first, first + 4):
        yield _example(number)


def _source(num_parts: int = 3) -> Source:
    parts = [lambda first=first: _part(first) for first in range(0, 4 * num_parts, 4)]
    return screened(Source(parts=parts, num_examples=0, settings={"kind": "test"}), Screen(dedupe=True))


_CONFIG = BuildConfig(name="tiny", image_size=8, examples_per_shard=2)


class _Steps:
    """Kills a build before its n-th step, without the clean-up that a signal would leave time for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.left = -1
        monkeypatch.setattr(draft, "leave", lambda folder: 0)
        for where, name in _STEPS:
            monkeypatch.setattr(where, name, self._counted(getattr(where, name)))

    def _counted(self, real):
        def step(*arguments, **named):
            if self.left == 0:
                raise Killed
            self.left -= 1
            return real(*arguments, **named)

        return step

    def kill(self, out, before: int, **options) -> bool:
        """Builds; tells if it was killed."""
        self.left = before
        try:
            build_corpus(_source(), out, _CONFIG, **options)
        except Killed:
            return True
        finally:
            self.left = -1
        return False


def _files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _whole(out: Path) -> set[int]:
    """The files, as the system numbers them, of the noted shards of a draft."""
    notes = [json.loads(path.read_text()) for path in out.glob(".building-*/*.note.json")]
    paths = [next(out.glob(f".building-*/{note['shard']['file']}"), None) for note in notes]
    return {path.stat().st_ino for path in paths if path is not None}


@pytest.mark.parametrize("older", [False, True])
def test_killed_before_any_step_it_goes_on_with_its_whole_shards(tmp_path, monkeypatch, older):
    build_corpus(_source(), tmp_path / "whole", _CONFIG)
    expected = _files(tmp_path / "whole")
    assert sum(name.endswith(".array_record") for name in expected) >= 4
    steps, before, most = _Steps(monkeypatch), 0, 0
    while True:
        out = tmp_path / str(before)
        if older:
            build_corpus(_source(1), out, BuildConfig(name="tiny", image_size=4))
        killed = steps.kill(out, before, overwrite=older)
        made = _whole(out)
        most = max(most, len(made))
        if killed:
            build_corpus(_source(), out, _CONFIG, overwrite=older)
        assert _files(out) == expected, before
        assert made <= {path.stat().st_ino for path in out.iterdir()}
        if not killed:
            break
        before += 1
    assert before > 30 and most >= 4


def test_in_a_bucket_too(bucket, tmp_path, monkeypatch):
    build_corpus(_source(), tmp_path / "whole", _CONFIG)
    expected = _files(tmp_path / "whole")
    steps = _Steps(monkeypatch)
    for before in range(3, 60, 6):
        out = f"gs://bucket-a/{before}"
        killed = steps.kill(out, before)
        if killed:
            build_corpus(_source(), out, _CONFIG)
        names = [name for name in bucket.names() if name.startswith(f"{before}/")]
        assert {name.removeprefix(f"{before}/"): bucket.content(name) for name in names} == expected, before


def test_whole_shards_are_not_prepared_again(tmp_path, monkeypatch):
    steps, prepared = _Steps(monkeypatch), []
    real = builder.prepare_part

    def counted(*arguments):
        for one in real(*arguments):
            prepared.append(one)
            yield one

    monkeypatch.setattr(builder, "prepare_part", counted)
    assert steps.kill(tmp_path, 22)
    first, kept = len(prepared), sum(2 for _ in tmp_path.glob(".building-*/*.note.json"))
    build_corpus(_source(), tmp_path, _CONFIG)
    assert kept >= 4 and len(prepared) - first <= 15 - kept


def test_a_draft_of_other_settings_is_left_alone_and_a_damaged_one_made_again(tmp_path, monkeypatch):
    build_corpus(_source(), tmp_path / "whole", _CONFIG)
    steps, out = _Steps(monkeypatch), tmp_path / "out"
    assert steps.kill(out, 22)
    (folder,) = out.glob(".building-*")
    before = _files(folder)
    build_corpus(_source(), out, BuildConfig(name="tiny", image_size=4))
    assert _files(folder) == before
    for name, content in (
        ("00001.note.json", b"{"),
        ("00001.note.json", b'{"split": 3}'),
        ("train-00000.array_record", b""),
    ):
        (folder / name).write_bytes(content)
        build_corpus(_source(), out, _CONFIG, overwrite=True)
        assert _files(out) == _files(tmp_path / "whole")
        folder.mkdir()
        for file, held in before.items():
            (folder / file).write_bytes(held)
    # One that a whole corpus of the same settings makes needless.
    assert build_corpus(_source(), out, _CONFIG).reused and not folder.exists()


def test_a_source_that_changed_meanwhile_is_refused(tmp_path, monkeypatch):
    steps = _Steps(monkeypatch)
    assert steps.kill(tmp_path, 22)
    changed = screened(Source(parts=[list, list, list], num_examples=0, settings={"kind": "test"}), Screen(dedupe=True))
    with pytest.raises(UserError, match="the source gives example 'k[0-9]' of the build begun in .* no more"):
        build_corpus(changed, tmp_path, _CONFIG)
    build_corpus(_source(), tmp_path, _CONFIG)
    Corpus(tmp_path).verify()
