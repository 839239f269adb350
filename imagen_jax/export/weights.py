"""Forms in which a bundle keeps parameters: as they are, or kernels in fewer bits and all else as it is.

    bfloat16   kernels rounded to 8 bits of mantissa: half the bytes
    int8       kernels as integers from -127 to 127 times a float32 scale for each output channel: a quarter

An int8 kernel k of scale s stands for k s, and s is the largest magnitude of the channel's weights / 127, so that no
weight is off by more than s / 2. Kernels of scanned blocks, which stand stacked, have scales for each block. What is
loaded is float32 again: the bundle is smaller, memory is not.
"""

from collections.abc import Mapping

import ml_dtypes
import numpy as np

from imagen_jax.errors import UserError

AS_THEY_ARE, BFLOAT16, INT8 = "float32", "bfloat16", "int8"
FORMS = (AS_THEY_ARE, BFLOAT16, INT8)
# Not in the name of any parameter: those are joined by dots.
SCALE = ":scale"
_MOST = 127


def packed(leaves: Mapping[str, np.ndarray], form: str) -> dict[str, np.ndarray]:
    """Arrays as a bundle of a form holds them.

    Args:
      leaves: parameters by dotted name.
      form: one of FORMS.

    Raises:
      UserError: a kernel holds infinities or NaNs, which have no place in fewer bits.
    """
    if form == AS_THEY_ARE:
        return dict(leaves)
    found: dict[str, np.ndarray] = {}
    for name, leaf in leaves.items():
        if not _is_kernel(name, leaf):
            found[name] = leaf
            continue
        if not np.isfinite(leaf).all():
            raise UserError(
                f"parameter {name} holds infinities or NaNs, which {form} cannot keep; export another checkpoint, or "
                f"with weights {AS_THEY_ARE}"
            )
        if form == BFLOAT16:
            found[name] = leaf.astype(ml_dtypes.bfloat16)
        else:
            # Dense kernels have two axes and those of convolutions four; one more is that of scanned blocks.
            axes = tuple(range(leaf.ndim % 2, leaf.ndim - 1))
            largest = np.abs(leaf).max(axis=axes, keepdims=True)
            scale = np.where(largest > 0, largest / _MOST, 1).astype(np.float32)
            found[name] = np.clip(np.rint(leaf / scale), -_MOST, _MOST).astype(np.int8)
            found[name + SCALE] = scale
    return found


def unpacked(path: str, leaves: Mapping[str, np.ndarray], form: str) -> dict[str, np.ndarray]:
    """Parameters of the arrays that `packed` made.

    Args:
      path: of the bundle, for messages.
      leaves: arrays by name.
      form: one of FORMS.

    Raises:
      UserError: the arrays are not of that form.
    """
    if form == AS_THEY_ARE:
        return dict(leaves)
    found = {name: leaf for name, leaf in leaves.items() if not name.endswith(SCALE)}
    scales = {name.removesuffix(SCALE): leaf for name, leaf in leaves.items() if name.endswith(SCALE)}
    integers = {name for name, leaf in found.items() if leaf.dtype == np.int8}
    if form != INT8 and scales or integers != scales.keys():
        raise UserError(f"{path} says that its weights are {form}, and its arrays are not; copy it again")
    for name, leaf in found.items():
        if name in scales:
            try:
                found[name] = (leaf * scales[name]).astype(np.float32).reshape(leaf.shape)
            except ValueError as error:
                raise UserError(f"{path} has a scale of {name} of another shape ({error}); copy it again") from error
        elif leaf.dtype == ml_dtypes.bfloat16:
            found[name] = leaf.astype(np.float32)
    return found


def _is_kernel(name: str, leaf: np.ndarray) -> bool:
    return name.rpartition(".")[2] == "kernel" and leaf.dtype == np.float32 and leaf.ndim >= 2
