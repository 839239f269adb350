"""Versions of this package and of those it works with, for whatever it writes."""

import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

PACKAGES = (
    "imagen_jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "tensorflow",
    "gin-config",
)
_PACKAGE = Path(__file__).resolve().parent


@functools.cache
def revision(package: Path = _PACKAGE) -> str | None:
    """Git revision of the code, with "-dirty" after it where files were changed since.

    Args:
      package: folder of the package.

    Returns:
      That of the checkout around `package`, or the one its wheel was built from; None where neither is known.
    """
    built_from = package / "shipped" / "REVISION"
    if built_from.is_file():
        return built_from.read_text().strip()
    # An installed package may lie inside a checkout of something else.
    if not (package.parent / ".git").exists():
        return None
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=package.parent, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def code_version() -> str:
    """Version of this package with its revision, e.g. "0.1.0+g4c7e9f7…"; "unknown" without any."""
    number, git = _installed("imagen_jax"), revision()
    return (number or "unknown") + (f"+g{git}" if git else "")


def versions() -> dict[str, Any]:
    """Version of Python, versions of packages (None where one is absent), and the revision."""
    found = {"python": platform.python_version(), **{name: _installed(name) for name in PACKAGES}}
    return {**found, "git_revision": revision()}


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
