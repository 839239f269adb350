"""Checkpoints of buckets by way of this machine: written here and sent, fetched and then read.

orbax asks a bucket some 300 times a save where a request a file does. Each process sends what it wrote; the first puts
the parts of the arrays together under one index each, which it writes in the bucket. What is read comes here first,
but for several processes that read one checkpoint together from gs://: each asks for its own shards there.
"""

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import tensorstore

from imagen_jax.checkpoints.folders import DIGESTS
from imagen_jax.checkpoints.processes import all_check, first_checks, gathered
from imagen_jax.checkpoints.proof import ONE_FOLDER, check_digests, listed_files, read_digests, readable, verify
from imagen_jax.errors import UserError, listed
from imagen_jax.files import AnyPath, fetch_files, files_under, is_remote, kvstore_spec, remove_tree, send_files

ARRAYS = "arrays"
_PART = re.compile(r"ocdbt\.process_[0-9]+")
# As orbax writes its own: one manifest, small values in the index, which is one node; sizes in bytes.
_INDEX = {"manifest_kind": "single", "max_inline_value_bytes": 1024, "max_decoded_node_bytes": 100_000_000}


@contextlib.contextmanager
def written_here(partial: AnyPath) -> Iterator[AnyPath]:
    """A folder of this machine to write a checkpoint in: its place, or where that is a bucket a temporary one."""
    if not is_remote(partial):
        yield partial
        return
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def send(local: AnyPath, partial: AnyPath, items: Sequence[str]) -> dict[str, str] | None:
    """Sends what this process wrote to where every process sees it.

    Args:
      local: what `written_here` gave.
      partial: place of the checkpoint; nothing is done where it is a disk's.
      items: of orbax, in the arrays.

    Returns:
      The SHA-256 of every file of the checkpoint by its name, whoever sent it; None on a disk.

    Raises:
      OSError: a file cannot be read or sent; of several processes, every one raises it.
      UserError: one did not arrive, or the parts do not make a whole.
    """
    if not is_remote(partial):
        return None
    several = jax.process_count() > 1
    _tidy(Path(local), items, several)
    mine: dict[str, Any] = {"failure": ""}
    try:
        mine["files"] = send_files(local, partial)
    except Exception as error:
        if not several:
            raise
        mine["failure"] = f"{type(error).__name__}: {error}"  # The others wait to hear of it.
    sent: dict[str, tuple[int, str]] = {}
    for part in map(json.loads, gathered(json.dumps(mine).encode())):
        if part["failure"]:
            raise OSError(part["failure"])
        sent.update(part["files"])

    def complete() -> None:
        if several:
            for item in items:
                sent.update(_merged(partial, item))
        check_arrived(partial, {name: size for name, (size, _) in sent.items()})

    first_checks(complete)
    return {name: digest for name, (_, digest) in sent.items()}


def _tidy(local: Path, items: Sequence[str], several: bool) -> None:
    """Gives what orbax left the names that it has in the checkpoint."""
    # Only the first process gives the folders their names.
    for name, parent in [(ARRAYS, local), *((item, local / ARRAYS) for item in items)]:
        for folder in parent.glob(f"{name}.*"):
            os.rename(folder, parent / name)
    if several:
        for item in items:
            # The index of what the first process sees, which is its own part.
            (local / ARRAYS / item / "manifest.ocdbt").unlink(missing_ok=True)
            remove_tree(local / ARRAYS / item / "d")


def _merged(partial: AnyPath, item: str) -> dict[str, tuple[int, str]]:
    """Writes the index of the arrays of an item, parts of which several processes sent; sizes and digests of it.

    Raises:
      UserError: it cannot be written.
    """
    folder = partial / ARRAYS / item
    before = files_under(folder)
    parts = sorted({name.partition("/")[0] for name in before if _PART.match(name)})
    if not parts:
        return {}
    context, transaction = tensorstore.Context(), tensorstore.Transaction(atomic=True)  # References need one context.
    try:
        whole = _database(folder, context).with_transaction(transaction)
        for part in parts:
            _database(folder / part, context).experimental_copy_range_to(whole).result()
        transaction.commit_async().result()
    except (ValueError, RuntimeError) as error:
        raise UserError(f"the index of {folder} cannot be written ({str(error).partition(chr(10))[0]})") from error
    new = {name: size for name, size in files_under(folder).items() if name not in before}
    with tempfile.TemporaryDirectory() as copy:
        digests = fetch_files(folder, new, copy)
    return {f"{ARRAYS}/{item}/{name}": (new[name], digests[name]) for name in new}


def _database(folder: AnyPath, context: tensorstore.Context) -> tensorstore.KvStore:
    spec = {"driver": "ocdbt", "base": kvstore_spec(folder), "config": _INDEX, "assume_config": True}
    return tensorstore.KvStore.open(spec, context=context).result()


def check_arrived(partial: AnyPath, sizes: dict[str, int]) -> None:
    """Raises UserError unless all files that were sent are there, with their bytes."""
    there = files_under(partial)
    missing = sorted(name for name, size in sizes.items() if there.get(name) != size)
    if missing:
        raise UserError(f"{len(missing)} files were not written: {listed(missing)}; {ONE_FOLDER}")


@contextlib.contextmanager
def proved(path: AnyPath, items: Sequence[str], alone: bool) -> Iterator[AnyPath]:
    """A folder with some items of a checkpoint, whose bytes are those that were written.

    Of a checkpoint in a bucket, what is not asked for is looked for, but not read.

    Args:
      path: the checkpoint.
      items: of orbax.
      alone: this process reads by itself, whatever others do; else the first checks for all, and all are here.

    Raises:
      DamagedCheckpointError, UserError: see `proof.verify`.
    """
    if not is_remote(path) or not (alone or jax.process_count() == 1 or not os.fspath(path).startswith("gs:")):
        if alone:
            verify(path)
        else:
            first_checks(lambda: verify(path))
        yield path
        return
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        if alone:
            _fetch(path, items, folder)
        else:
            all_check(lambda: _fetch(path, items, folder))
        yield Path(folder)


def _fetch(path: AnyPath, items: Sequence[str], folder: str) -> None:
    expected = read_digests(path)
    with readable(path):
        there = [name for name in listed_files(path) if name != DIGESTS]
        wanted = [name for name in there if name.split("/")[:1] != [ARRAYS] or name.split("/")[1] in items]
        # Of what is not fetched, only the names are compared.
        found = {name: expected.get(name, "") for name in there}
        found.update(fetch_files(path, wanted, folder))
    check_digests(path, expected, found)


def has(path: AnyPath, item: str) -> bool:
    """Tells if a checkpoint has an item of orbax: copies may be without the optimizer, or have the averages alone."""
    return any(name.startswith(f"{ARRAYS}/{item}/") for name in read_digests(path))


def check_has(path: AnyPath, items: Sequence[str]) -> None:
    """Raises UserError if a checkpoint lacks one of the items."""
    lacking = [item for item in items if not has(path, item)]
    if lacking:
        raise UserError(
            f"checkpoint {path} has no {' and no '.join(lacking)}: it is a copy of parameters alone; start another run "
            "from it by init_from, or name the checkpoint it was copied from"
        )
