"""The adapter protocol: names and layouts of a foreign state dict, and of our parameters."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np

from imagen_jax.errors import UserError

Path = tuple[str, ...]
Shape = tuple[int, ...]


@runtime_checkable
class Adapter(Protocol):
    """Maps one network's parameters to those of another framework."""

    def foreign_name(self, path: Path) -> str:
        """Name in the foreign state dict of the parameter at a path."""

    def to_native(self, path: Path, array: np.ndarray) -> np.ndarray:
        """A foreign array, in our layout."""

    def from_native(self, path: Path, array: np.ndarray) -> np.ndarray:
        """One of our arrays, in the foreign layout."""


def foreign_shape(adapter: Adapter, path: Path, shape: Shape) -> Shape:
    """Shape that a parameter has in the foreign state dict."""
    return adapter.from_native(path, np.broadcast_to(np.float32(0), shape)).shape


def check_shapes(source: str, expected: Mapping[str, Shape], got: Mapping[str, Shape]) -> None:
    """Compares the names and shapes of a state dict with those that its config asks for.

    Raises:
      UserError: names every missing, unexpected and misshapen tensor in one line.
    """
    faults: list[str] = [f"{name} is missing" for name in sorted(expected.keys() - got.keys())]
    faults += [f"{name} is unexpected" for name in sorted(got.keys() - expected.keys())]
    faults += [
        f"{name} has shape {tuple(got[name])}, expected {shape}"
        for name, shape in sorted(expected.items())
        if name in got and tuple(got[name]) != shape
    ]
    if faults:
        raise UserError(
            f"{source} does not fit its config.json: {'; '.join(faults)}; give the weights and the config of one model"
        )


def check_finite(source: str, name: str, array: np.ndarray) -> None:
    """Refuses an array with infinities or NaNs, as float16 copies of large weights hold, and one of no real numbers.

    Raises:
      UserError: names the tensor.
    """
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise UserError(f"{name} of {source} is stored as {array.dtype}; give the float32 or bfloat16 weights")
    if not np.isfinite(array).all():
        raise UserError(
            f"{name} of {source} holds infinities or NaNs (stored as {array.dtype}); "
            "expected finite numbers: give the float32 or bfloat16 weights"
        )
