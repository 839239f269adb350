"""Folders of checkpoints: which are whole, and how they come and go, on a disk and in a bucket.

On a disk a checkpoint is written as `checkpoint_N.partial` and renamed when its last byte is there, so that a folder
named checkpoint_N is whole. In a bucket nothing is renamed: the last file, digests.json, makes a checkpoint of what
lies under checkpoint_N, and it is the first to go.
"""

import itertools
import os
import re
import shutil
import sys
from pathlib import Path

from imagen_jax.checkpoints import marks
from imagen_jax.errors import UserError
from imagen_jax.files import (
    AnyPath,
    StrPath,
    as_path,
    copy_tree,
    files_under,
    is_remote,
    remove_files,
    remove_tree,
    sync_directory,
    write_bytes,
)

# A checkpoint by its step, or the one that best.json names.
Step = int | str
BEST = "best"

DIGESTS = "digests.json"
PARTIAL, DAMAGED = ".partial", ".damaged"
_NAME = re.compile("checkpoint_(0|[1-9][0-9]*)")


def checkpoint_dir(model_dir: StrPath, step: int) -> AnyPath:
    """Directory of the checkpoint after `step` updates."""
    return as_path(model_dir) / "checkpoints" / f"checkpoint_{step}"


def step_of(path: AnyPath) -> int:
    """Step of a checkpoint's directory."""
    return int(path.name.removeprefix("checkpoint_"))


def saved_steps(model_dir: StrPath) -> list[int]:
    """Steps of the whole checkpoints of a run, oldest first."""
    if is_remote(model_dir):
        return sorted(step for step, names in _in_bucket(model_dir).items() if DIGESTS in names)
    return sorted(map(step_of, _folders(model_dir, "")))


def latest_step(model_dir: StrPath) -> int | None:
    """Step of the newest whole checkpoint, None when there is none."""
    return max(saved_steps(model_dir), default=None)


def existing(model_dir: StrPath, step: Step | None) -> AnyPath:
    """Directory of a whole checkpoint.

    Args:
      model_dir: run directory.
      step: which checkpoint: a number, or "best"; None is the newest.

    Raises:
      UserError: there is none.
    """
    have = saved_steps(model_dir)
    if not have:
        raise UserError(f"no checkpoint under {as_path(model_dir) / 'checkpoints'}; train first, or check the path")
    if step == BEST:
        step = _best(model_dir, have)
    if step is not None and step not in have:
        raise UserError(f"no checkpoint of step {step} under {model_dir}; choose from {', '.join(map(str, have))}")
    return checkpoint_dir(model_dir, have[-1] if step is None else int(step))


def _best(model_dir: StrPath, have: list[int]) -> int:
    step, path = marks.best_step(model_dir), as_path(model_dir) / marks.BEST
    if step in have:
        return step
    found = f"there is no {path}" if step is None else f"{path} names step {step}, whose checkpoint is gone"
    raise UserError(
        f"{found}; let `imagen_jax follow` with EvalConfig.best write it, or choose from {', '.join(map(str, have))}"
    )


def old_steps(model_dir: StrPath, keep: int, keep_every: int | None = None) -> list[int]:
    """Steps of the checkpoints that `remove_old` would remove, oldest first; see there.

    Raises:
      UserError: best.json is damaged.
    """
    best = marks.best_step(model_dir)
    old = saved_steps(model_dir)[:-keep]
    return [step for step in old if step != best and (keep_every is None or step % keep_every)]


def remove_old(model_dir: StrPath, keep: int, keep_every: int | None = None) -> None:
    """Removes all checkpoints but the newest, the one that best.json names and every K-th.

    Where best.json is damaged none is removed, and that is said.

    Args:
      model_dir: run directory.
      keep: newest checkpoints that stay, >= 1.
      keep_every: those of steps that this divides stay; None: no others.
    """
    try:
        for old in old_steps(model_dir, keep, keep_every):
            # Asked for each: a follower may have found a better one meanwhile.
            if old != marks.best_step(model_dir):
                remove(checkpoint_dir(model_dir, old))
    except UserError as error:
        print(f"no old checkpoint is removed: {error}", file=sys.stderr, flush=True)


def is_there(path: AnyPath) -> bool:
    """Tells if a checkpoint that was whole still is: it has neither been removed nor begun to be."""
    return (path / DIGESTS).exists() if is_remote(path) else path.exists()


def remove_unfinished(model_dir: StrPath) -> None:
    """Removes what a killed process left half-written."""
    if is_remote(model_dir):
        for step, names in _in_bucket(model_dir).items():
            if DIGESTS not in names and DIGESTS + DAMAGED not in names:
                remove_tree(checkpoint_dir(model_dir, step))
        return
    for entry in _folders(model_dir, PARTIAL):
        if not entry.is_symlink():
            shutil.rmtree(entry)


def partial_of(final: AnyPath) -> AnyPath:
    """Where the files of a new checkpoint are written, between `begin` and `publish`."""
    return final if is_remote(final) else final.with_name(final.name + PARTIAL)


def begin(final: AnyPath) -> None:
    """Makes room for the files of a new checkpoint; a quarantined one of that step in a bucket is moved beside.

    Raises:
      OSError: a folder cannot be made.
    """
    if is_remote(final):
        if (final / (DIGESTS + DAMAGED)).exists():
            copy_tree(final, _damaged_place(final))
        remove_tree(final)
    else:
        partial_of(final).mkdir(parents=True)


def publish(final: AnyPath) -> None:
    """Gives a checkpoint its name, once its last file, digests.json, is written."""
    if not is_remote(final):
        os.rename(partial_of(final), final)
        sync_directory(final.parent)


def remove(path: AnyPath) -> None:
    """Removes a whole checkpoint; killed meanwhile, it leaves none that passes for whole."""
    if is_remote(path):
        remove_files(path, [DIGESTS])
        remove_tree(path)
        return
    gone = path.with_name(path.name + PARTIAL)
    os.rename(path, gone)
    shutil.rmtree(gone)


def quarantine(path: AnyPath) -> str:
    """Makes sure that nobody takes a checkpoint for whole; nothing of it is removed, also not by a later save.

    Returns:
      What it, or in a bucket its digests.json, is called now.
    """
    if is_remote(path):
        write_bytes(path / (DIGESTS + DAMAGED), (path / DIGESTS).read_bytes())
        remove_files(path, [DIGESTS])
        return f"{path.name}/{DIGESTS}{DAMAGED}"
    place = _damaged_place(path)
    os.rename(path, place)
    sync_directory(path.parent)
    return place.name


def quarantined(model_dir: StrPath) -> list[AnyPath]:
    """Checkpoints that `quarantine` set aside and nobody took away since, by name."""
    root = as_path(model_dir) / "checkpoints"
    kept = re.compile(rf"{_NAME.pattern}{re.escape(DAMAGED)}[0-9]*")
    if is_remote(model_dir):
        names = list(files_under(root))
        found = {name.partition("/")[0] for name in names if kept.fullmatch(name.partition("/")[0])}
        found |= {name.partition("/")[0] for name in names if name.endswith(f"/{DIGESTS}{DAMAGED}")}
        return [root / name for name in sorted(found)]
    return sorted(entry for entry in (root.iterdir() if root.is_dir() else ()) if kept.fullmatch(entry.name))


def _damaged_place(path: AnyPath) -> AnyPath:
    """A name that nothing has, for a checkpoint that is set aside."""
    places = (path.with_name(f"{path.name}{DAMAGED}{number or ''}") for number in itertools.count())
    if is_remote(path):
        return next(place for place in places if not files_under(place))
    return next(place for place in places if not os.path.lexists(place))


def _in_bucket(model_dir: StrPath) -> dict[int, set[str]]:
    """Files of what lies under checkpoint_N, by N."""
    found: dict[int, set[str]] = {}
    for name in files_under(as_path(model_dir) / "checkpoints"):
        folder, _, file = name.partition("/")
        if match := _NAME.fullmatch(folder):
            found.setdefault(int(match[1]), set()).add(file)
    return found


def _folders(model_dir: StrPath, suffix: str) -> list[Path]:
    """Directories of a disk that `begin` and `publish` named; what else people keep beside them is theirs."""
    root, name = Path(model_dir) / "checkpoints", re.compile(_NAME.pattern + re.escape(suffix))
    entries = list(root.iterdir()) if root.is_dir() else []
    return [entry for entry in entries if name.fullmatch(entry.name) and entry.is_dir()]
