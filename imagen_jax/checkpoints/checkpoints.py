"""Checkpoints that are whole or not there, and that prove their bytes when read.

    MODEL_DIR/checkpoints/checkpoint_N/
      arrays/            orbax: one item each for params, ema_params, opt_state
      position.json      step and data position
      config.gin         operative config of the run that wrote it; for people, never executed
      stage.json         what the stage is, as plain data (see `trained_stage`)
      vocabulary/        its vocabulary
      digests.json       sha256 of every file above

Everything is written to `checkpoint_N.partial` and renamed when the last byte is on disk, so a directory
named checkpoint_N is whole. orbax returns flipped bytes as values without a word, hence the digests.
MODEL_DIR must be a (mounted) file system that every process sees.
"""

import contextlib
import hashlib
import itertools
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from imagen_jax.checkpoints.trees import TrainState, named_leaves
from imagen_jax.errors import UserError, listed
from imagen_jax.files import check_content, read_json, sha256_of_files, sync_directory, write_bytes, write_json
from imagen_jax.typing import PyTree

ITEMS = ("params", "ema_params", "opt_state")
PARTIAL, DAMAGED = ".partial", ".damaged"
Result = TypeVar("Result")
# Copies of an array are written by one device alone unless the array has this many bytes: cutting a small one into
# a piece per copy, as orbax does by default, takes longer than writing it.
MIN_SHARED_BYTES = 4 << 20


class DamagedCheckpointError(UserError):
    """A checkpoint whose files are not those that were written."""


def checkpoint_dir(model_dir: str | os.PathLike[str], step: int) -> Path:
    """Directory of the checkpoint after `step` updates."""
    return Path(model_dir) / "checkpoints" / f"checkpoint_{step}"


def saved_steps(model_dir: str | os.PathLike[str]) -> list[int]:
    """Steps of the whole checkpoints of a run, oldest first."""
    return sorted(map(step_of, _folders(model_dir, "")))


def _folders(model_dir: str | os.PathLike[str], suffix: str) -> list[Path]:
    """Directories that `save` named; what else people keep beside them is theirs."""
    root, name = Path(model_dir) / "checkpoints", re.compile(f"checkpoint_(0|[1-9][0-9]*){re.escape(suffix)}")
    entries = list(root.iterdir()) if root.is_dir() else []
    return [entry for entry in entries if name.fullmatch(entry.name) and entry.is_dir()]


def latest_step(model_dir: str | os.PathLike[str]) -> int | None:
    """Step of the newest whole checkpoint, None when there is none."""
    return max(saved_steps(model_dir), default=None)


def remove_partial(model_dir: str | os.PathLike[str]) -> None:
    """Removes what a killed process left half-written."""
    if jax.process_index() == 0:
        for entry in _folders(model_dir, PARTIAL):
            if not entry.is_symlink():
                shutil.rmtree(entry)
    _barrier("remove_partial")


def save(
    model_dir: str | os.PathLike[str],
    state: TrainState,
    position: Mapping[str, Any],
    companions: Mapping[str, bytes],
    keep: int,
) -> Path:
    """Writes one checkpoint and then removes all but the newest `keep`.

    Args:
      model_dir: run directory.
      state: what is saved.
      position: data position, JSON-able.
      companions: further files by their names inside the checkpoint, e.g. config.gin.
      keep: whole checkpoints left behind, >= 1.

    Raises:
      UserError: it could not be written; older checkpoints are untouched.
    """
    step = int(state.step)
    final = checkpoint_dir(model_dir, step)
    partial = final.with_name(final.name + PARTIAL)
    if final.exists():
        raise UserError(
            f"{final} exists already and is never overwritten; choose another model_dir, or rename that checkpoint"
        )
    with _library_silent():
        _write(partial, final, state, position, companions)
    _barrier("save_done")
    if jax.process_index() == 0:
        for old in saved_steps(model_dir)[:-keep]:
            # Renamed first: a directory half-deleted by a kill must not pass for a whole one.
            doomed = checkpoint_dir(model_dir, old)
            gone = doomed.with_name(doomed.name + PARTIAL)
            os.rename(doomed, gone)
            shutil.rmtree(gone)
    return final


def _write(
    partial: Path, final: Path, state: TrainState, position: Mapping[str, Any], companions: Mapping[str, bytes]
) -> None:
    try:
        if jax.process_index() == 0:
            partial.mkdir(parents=True)
        _barrier("save_start")
        with _saver() as checkpointer:
            items = {name: ocp.args.PyTreeSave(getattr(state, name)) for name in ITEMS}
            checkpointer.save(partial.absolute() / "arrays", args=ocp.args.Composite(**items))
        if jax.process_index() == 0:
            noted = {"step": int(state.step), "position": dict(position)}
            write_json(partial / "position.json", noted, indent=None, sync=True)
            for name, content in companions.items():
                write_companion(partial, name, content)
            write_digests(partial)
            os.rename(partial, final)
            sync_directory(final.parent)
    except (OSError, ValueError, RuntimeError) as error:
        _remove_while_written(partial)
        have = saved_steps(final.parent.parent)
        raise UserError(
            f"could not write checkpoint {final}: {_first_line(error)}. Older checkpoints are intact "
            f"({', '.join(map(str, have)) or 'none yet'}). Free space or fix the permissions, then run the "
            f"same command again"
        ) from error


@contextlib.contextmanager
def _library_silent() -> Iterator[None]:
    """A block in which orbax's and tensorstore's threads do not print their failures: `save` tells the first.

    On a full disk each thread prints a traceback of its own, hundreds of lines before the one that helps. They stay
    silent after a failure, which ends a run: writes that were under way end long after it.
    """
    logs, hook = [logging.getLogger(name) for name in ("absl", "asyncio")], sys.unraisablehook
    before = [log.disabled for log in logs]

    def told(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    sys.unraisablehook = told
    for log in logs:
        log.disabled = True
    yield
    sys.unraisablehook = hook
    for log, was in zip(logs, before, strict=True):
        log.disabled = was


def restore(
    model_dir: str | os.PathLike[str], abstract: TrainState, step: int | None = None
) -> tuple[TrainState, dict[str, Any]]:
    """State and data position of a checkpoint, laid out as `abstract` says (any mesh).

    Args:
      model_dir: run directory.
      abstract: shapes, dtypes and shardings wanted.
      step: which checkpoint; None is the newest.

    Raises:
      UserError: there is none, a file changed since it was written, or it is of another model.
    """
    return _read(model_dir, step, lambda path: _restored(path, abstract))


def _restored(path: Path, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
    verify(path)
    wanted = {name: getattr(abstract, name) for name in ITEMS}
    check_same(wanted, {name: _metadata(path, name) for name in ITEMS}, path)
    items = {name: _restore_item(path, name, tree) for name, tree in wanted.items()}
    saved = _companion(path, "position.json", {"step": int, "position": dict})
    number = jax.device_put(jnp.int32(saved["step"]), abstract.step.sharding)
    return TrainState(step=number, **items), saved["position"]


def restore_params(
    model_dir: str | os.PathLike[str], abstract: PyTree, step: int | None = None, ema: bool = True
) -> PyTree:
    """Parameters alone, checked against `abstract` and laid out as it says.

    Args:
      model_dir: run directory.
      abstract: shapes, dtypes and shardings wanted.
      step: which checkpoint; None is the newest.
      ema: the moving average (True) or the raw parameters.

    Raises:
      UserError: as `restore`.
    """
    item = "ema_params" if ema else "params"

    def read(path: Path) -> PyTree:
        verify(path)
        check_same({"params": abstract}, {"params": _metadata(path, item)}, path)
        return _restore_item(path, item, abstract)

    return _read(model_dir, step, read)


def load_params(model_dir: str | os.PathLike[str], step: int | None = None, ema: bool = True) -> PyTree:
    """Parameters of a run on the host, for sampling; the optimizer state is not read.

    Args:
      model_dir: run directory.
      step: which checkpoint; None is the newest.
      ema: the moving average (True) or the raw parameters.

    Raises:
      UserError: there is no checkpoint, or a file changed since it was written.
    """
    item = "ema_params" if ema else "params"
    sharding = jax.sharding.SingleDeviceSharding(_host_device())

    def read(path: Path) -> PyTree:
        verify(path)
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), _metadata(path, item)
        )
        return _restore_item(path, item, abstract)

    return _read(model_dir, step, read)


def _read(model_dir: str | os.PathLike[str], step: int | None, read: Callable[[Path], Result]) -> Result:
    return read_newest(model_dir, read) if step is None else read(existing(model_dir, step))


def read_newest(model_dir: str | os.PathLike[str], read: Callable[[Path], Result]) -> Result:
    """Result of `read` on the newest checkpoint; where a trainer removes that meanwhile, on the one after it.

    Args:
      model_dir: run directory.
      read: takes the checkpoint's directory; called again where that was gone before it ended.

    Raises:
      UserError: there is none.
    """
    path = None
    while True:
        before, path = path, existing(model_dir, None)
        try:
            found = read(path)
        except Exception:
            if path == before or path.exists():
                raise
        else:
            # A removal begins with a rename: what is still there was whole all the while.
            if path == before or path.exists():
                return found


def fingerprint(model_dir: str | os.PathLike[str], step: int | None = None) -> str:
    """Step and content of a checkpoint in one word, which no other checkpoint has."""
    path = existing(model_dir, step)
    return f"{path.name}-{hashlib.sha256((path / 'digests.json').read_bytes()).hexdigest()[:12]}"


def verify(path: Path) -> None:
    """Compares every file of a checkpoint with the digest taken when it was written.

    Raises:
      UserError: names the files that changed, are missing or are new.
    """
    expected = read_digests(path)
    found = _digests(path)
    wrong = [f"{name} (changed)" for name in expected if name in found and found[name] != expected[name]]
    wrong += [f"{name} (missing)" for name in expected if name not in found]
    wrong += [f"{name} (not written by the run)" for name in found if name not in expected]
    if wrong:
        raise DamagedCheckpointError(f"checkpoint {path} is damaged: {listed(wrong)}; {_fix(path)}")


def read_digests(path: Path) -> dict[str, str]:
    """The digest of every file of a checkpoint, by its name there, when it was written.

    Raises:
      DamagedCheckpointError: they cannot be read.
    """
    return _companion(path, "digests.json", {...: str})


def _companion(path: Path, name: str, form: Any) -> Any:
    """Content of a JSON file of a checkpoint, of the form that `check_content` takes."""
    try:
        content = read_json(path / name)
        check_content(path / name, content, form, _fix(path))
    except UserError as error:
        raise DamagedCheckpointError(str(error)) from error
    except (FileNotFoundError, IsADirectoryError, ValueError) as error:
        raise DamagedCheckpointError(f"{path} has no readable {name} ({error}); {_fix(path)}") from error
    return content


def check_same(wanted: PyTree, found: PyTree, path: Path) -> None:
    """Raises one UserError, in one line, that names leaves in which a checkpoint differs from what is wanted."""
    ours, theirs = named_leaves(wanted), named_leaves(found)
    lines = []
    for name in sorted(ours.keys() | theirs.keys()):
        got = _describe(theirs[name]) if name in theirs else "nothing"
        expected = _describe(ours[name]) if name in ours else "nothing"
        if got != expected:
            kind = "missing" if name not in theirs else "unexpected" if name not in ours else "different"
            lines.append((name, f"{kind}: {name}: got {got}, expected {expected}"))
    # A network's own leaves tell more than those that its optimizer keeps of them.
    lines.sort(key=lambda line: not line[0].startswith("params"))
    if lines:
        what = "model" if lines[0][0].split(".")[0] != "opt_state" else "optimizer"
        raise UserError(
            f"checkpoint {path} is of another {what}, {len(lines)} leaves differ: "
            f"{listed([text for _, text in lines])}; use the config that wrote it (config.gin beside it), or start "
            "another model_dir with init_from"
        )


def _describe(leaf: Any) -> str:
    return f"{jnp.dtype(leaf.dtype).name}[{','.join(map(str, leaf.shape))}]"


def _fix(path: Path) -> str:
    return f"restore it from a copy, or rename it to {path.name}{DAMAGED} to use the checkpoint before it"


def quarantine(path: Path) -> Path:
    """Renames a checkpoint, so that nobody takes it for whole; nothing is removed.

    Returns:
      Its new place.
    """
    places = (path.with_name(f"{path.name}{DAMAGED}{number or ''}") for number in itertools.count())
    place = next(place for place in places if not os.path.lexists(place))
    os.rename(path, place)
    sync_directory(path.parent)
    return place


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _remove_while_written(path: Path) -> None:
    """Removes a directory to which writes may still be on their way: orbax tells the first failure at once."""
    for _ in range(50):
        shutil.rmtree(path, ignore_errors=True)
        time.sleep(0.1)
        if not path.exists():
            return


def step_of(path: Path) -> int:
    """Step of a checkpoint's directory."""
    return int(path.name.removeprefix("checkpoint_"))


def existing(model_dir: str | os.PathLike[str], step: int | None) -> Path:
    """Directory of a whole checkpoint.

    Args:
      model_dir: run directory.
      step: which checkpoint; None is the newest.

    Raises:
      UserError: there is none.
    """
    have = saved_steps(model_dir)
    if not have:
        raise UserError(f"no checkpoint under {Path(model_dir) / 'checkpoints'}; train first, or check the path")
    if step is not None and step not in have:
        raise UserError(f"no checkpoint of step {step} under {model_dir}; choose from {', '.join(map(str, have))}")
    return checkpoint_dir(model_dir, have[-1] if step is None else step)


def _checkpointer(item: str) -> ocp.Checkpointer:
    # One item: the metadata of all that are registered are read, each array's.
    registry = ocp.DefaultCheckpointHandlerRegistry()
    handler = ocp.StandardCheckpointHandler()
    registry.add(item, ocp.args.StandardSave, handler)
    registry.add(item, ocp.args.StandardRestore, handler)
    return ocp.Checkpointer(ocp.CompositeCheckpointHandler(handler_registry=registry))


def _saver() -> ocp.Checkpointer:
    """Writes what `_checkpointer` reads."""
    arrays = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=MIN_SHARED_BYTES)
    types = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
    registry = ocp.DefaultCheckpointHandlerRegistry()
    for item in ITEMS:
        registry.add(item, ocp.args.PyTreeSave, ocp.PyTreeCheckpointHandler(type_handler_registry=types))
    return ocp.Checkpointer(ocp.CompositeCheckpointHandler(handler_registry=registry))


def _host_device() -> jax.Device:
    """A CPU device where there is one, which is nearly always: an accelerator may not have room for every stage."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return jax.local_devices()[0]


@contextlib.contextmanager
def _unreadable(path: Path) -> Iterator[None]:
    """Tells in one line of arrays that are what was written and that orbax cannot read."""
    try:
        yield
    except (OSError, MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:  # Its parts raise what they happen to raise, Exception itself too.
        raise UserError(
            f"the arrays of checkpoint {path} cannot be read ({type(error).__name__}: {_first_line(error)[:200]}), "
            "though its files are those that digests.json names; read it with the versions that wrote it "
            f"(versions.json of the run), or {_fix(path)}"
        ) from error


def _metadata(path: Path, item: str) -> PyTree:
    with _unreadable(path), _checkpointer(item) as checkpointer:
        return checkpointer.metadata(path.absolute() / "arrays").item_metadata[item].tree


def _restore_item(path: Path, item: str, abstract: PyTree) -> PyTree:
    with _unreadable(path), _checkpointer(item) as checkpointer:
        args = ocp.args.Composite(**{item: ocp.args.StandardRestore(abstract)})
        return checkpointer.restore(path.absolute() / "arrays", args=args)[item]


def _digests(path: Path) -> dict[str, str]:
    files = sorted(file for file in path.rglob("*") if file.is_file() and file != path / "digests.json")
    names = [file.relative_to(path).as_posix() for file in files]
    return dict(zip(names, sha256_of_files(files), strict=True))


def write_companion(checkpoint: Path, name: str, content: bytes) -> None:
    """Writes a file beside the arrays of a checkpoint that is not whole yet."""
    (checkpoint / name).parent.mkdir(exist_ok=True)
    write_bytes(checkpoint / name, content, sync=True)


def write_digests(checkpoint: Path) -> None:
    """Writes the digests of all files of a checkpoint, its last file."""
    write_json(checkpoint / "digests.json", _digests(checkpoint), sync=True)


def _barrier(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
