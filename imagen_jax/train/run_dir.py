"""Files of a run directory that are written before its first update."""

import contextlib
import math
import os
import secrets
import time
from collections.abc import Callable, Iterator

import jax
from jax.sharding import Mesh

from imagen_jax.checkpoints.processes import barrier, from_first, those_without
from imagen_jax.checkpoints.proof import ONE_FOLDER
from imagen_jax.checkpoints.trees import TrainState, named_leaves
from imagen_jax.errors import UserError
from imagen_jax.files import StrPath, alone_in, as_path, make_dirs, write_bytes, write_json, write_text
from imagen_jax.versions import versions

LOCK = "train.lock"
# A shared file system may show a new file late.
_SEEN_WITHIN_S = 10


@contextlib.contextmanager
def only_trainer(model_dir: StrPath) -> Iterator[Callable[[], None]]:
    """A block in which this run, by its first process, is the only one that trains into a directory.

    Yields:
      What makes sure that it still is: in a bucket, a run that is cut off for a minute may be taken for dead. It raises
      `files.LockLostError` otherwise.

    Raises:
      UserError: another process trains there (named by host and process), or the directory cannot be written.
    """
    if jax.process_index() != 0:
        yield lambda: None
        return
    with alone_in(model_dir, LOCK, f"model_dir {os.fspath(model_dir)!r}", "trained") as check:
        yield check


def check_one_folder(model_dir: StrPath) -> None:
    """Checks that all processes mean one folder, by a file with a random name that the first writes for a moment.

    Raises:
      UserError: in every process; names those that do not see the file.
    """
    if jax.process_count() == 1:
        return
    note = as_path(model_dir) / f".seen-{from_first(secrets.token_hex(16).encode()).decode()}"
    if jax.process_index() == 0:
        write_bytes(note, b"")
    barrier("note written")
    end = time.monotonic() + _SEEN_WITHIN_S
    while not (seen := note.exists()) and time.monotonic() < end:
        time.sleep(0.1)
    blind = those_without(seen)
    if jax.process_index() == 0:
        note.unlink()
    if blind:
        raise UserError(
            f"{os.fspath(model_dir)!r}: {ONE_FOLDER}; process {', '.join(map(str, blind))} does not see what process 0 "
            "writes there: mount one file system on all hosts, and give all the same MODEL_DIR"
        )


def num_parameters(state: TrainState) -> int:
    """Number of trained scalars."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params))


def model_info(state: TrainState, mesh: Mesh) -> str:
    """Table of the parameters: name, shape, dtype, how it is sharded, count; then the total.

    Args:
      state: abstract state with shardings.
      mesh: the mesh they lie on.
    """
    rows = [("parameter", "shape", "dtype", "sharding", "count")]
    for name, leaf in named_leaves(state.params).items():
        spec = ",".join(str(axis or "-") for axis in leaf.sharding.spec) or "replicated"
        shape = "x".join(map(str, leaf.shape)) or "scalar"
        rows.append((name, shape, leaf.dtype.name, spec, f"{math.prod(leaf.shape):,}"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    lines += ["", f"total parameters: {num_parameters(state):,}", f"mesh: {mesh_text(mesh)}"]
    return "\n".join(lines) + "\n"


def mesh_text(mesh: Mesh) -> str:
    """The mesh in words, e.g. "data 8 x fsdp 1 x tensor 1 (8 TPU v4)"."""
    sizes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    return f"{sizes} ({mesh.size} {mesh.devices.flat[0].device_kind})"


def describe_run(model_dir: StrPath, state: TrainState, mesh: Mesh, operative_text: str) -> None:
    """Writes config.gin, model-info.txt and versions.json into the run directory (first process only)."""
    if jax.process_index() != 0:
        return
    make_dirs(model_dir)
    root = as_path(model_dir)
    write_text(root / "config.gin", operative_text)
    write_text(root / "model-info.txt", model_info(state, mesh))
    write_json(root / "versions.json", versions(), end="\n")
