"""The two lock files: one for Python 3.11 and its last jax, one for the Pythons after it."""

import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
OLD, NEW = "constraints.txt", "constraints-3.12.txt"
JAX_FAMILY = {"jax", "jaxlib", "jax-cuda13-pjrt", "jax-cuda13-plugin", "libtpu", "flax"}


def _pins(name: str) -> dict[str, Version]:
    """Versions by package."""
    lines = (line.split("==") for line in (ROOT / name).read_text().split())
    return {canonicalize_name(package): Version(version) for package, version in lines}


def test_the_locks_differ_in_jax_alone():
    old, new = _pins(OLD), _pins(NEW)
    assert old.keys() == new.keys()
    assert {name for name in old if old[name] != new[name]} == JAX_FAMILY


def test_every_dependency_is_locked_within_its_bounds():
    pins = _pins(OLD if sys.version_info < (3, 12) else NEW)
    lines = [Requirement(line) for line in metadata.requires("imagen_jax") or []]
    # Beam has a lock file of its own.
    named = [line for line in lines if line.marker is None or "beam" not in str(line.marker)]
    assert {"jax", "pytest", "torch", "matplotlib"} <= {line.name for line in named}
    for line in named:
        assert line.specifier.contains(pins[canonicalize_name(line.name)]), line


def test_jax_runs_with_the_accelerator_libraries_of_its_lock():
    """What `imagen_jax[tpu]` and `[cuda13]` resolve to: jax itself says which versions it takes."""
    pins = {pins["jax"]: pins for pins in map(_pins, (OLD, NEW))}[Version(metadata.version("jax"))]
    found = set()
    for line in map(Requirement, metadata.requires("jax") or []):
        wanted = [extra for extra in ("tpu", "cuda13") if line.marker and line.marker.evaluate({"extra": extra})]
        if wanted and canonicalize_name(line.name) in pins:
            assert line.specifier.contains(pins[canonicalize_name(line.name)]), line
            found.add(line.name)
    assert {"libtpu", "jax-cuda13-plugin"} <= found
