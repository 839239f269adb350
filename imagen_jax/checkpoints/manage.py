"""Checkpoints as people look after them: list, verify, prune, copy, compare; on a disk and in buckets."""

import difflib
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from imagen_jax.checkpoints import checkpoints, folders, marks, proof, transfers
from imagen_jax.checkpoints.folders import DIGESTS, Step
from imagen_jax.checkpoints.trees import named_leaves
from imagen_jax.errors import UserError
from imagen_jax.files import (
    AnyPath,
    StrPath,
    as_path,
    fetch_files,
    files_under,
    is_remote,
    make_dirs,
    modified_at,
    remove_tree,
    send_files,
    sha256_of_files,
)
from imagen_jax.typing import PyTree

_CHECKPOINT = re.compile("checkpoint_(0|[1-9][0-9]*)")


def located(path: StrPath) -> AnyPath:
    """The checkpoint that a path means: itself, or the newest of a run directory.

    Raises:
      UserError: there is none.
    """
    place = as_path(os.fspath(path).rstrip("/"))
    if _CHECKPOINT.fullmatch(place.name) and place.parent.name == "checkpoints":
        return folders.existing(place.parent.parent, folders.step_of(place))
    return folders.existing(place, None)


def lines(model_dir: StrPath) -> list[str]:
    """A table of the checkpoints of a run: name, megabytes, hours since it was written, and what it is.

    Raises:
      UserError: there is nothing, or best.json or finished.json is damaged.
    """
    marked = {"the best": marks.best_step(model_dir), "the end of the run": marks.finished_step(model_dir)}
    rows = []
    for step in folders.saved_steps(model_dir):
        path = folders.checkpoint_dir(model_dir, step)
        hours = (time.time() - modified_at(path / DIGESTS)) / 3600 if (path / DIGESTS).exists() else None
        what = ", ".join(["whole", *(name for name, marked_step in marked.items() if marked_step == step)])
        rows.append((path, "?" if hours is None else f"{hours:.1f}", what))
    rows += [(path, "-", "damaged, set aside") for path in folders.quarantined(model_dir)]
    if not rows:
        raise UserError(f"no checkpoint under {as_path(model_dir) / 'checkpoints'}; train first, or check the path")
    table = [("checkpoint", "MB", "hours old", "is")]
    table += [(path.name, f"{sum(files_under(path).values()) / 1e6:.1f}", age, what) for path, age, what in rows]
    widths = [max(len(row[column]) for row in table) for column in range(4)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in table]


def verified(model_dir: StrPath, step: Step | None) -> Iterator[tuple[AnyPath, proof.DamagedCheckpointError | None]]:
    """Compares every file of the checkpoints of a run, or of one, with its digest.

    Yields:
      Each checkpoint, and what is damaged of it or None.

    Raises:
      UserError: there is none, or one cannot be read.
    """
    folders.existing(model_dir, step)
    steps = folders.saved_steps(model_dir) if step is None else [folders.step_of(folders.existing(model_dir, step))]
    for one in steps:
        path = folders.checkpoint_dir(model_dir, one)
        try:
            proof.verify(path)
        except proof.DamagedCheckpointError as error:
            yield path, error
        else:
            yield path, None


def copy(source: AnyPath, to: StrPath, items: tuple[str, ...] = checkpoints.ITEMS) -> AnyPath:
    """Copies a checkpoint into another run directory, whole or not at all; what is copied is compared with its digests.

    Args:
      source: the checkpoint.
      to: run directory; in a bucket or on a disk, as the source may be.
      items: arrays that are copied; without all of them a run can start from the copy, but not go on.

    Returns:
      The copy.

    Raises:
      UserError: the source is damaged or lacks an item, or there is a checkpoint of that step already.
    """
    final = folders.checkpoint_dir(to, folders.step_of(source))
    if folders.is_there(final):
        raise UserError(f"{final} exists already and is never overwritten; name another directory, or rename it")
    transfers.check_has(source, items)
    expected = {name: digest for name, digest in proof.read_digests(source).items() if _belongs(name, items)}
    partial = folders.partial_of(final)
    make_dirs(to)
    remove_tree(partial)  # What a killed copy left.
    folders.begin(final)
    try:
        with transfers.written_here(partial) as here:
            with proof.readable(source):
                found = _copied(source, expected, here)
            proof.check_digests(source, expected, found)
            if is_remote(partial):
                sent = send_files(here, partial)
                transfers.check_arrived(partial, {name: size for name, (size, _) in sent.items()})
        proof.write_digests(partial, expected)
        folders.publish(final)
    except BaseException:
        remove_tree(partial)
        raise
    return final


def _belongs(name: str, items: tuple[str, ...]) -> bool:
    """Tells if a file is of the wanted items, or of none."""
    parts = name.split("/")
    return parts[0] != transfers.ARRAYS or len(parts) < 3 or parts[1] in items


def _copied(source: AnyPath, expected: Mapping[str, str], here: AnyPath) -> dict[str, str]:
    """Copies the files that are there of those expected, and tells the SHA-256 of each copy."""
    there = [name for name in proof.listed_files(source) if name in expected]
    if is_remote(source):
        return fetch_files(source, there, here)
    for name in there:
        Path(here, name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, here / name)
    return dict(zip(there, sha256_of_files([here / name for name in there]), strict=True))


def differences(one: AnyPath, two: AnyPath) -> Iterator[str]:
    """Lines that tell how two checkpoints differ: those of their configs, then the arrays, leaf by leaf.

    Raises:
      UserError: one is damaged.
    """
    for path in (one, two):
        proof.verify(path)
    first, second = ((path / "config.gin").read_text(encoding="utf-8").splitlines() for path in (one, two))
    changed = [line for line in difflib.unified_diff(first, second, n=0, lineterm="") if line[:3] not in ("---", "+++")]
    yield from (f"config: {line}" for line in changed if not line.startswith("@@"))
    for item in checkpoints.ITEMS:
        has = [transfers.has(path, item) for path in (one, two)]
        if all(has):
            yield from _array_lines(item, *(checkpoints.load_item(path, item) for path in (one, two)))
        elif any(has):
            yield f"{item}: only in {(one, two)[has.index(True)]}"


def _array_lines(item: str, one: PyTree, two: PyTree) -> Iterator[str]:
    ours, theirs = named_leaves(one), named_leaves(two)
    equal = 0
    for name in sorted(ours.keys() | theirs.keys()):
        if name not in ours or name not in theirs:
            yield f"{item}.{name}: only in the {'second' if name in theirs else 'first'}"
            continue
        a, b = np.asarray(ours[name]), np.asarray(theirs[name])
        if a.shape != b.shape or a.dtype != b.dtype:
            yield f"{item}.{name}: {a.dtype}{list(a.shape)} and {b.dtype}{list(b.shape)}"
        elif a.tobytes() == b.tobytes():
            equal += 1
        else:
            far = np.max(np.abs(a.astype(np.float64) - b.astype(np.float64)))
            yield f"{item}.{name}: differs by {far:.6g} at most"
    yield f"{item}: {equal} of {len(ours.keys() | theirs.keys())} leaves equal bit for bit"
