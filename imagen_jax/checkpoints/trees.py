"""Trees that a checkpoint holds, and readable names of their leaves."""

from collections.abc import Sequence
from typing import Any

import flax.struct
import jax

from imagen_jax.typing import PyTree


class TrainState(flax.struct.PyTreeNode):
    """Everything one update reads and writes; parameters and averages are float32.

    The same tree also holds shapes, shardings or flags of its leaves, hence no array types here.

    Args:
      step: updates done, an int32 scalar.
      params: parameters being trained.
      ema_params: their moving average, used for sampling.
      opt_state: optax state.
    """

    step: PyTree
    params: PyTree
    ema_params: PyTree
    opt_state: PyTree


def path_name(path: Sequence[Any]) -> str:
    """Readable name of a leaf, e.g. "params.conv.kernel"; the same for a tuple, a named tuple and a dict."""
    parts = (getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))) for key in path)
    return ".".join(str(part) for part in parts)


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """Leaves of a tree by their readable names, in the tree's order."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}
