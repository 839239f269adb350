"""Compiled steps kept in a run's directory, so that a process that goes on with it need not compile.

MODEL_DIR/compiled holds what jax's persistent compilation cache writes, and digests.json beside it: a file that a kill
cut short, or that changed since, is removed before jax sees it. Jax finds a program by its text, options, versions and
devices. A program is run as it is: who may write there may run code in the training process.
"""

import contextlib
import hashlib
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from imagen_jax.checkpoints.processes import barrier
from imagen_jax.files import (
    FILE_NAME,
    StrPath,
    as_path,
    check_content,
    fetch_files,
    files_under,
    is_remote,
    read_json,
    sha256_of_file,
    write_bytes,
    write_json,
)

FOLDER, DIGESTS = "compiled", "digests.json"


@contextlib.contextmanager
def kept_programs(model_dir: StrPath) -> Iterator[None]:
    """A block in which jax finds what it compiled for this run before, and keeps what it compiles now.

    Where jax has a cache already (JAX_COMPILATION_CACHE_DIR) that one is used; where caches are off
    (JAX_ENABLE_COMPILATION_CACHE=false), or the folder belongs to another user, none is.

    Args:
      model_dir: run directory.
    """
    if _setting("jax_compilation_cache_dir") or not _setting("jax_enable_compilation_cache"):
        yield
        return
    place = as_path(model_dir) / FOLDER / _machine()
    if not is_remote(place) and place.exists() and place.stat().st_uid != os.geteuid():
        print(f"{place} belongs to another user: its programs are not run; this compiles", file=sys.stderr, flush=True)
        yield
        return
    with contextlib.ExitStack() as stack:
        local = Path(stack.enter_context(tempfile.TemporaryDirectory())) if is_remote(place) else Path(place)
        known = _sound(place, local)
        barrier("compiled programs looked at")
        with _cache_at(local):
            yield
        if jax.process_index() == 0:
            _keep(place, local, known)


@contextlib.contextmanager
def _cache_at(folder: Path) -> Iterator[None]:
    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        # Those of XLA's own would make the folder's name part of what a program is found by.
        "jax_persistent_cache_enable_xla_caches": "none",
    }
    before = {name: _setting(name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def _setting(name: str) -> Any:
    return getattr(jax.config, name)


def _machine() -> str:
    """Names what programs are compiled for, where jax does not ask for it: the instructions of a CPU."""
    if jax.default_backend() != "cpu":
        return jax.default_backend()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if os.path.exists("/proc/cpuinfo") else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"cpu_{hashlib.sha256((platform.machine() + flags).encode()).hexdigest()[:12]}"


def _sound(place: StrPath, local: Path) -> dict[str, str]:
    """Digests of the files that are as they were written; on this machine all others are removed."""
    if not is_remote(place) and jax.process_index() != 0:
        return {}  # The first process looks for all.
    noted = _noted(place)
    if is_remote(place):
        there = [name for name in files_under(place) if name in noted]
        digests = fetch_files(place, there, local)
    else:
        digests = {name: sha256_of_file(local / name) for name in files_under(place) if name != DIGESTS}
    sound = {name: digest for name, digest in digests.items() if noted.get(name) == digest}
    for name in digests.keys() - sound.keys():
        (local / name).unlink()
    return sound


def _noted(place: StrPath) -> dict[str, str]:
    path = as_path(place) / DIGESTS
    try:
        found = read_json(path)
        check_content(path, {"files": list(found), "digests": list(found.values())},
                      {"files": [FILE_NAME], "digests": [str]}, "remove it")  # fmt: skip
    except (FileNotFoundError, ValueError, AttributeError):
        return {}  # Damaged, it vouches for nothing.
    return dict(found)


def _keep(place: StrPath, local: Path, known: dict[str, str]) -> None:
    try:
        new = {name: sha256_of_file(local / name) for name in files_under(local) if name not in (DIGESTS, *known)}
        if not new:
            return
        if is_remote(place):
            for name in new:
                write_bytes(as_path(place) / name, (local / name).read_bytes())
        write_json(as_path(place) / DIGESTS, known | new, end="\n")
    except OSError as error:
        print(f"the compiled step is not kept: {error}", file=sys.stderr, flush=True)
