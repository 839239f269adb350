"""Named arrays of a weights file: .pth of PyTorch, .npz, .safetensors; the same names in each."""

import os
import zipfile
from collections.abc import Mapping

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from imagen_jax.errors import UserError, listed
from imagen_jax.evals.features.torch_file import read_torch_file
from imagen_jax.files import local_copy

TORCH_ENDINGS = (".pth", ".pt", ".bin")
ENDINGS = (*TORCH_ENDINGS, ".npz", ".safetensors")


def read_arrays(path: str) -> dict[str, np.ndarray]:
    """Every array of a weights file, by name.

    Args:
      path: of the file, local or in a bucket; its ending tells its kind.

    Raises:
      UserError: it is missing, damaged, of another kind, or holds more than arrays.
    """
    ending = os.path.splitext(path)[1]
    if ending not in ENDINGS:
        raise UserError(f"{path} is no weights file; expected one that ends in {', '.join(ENDINGS)}")
    try:
        here = local_copy(path)
        if ending in TORCH_ENDINGS:
            with open(here, "rb") as file:
                return read_torch_file(path, file.read())
        if ending == ".npz":
            with np.load(here, allow_pickle=False) as found:
                return {name: found[name] for name in found.files}
        return load_file(here)
    except UserError:
        raise
    except (OSError, ValueError, EOFError, KeyError, AttributeError, zipfile.BadZipFile, SafetensorError) as error:
        if isinstance(error, FileNotFoundError):
            raise UserError(f"no weights file at {path}; give the path of one") from error
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}); download it again") from error


def check_shapes(path: str, arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], kind: str) -> None:
    """Refuses weights of another network.

    Args:
      path: of the file, for the message.
      arrays: what it holds.
      shapes: expected shape by name.
      kind: of network, as its name is written.

    Raises:
      UserError: a name is missing, or of another shape or of no numbers.
    """
    wrong = [
        f"{name}: got {arrays[name].shape if name in arrays else 'nothing'}, expected {shape}"
        for name, shape in shapes.items()
        if name not in arrays or arrays[name].shape != shape or arrays[name].dtype.kind not in "fiuV"
    ]
    if wrong:
        raise UserError(
            f"{path} holds no {kind}, {len(wrong)} of {len(shapes)} arrays differ: {listed(wrong[:3])}; give the file "
            "that its publisher offers"
        )
