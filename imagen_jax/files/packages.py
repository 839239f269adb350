"""Files that installed Python packages carry, named without a place: "package:NAME/FOLDER"."""

import importlib.util
import os

from imagen_jax.errors import UserError

PREFIX = "package:"


def in_package(path: str) -> bool:
    """Says whether a path names files of an installed package."""
    return path.startswith(PREFIX)


def installed_path(path: str) -> str:
    """Where the files are on this machine; a path that names no package is returned as it is. Imports nothing.

    Args:
      path: "package:NAME", or "package:NAME/FOLDER" with a folder or file inside the package.

    Raises:
      UserError: the package is not installed or has no such file, or the path leads out of it.
    """
    if not in_package(path):
        return path
    name, _, inside = path.removeprefix(PREFIX).partition("/")
    if not name.isidentifier() or ".." in inside.split("/"):
        raise UserError(f"{path!r} names no files of a package; expected {PREFIX}NAME/FOLDER, without dots")
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise UserError(f"{path!r} needs the package {name}, which is not installed; install it with pip")
    place = os.path.join(found.submodule_search_locations[0], *inside.split("/"))
    if not os.path.exists(place):
        raise UserError(f"the installed package {name} has no {inside!r}; install another version of it")
    return place
