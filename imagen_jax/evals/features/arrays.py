"""Named arrays of a weights file: .pth of PyTorch, .npz, .safetensors; the same names in each."""

import os
import tokenize
import zipfile
import zlib
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from imagen_jax.errors import UserError, listed, one_line
from imagen_jax.evals.features.torch_file import read_torch_file
from imagen_jax.files import local_copy, size_of

TORCH_ENDINGS = (".pth", ".pt", ".bin")
ENDINGS = (*TORCH_ENDINGS, ".npz", ".safetensors")
# Ten times those of Inception v3, which are read as a whole.
_MOST_BYTES = 1 << 30
# Of these NumPy, zipfile and safetensors raise one or another, by the place that is damaged.
_DAMAGES = (
    *(OSError, ValueError, EOFError, LookupError, AttributeError, TypeError, ArithmeticError, RuntimeError),
    *(MemoryError, SyntaxError, tokenize.TokenError, zipfile.BadZipFile, zlib.error, SafetensorError),
)


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
        _check_size(path, size_of(path) or 0)
        here = local_copy(path)
        if ending in TORCH_ENDINGS:
            with open(here, "rb") as file:
                return read_torch_file(path, file.read())
        if ending == ".npz":
            return _read_npz(path, here)
        return load_file(here)
    except UserError:
        raise
    except _DAMAGES as error:
        if isinstance(error, FileNotFoundError):
            raise UserError(f"no weights file at {path}; give the path of one") from error
        what = one_line(f"{type(error).__name__}: {error}")
        raise UserError(f"{path} is damaged ({what}); download it again") from error


def _check_size(path: str, num_bytes: int) -> None:
    if num_bytes > _MOST_BYTES:
        raise UserError(
            f"{path} holds {num_bytes / 1e9:.1f} GB of weights, and those of Inception v3 are 0.1 GB; give its file"
        )


def _read_npz(path: str, here: str) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(here) as archive:
        # Packed, many gigabytes of zeros are few bytes.
        _check_size(path, sum(member.file_size for member in archive.infolist()))
    with np.load(here, allow_pickle=False) as found:
        arrays = {name: found[name] for name in found.files}
    for name, value in arrays.items():
        if not isinstance(value, np.ndarray):
            raise ValueError(f"{name} is no array")
    return arrays


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
        if name not in arrays or arrays[name].shape != shape or not _is_real(arrays[name].dtype)
    ]
    if wrong:
        raise UserError(
            f"{path} holds no {kind}, {len(wrong)} of {len(shapes)} arrays differ: {listed(wrong[:3])}; give the file "
            "that its publisher offers"
        )


def _is_real(dtype: np.dtype) -> bool:
    # NumPy's own test knows nothing of bfloat16.
    return bool(jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer))
