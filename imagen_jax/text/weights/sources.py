"""Maps checkpoint arrays to parameters (name, transpose, layer); shared by the tables of all encoders."""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from imagen_jax.errors import UserError
from imagen_jax.text.weights.checkpoint_arrays import CheckpointArrays, Index


@dataclasses.dataclass(frozen=True)
class Source:
    """One parameter's array in a checkpoint.

    Args:
      name: of the array.
      transposed: the array's two dimensions stand the other way round.
      layer: (axis, number) of the layer in an array of stacked layers.
    """

    name: str
    transposed: bool = False
    layer: tuple[int, int] | None = None

    def shape(self, arrays: CheckpointArrays) -> tuple[int, ...]:
        """Shape of the parameter."""
        shape = list(arrays.shapes[self.name])
        if self.layer is not None:
            del shape[self.layer[0]]
        return tuple(reversed(shape)) if self.transposed else tuple(shape)

    def read(self, arrays: CheckpointArrays, index: Index) -> np.ndarray:
        """One slice of the parameter."""
        if self.transposed:
            return arrays.read(self.name, tuple(reversed(index))).T
        if self.layer is None:
            return arrays.read(self.name, index)
        axis, number = self.layer
        whole = (*index[:axis], slice(number, number + 1), *index[axis:])
        return arrays.read(self.name, whole).squeeze(axis)


# A row: pattern of the array's name, path of the parameter with a hole for each group, whether it is transposed.
Table = tuple[tuple[str, str, bool], ...]


def match(arrays: CheckpointArrays, table: Table) -> dict[str, Source]:
    """Sources of the parameters that the table finds, by dotted path with layers apart."""
    sources = {}
    for name in sorted(arrays.shapes):
        for pattern, path, transposed in table:
            if found := re.fullmatch(pattern, name):
                sources[path.format(*found.groups())] = Source(name, transposed)
    return sources


def layer_rows(prefix: str, dense: Mapping[str, str], norms: Mapping[str, str]) -> Iterator[tuple[str, str, bool]]:
    """Rows of the layers of a transformer with biases.

    Args:
      prefix: pattern of what stands before the names, the layer's number its group.
      dense: name of a matrix product there → here.
      norms: name of a norm there → here.
    """
    for theirs, ours in dense.items():
        yield rf"{prefix}{re.escape(theirs)}\.weight", f"encoder.layers_{{}}.{ours}.kernel", True
        yield rf"{prefix}{re.escape(theirs)}\.bias", f"encoder.layers_{{}}.{ours}.bias", False
    for theirs, ours in norms.items():
        yield from norm_rows(prefix + re.escape(theirs), f"encoder.layers_{{}}.{ours}")


def norm_rows(theirs: str, ours: str) -> Table:
    """Rows of a norm; PyTorch checkpoints from before 2019, BERT's among them, say gamma and beta."""
    return (
        (rf"{theirs}\.(?:weight|gamma)", f"{ours}.scale", False),
        (rf"{theirs}\.(?:bias|beta)", f"{ours}.bias", False),
    )


def layer_of(path: str) -> int | None:
    """Number of the layer that a dotted path lies in; None for what is in none."""
    found = re.match(r"encoder\.layers_(\d+)\.", path)
    return int(found[1]) if found else None


def layers_of(sources: Iterable[str]) -> set[int]:
    """Numbers of the layers that the dotted paths name."""
    return {layer for layer in map(layer_of, sources) if layer is not None}


def num_layers(sources: Iterable[str]) -> int:
    """Layers up to the last one that the dotted paths name."""
    return max(layers_of(sources), default=-1) + 1


def refuse_without(
    arrays: CheckpointArrays, sources: Mapping[str, Source], kind: str, expected: Mapping[str, str]
) -> None:
    """Refuses a checkpoint that holds another network.

    Args:
      arrays: the checkpoint's arrays.
      sources: what was found.
      kind: of encoder, as its name is written.
      expected: parameter by dotted path → its name in the checkpoint.

    Raises:
      UserError: one of `expected` is not among `sources`.
    """
    if not expected.keys() <= sources.keys():
        raise UserError(
            f"{arrays.path} holds no {kind} encoder: expected {' and '.join(expected.values())}, got "
            f"{_some(arrays.shapes)}; give the checkpoint of an encoder or of a whole model"
        )


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "") or "no arrays"
