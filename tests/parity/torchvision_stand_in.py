"""An empty torchvision, where there is none: torch-fidelity imports it for data sets and networks not used here."""

import contextlib
import importlib.util
import sys
import types
from collections.abc import Iterator

NAMES = ("", ".transforms", ".transforms.functional", ".datasets", ".models", ".models.utils")


class _Empty(types.ModuleType):
    """A module in which every name is an empty class."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


@contextlib.contextmanager
def torchvision_stand_in() -> Iterator[None]:
    """While torch-fidelity is imported; transformers, too, asks if there is a torchvision."""
    made: dict[str, types.ModuleType] = {}
    if importlib.util.find_spec("torchvision") is None:
        made = {f"torchvision{name}": _Empty(f"torchvision{name}") for name in NAMES}
    for name, module in made.items():
        sys.modules[name] = module
        parent, _, own = name.rpartition(".")
        if parent:
            setattr(made[parent], own, module)
    try:
        yield
    finally:
        for name in made:
            del sys.modules[name]
