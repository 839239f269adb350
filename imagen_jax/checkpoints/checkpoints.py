"""Checkpoints that are whole or not there, and that prove their bytes when read.

    MODEL_DIR/checkpoints/checkpoint_N/
      arrays/            orbax: one item each for params, ema_params, opt_state
      position.json      step and data position
      config.gin         operative config of the run that wrote it; for people, never executed
      stage.json         what the stage is, as plain data (see `trained_stage`)
      vocabulary/        its vocabulary
      digests.json       sha256 of every file above

A checkpoint is whole or not there (`folders` says how). orbax returns flipped bytes as values without a word, hence the
digests. MODEL_DIR must be one folder that every process sees: in a bucket (`transfers` says how), or on a mounted file
system.
"""

import contextlib
import hashlib
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from imagen_jax.checkpoints import folders, transfers
from imagen_jax.checkpoints.folders import Step, checkpoint_dir, existing, saved_steps
from imagen_jax.checkpoints.processes import barrier, first_checks
from imagen_jax.checkpoints.proof import (
    DamagedCheckpointError,
    check_chunks,
    fix,
    read_part,
    write_digests,
)
from imagen_jax.checkpoints.trees import TrainState, named_leaves
from imagen_jax.errors import UserError, listed
from imagen_jax.files import AnyPath, StrPath, absolute, as_path, make_dirs, remove_tree, write_bytes, write_json
from imagen_jax.typing import PyTree

ITEMS = ("params", "ema_params", "opt_state")
Result = TypeVar("Result")
# Copies of an array are written by one device alone unless the array has this many bytes: cutting a small one into
# a piece per copy, as orbax does by default, takes longer than writing it.
MIN_SHARED_BYTES = 4 << 20


class NotWrittenError(UserError):
    """A checkpoint could not be written; the older ones are intact.

    Args:
      problem: what happened, without advice.
      advice: what to do.
    """

    def __init__(self, problem: str, advice: str):
        super().__init__(f"{problem}. {advice}")
        self.problem = problem


def remove_partial(model_dir: StrPath) -> None:
    """Removes what a killed process left half-written."""
    if jax.process_index() == 0:
        folders.remove_unfinished(model_dir)
    barrier("remove_partial")


def save(
    model_dir: StrPath,
    state: TrainState,
    position: Mapping[str, Any],
    companions: Mapping[str, bytes],
    keep: int,
    keep_every: int | None = None,
) -> AnyPath:
    """Writes one checkpoint and then removes the old ones (`folders.remove_old`).

    Args:
      model_dir: run directory.
      state: what is saved.
      position: data position, JSON-able.
      companions: further files by their names inside the checkpoint, e.g. config.gin.
      keep: newest checkpoints left behind, >= 1.
      keep_every: those of steps that this divides are left behind too; None: no others.

    Raises:
      NotWrittenError: it could not be written; older checkpoints are untouched.
      UserError: there is one of that step.
    """
    step = int(state.step)
    final = checkpoint_dir(model_dir, step)
    if folders.is_there(final):
        raise UserError(
            f"{final} exists already and is never overwritten; choose another model_dir, or rename that checkpoint"
        )
    with _library_silent():
        _write(final, state, position, companions)
    barrier("save_done")
    if jax.process_index() == 0:
        folders.remove_old(model_dir, keep, keep_every)
    return final


def _write(final: AnyPath, state: TrainState, position: Mapping[str, Any], companions: Mapping[str, bytes]) -> None:
    partial = folders.partial_of(final)
    try:
        if jax.process_index() == 0:
            folders.begin(final)
        barrier("save_start")
        with transfers.written_here(partial) as here:
            with _saver() as checkpointer:
                items = {name: ocp.args.PyTreeSave(getattr(state, name)) for name in ITEMS}
                checkpointer.save(_arrays(here), args=ocp.args.Composite(**items))
            if jax.process_index() == 0:
                noted = {"step": int(state.step), "position": dict(position)}
                write_json(here / "position.json", noted, indent=None, sync=True)
                for name, content in companions.items():
                    write_companion(here, name, content)
            known = transfers.send(here, partial, ITEMS)
            # One process finds all of them on its own machine.
            first_checks(lambda: _check_chunks(here if jax.process_count() == 1 else partial, state))
        if jax.process_index() == 0:
            write_digests(partial, known)
            folders.publish(final)
    except (OSError, ValueError, RuntimeError) as error:
        _remove_while_written(partial)
        have = saved_steps(final.parent.parent)
        hint = "Mend that" if isinstance(error, UserError) else "Free space or fix the permissions"
        raise NotWrittenError(
            f"could not write checkpoint {final}: {_first_line(error)}. Older checkpoints are intact "
            f"({', '.join(map(str, have)) or 'none yet'})",
            f"{hint}, then run the same command again",
        ) from error


def _check_chunks(partial: AnyPath, state: TrainState) -> None:
    for name in ITEMS:
        num_arrays = len(jax.tree.leaves(getattr(state, name)))
        if num_arrays:
            check_chunks(partial / "arrays" / name, num_arrays)


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


def restore(model_dir: StrPath, abstract: TrainState, step: Step | None = None) -> tuple[TrainState, dict[str, Any]]:
    """State and data position of a checkpoint, laid out as `abstract` says (any mesh).

    Args:
      model_dir: run directory.
      abstract: shapes, dtypes and shardings wanted.
      step: which checkpoint: a number, or "best"; None is the newest.

    Raises:
      UserError: there is none, a file changed since it was written, or it is of another model.
    """
    return _read(model_dir, step, lambda path: _restored(path, abstract))


def _restored(path: AnyPath, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
    wanted = {name: getattr(abstract, name) for name in ITEMS}
    with transfers.proved(path, ITEMS, alone=False) as here:
        transfers.check_has(path, ITEMS)
        check_same(wanted, {name: _metadata(path, here, name) for name in ITEMS}, path)
        items = {name: _restore_item(path, here, name, tree) for name, tree in wanted.items()}
    saved = read_part(path, "position.json", {"step": int, "position": dict})
    if saved["step"] > jnp.iinfo(jnp.int32).max:  # A state's step is an int32.
        raise DamagedCheckpointError(
            f"{path / 'position.json'} has {saved['step']} for step; expected a count below 2**31; {fix(path)}"
        )
    number = jax.device_put(jnp.int32(saved["step"]), abstract.step.sharding)
    return TrainState(step=number, **items), saved["position"]


def restore_params(model_dir: StrPath, abstract: PyTree, step: Step | None = None, ema: bool = True) -> PyTree:
    """Parameters alone, checked against `abstract` and laid out as it says.

    Args:
      model_dir: run directory.
      abstract: shapes, dtypes and shardings wanted.
      step: which checkpoint: a number, or "best"; None is the newest.
      ema: the moving average (True) or the raw parameters.

    Raises:
      UserError: as `restore`.
    """
    item = "ema_params" if ema else "params"

    def read(path: AnyPath) -> PyTree:
        with transfers.proved(path, [item], alone=False) as here:
            transfers.check_has(path, [item])
            check_same({"params": abstract}, {"params": _metadata(path, here, item)}, path)
            return _restore_item(path, here, item, abstract)

    return _read(model_dir, step, read)


def load_params(model_dir: StrPath, step: Step | None = None, ema: bool = True) -> PyTree:
    """Parameters of a run on the host, for sampling; the optimizer state is not read.

    Args:
      model_dir: run directory.
      step: which checkpoint: a number, or "best"; None is the newest.
      ema: the moving average (True) or the raw parameters.

    Raises:
      UserError: there is no checkpoint, or a file changed since it was written.
    """
    return _read(model_dir, step, lambda path: load_item(path, "ema_params" if ema else "params"))


def load_item(path: AnyPath, item: str) -> PyTree:
    """One of ITEMS of a checkpoint, on the host.

    Raises:
      UserError: a file changed since it was written, or the checkpoint is a copy without that item.
    """
    sharding = jax.sharding.SingleDeviceSharding(_host_device())
    with transfers.proved(path, [item], alone=True) as here:
        transfers.check_has(path, [item])
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), _metadata(path, here, item)
        )
        return _restore_item(path, here, item, abstract)


def _read(model_dir: StrPath, step: Step | None, read: Callable[[AnyPath], Result]) -> Result:
    return read_newest(model_dir, read) if step is None else read(existing(model_dir, step))


def read_newest(model_dir: StrPath, read: Callable[[AnyPath], Result]) -> Result:
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
            if path == before or folders.is_there(path):
                raise
        else:
            # What is still there was whole all the while: a removal begins with that.
            if path == before or folders.is_there(path):
                return found


def fingerprint(model_dir: StrPath, step: Step | None = None) -> str:
    """Step and content of a checkpoint in one word, which no other checkpoint has."""
    path = existing(model_dir, step)
    return f"{path.name}-{hashlib.sha256((path / folders.DIGESTS).read_bytes()).hexdigest()[:12]}"


def check_same(wanted: PyTree, found: PyTree, path: AnyPath) -> None:
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


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _remove_while_written(path: AnyPath) -> None:
    """Removes a directory to which writes may still be on their way: orbax tells the first failure at once."""
    for _ in range(50):
        with contextlib.suppress(OSError):
            remove_tree(path)
        time.sleep(0.1)
        if not path.exists():
            return


def _arrays(path: AnyPath) -> AnyPath:
    """Where orbax writes; it asks for a path from the root on."""
    return as_path(absolute(path)) / transfers.ARRAYS


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
def _unreadable(path: AnyPath) -> Iterator[None]:
    """Tells in one line of arrays that are what was written and that orbax cannot read."""
    try:
        yield
    except (OSError, MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:  # Its parts raise what they happen to raise, Exception itself too.
        raise UserError(
            f"the arrays of checkpoint {path} cannot be read ({type(error).__name__}: {_first_line(error)[:200]}), "
            "though its files are those that digests.json names; read it with the versions that wrote it "
            f"(versions.json of the run), or {fix(path)}"
        ) from error


def _metadata(path: AnyPath, here: AnyPath, item: str) -> PyTree:
    with _unreadable(path), _checkpointer(item) as checkpointer:
        return checkpointer.metadata(_arrays(here)).item_metadata[item].tree


def _restore_item(path: AnyPath, here: AnyPath, item: str, abstract: PyTree) -> PyTree:
    with _unreadable(path), _checkpointer(item) as checkpointer:
        args = ocp.args.Composite(**{item: ocp.args.StandardRestore(abstract)})
        return checkpointer.restore(_arrays(here), args=args)[item]


def write_companion(checkpoint: AnyPath, name: str, content: bytes) -> None:
    """Writes a file beside the arrays of a checkpoint that is not whole yet."""
    make_dirs((checkpoint / name).parent)
    write_bytes(checkpoint / name, content, sync=True)
