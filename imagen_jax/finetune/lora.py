"""LoRA (arXiv 2106.09685): a kernel W is used as W + scale A B, and A and B alone are trained.

    W  [*stack, *inputs, *outputs]      scale = alpha / rank
    A  [*stack, *inputs, rank]          uniform in ±1 / sqrt(size of inputs), as PEFT draws it
    B  [*stack, rank, *outputs]         zero: training starts at the base exactly

Which axes are which follows from their logical names, so that this holds for any network: layers of a scan are
stacked, a convolution's outputs are its last axis, heads at the front of a kernel of three or more axes are inputs, and
any other kernel has one input axis. The factors lie over a mesh as their kernel does; the rank is not split.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta

from imagen_jax.checkpoints.trees import named_leaves, path_name
from imagen_jax.checks import check_count
from imagen_jax.errors import UserError, listed
from imagen_jax.export.arrays import nested
from imagen_jax.sharding.rules import is_boxed
from imagen_jax.typing import Array, PRNGKeyArray, PyTree

# Names of the two factors in the place of their kernel.
A, B = "lora_A", "lora_B"
# Attention's kernels: of the U-Nets here, and those that diffusers names.
ATTENTION = r"(.*\.)?(qkv|text_kv|out|query|key_value|to_[qkv]|to_out_0|add_[kv]_proj)\.kernel"
_STACKED = ("layers",)
_HEADS = ("heads", "head_dim")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """LoRA in place of training all parameters.

    Args:
      rank: of the factors, >= 0; 0 has none, and equals the base.
      alpha: scale times rank, > 0; None: the rank, so that the scale is 1.
      targets: regular expressions; a parameter of two or more axes whose dotted path one of them matches as a whole is
        adapted. By default the kernels of attention; (".*",) is every dense layer and convolution.

    Raises:
      UserError: a value is out of range, or no regular expression.
    """

    rank: int = 8
    alpha: float | None = None
    targets: tuple[str, ...] = (ATTENTION,)

    def __post_init__(self) -> None:
        check_count("LoraConfig.rank", self.rank, 0)
        if self.alpha is not None and not 0 < self.alpha < math.inf:
            raise UserError(f"LoraConfig.alpha ({self.alpha!r}) must be a number above 0, or None for the rank")
        if isinstance(self.targets, str) or not self.targets:
            raise UserError(f"LoraConfig.targets ({self.targets!r}) must be a list of regular expressions, not empty")
        object.__setattr__(self, "targets", tuple(self.targets))
        for target in self.targets:
            try:
                re.compile(target)
            except (re.error, TypeError) as error:
                raise UserError(f"LoraConfig.targets: {target!r} is no regular expression ({error})") from error

    @property
    def scale(self) -> float:
        """Factor of A B."""
        return 1.0 if self.alpha is None else self.alpha / max(self.rank, 1)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Axes of a kernel as LoRA sees them.

    Args:
      shape: of the kernel.
      names: logical names of its axes, None where one has none.
      num_stacked: leading axes that stack layers.
      num_inputs: axes after those that a layer sums over; the others are its outputs.
    """

    shape: tuple[int, ...]
    names: tuple[str | None, ...]
    num_stacked: int
    num_inputs: int

    @classmethod
    def of(cls, leaf: Any) -> "Layout | None":
        """The layout of a parameter, boxed or not; None where it is no matrix and cannot be factored."""
        boxed = is_boxed(leaf)
        shape = tuple((leaf.value if boxed else leaf).shape)
        names = tuple(getattr(leaf, "names", None) or (None,) * len(shape)) if boxed else (None,) * len(shape)
        num_stacked = next((n for n, name in enumerate(names) if name not in _STACKED), len(names))
        own = names[num_stacked:]
        if len(own) < 2:
            return None
        # A kernel without names is laid out as Linen's convolutions are: the last axis is of outputs.
        last = "conv_out" in own or (len(own) > 2 and (own[0] in _HEADS or not any(own)))
        return cls(shape, names, num_stacked, len(own) - 1 if last else 1)

    @property
    def parts(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Shapes of the stack, the inputs and the outputs."""
        end = self.num_stacked + self.num_inputs
        return self.shape[: self.num_stacked], self.shape[self.num_stacked : end], self.shape[end:]

    def factors(self, rank: int) -> dict[str, tuple[tuple[int, ...], tuple[str | None, ...]]]:
        """Shape and logical names of A and B."""
        stack, inputs, outputs = self.parts
        end = self.num_stacked + self.num_inputs
        return {
            A: ((*stack, *inputs, rank), (*self.names[:end], None)),
            B: ((*stack, rank, *outputs), (*self.names[: self.num_stacked], None, *self.names[end:])),
        }


def layouts(config: LoraConfig, params: PyTree) -> dict[str, Layout]:
    """The kernels that are adapted, by their dotted paths.

    Args:
      config: which.
      params: the network's parameters, boxed; abstract ones will do.

    Raises:
      UserError: a target matches nothing; names what there is.
    """
    leaves = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_boxed)[0]
    found = {path_name(path): Layout.of(leaf) for path, leaf in leaves}
    able = {name: layout for name, layout in found.items() if layout is not None}
    idle = [target for target in config.targets if not any(re.fullmatch(target, name) for name in able)]
    if idle:
        raise UserError(
            f"LoraConfig.targets: {listed([repr(one) for one in idle])} matches no kernel of the network; its kernels "
            f"are {listed(sorted(able))}"
        )
    if config.rank == 0:
        return {}
    return {
        name: layout for name, layout in able.items() if any(re.fullmatch(target, name) for target in config.targets)
    }


def init(config: LoraConfig, params: PyTree, rng: PRNGKeyArray) -> PyTree:
    """Fresh factors, boxed with the logical names of their kernels' axes; they change nothing yet, as B is zero.

    Args:
      config: rank and targets.
      params: as in `layouts`.
      rng: decides A.
    """
    made: dict[str, Any] = {}
    for number, (name, layout) in enumerate(layouts(config, params).items()):
        shapes = layout.factors(config.rank)
        bound = 1 / math.sqrt(math.prod(layout.parts[1]))
        drawn = jax.random.uniform(jax.random.fold_in(rng, number), shapes[A][0], minval=-bound, maxval=bound)
        made[f"{name}.{A}"] = meta.Partitioned(drawn, shapes[A][1])
        made[f"{name}.{B}"] = meta.Partitioned(jnp.zeros(shapes[B][0]), shapes[B][1])
    return nested(made)


def merged(params: PyTree, factors: PyTree, scale: float) -> PyTree:
    """The parameters with scale A B added to the kernels that have factors.

    Args:
      params: of the network; arrays of NumPy stay such.
      factors: as `init` gives them, unboxed.
      scale: of A B.
    """
    if A in factors:
        return (params + scale * _product(params.shape, factors[A], factors[B])).astype(params.dtype)
    return {name: merged(one, factors[name], scale) if name in factors else one for name, one in params.items()}


def _product(shape: tuple[int, ...], a: Array, b: Array) -> Array:
    """A B in the shape of the kernel."""
    rank = a.shape[-1]
    # B has the rank where A's inputs begin; the axes before those are stacked.
    num_inputs = len(shape) - b.ndim + 1
    stack = a.shape[: a.ndim - 1 - num_inputs]
    left, right = a.reshape(*stack, -1, rank), b.reshape(*stack, rank, -1)
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return (left @ right).reshape(shape)
    return jnp.matmul(left, right, precision="highest").reshape(shape)


def check_factors(factors: PyTree, params: PyTree, what: str) -> None:
    """Raises UserError unless factors are of kernels of these parameters; names all that are not.

    Args:
      factors: arrays by their tree.
      params: boxed parameters of the network, as in `layouts`.
      what: they are of, for the message.
    """
    every = LoraConfig(rank=1, targets=(".*",))
    known, wrong = layouts(every, params), list[str]()
    leaves: Mapping[str, Any] = named_leaves(factors)
    for name, leaf in leaves.items():
        kernel, _, factor = name.rpartition(".")
        other = f"{kernel}.{B if factor == A else A}"
        if kernel not in known or factor not in (A, B) or other not in leaves:
            wrong.append(f"{name} is no factor of a kernel of the network")
            continue
        rank = leaves[f"{kernel}.{A}"].shape[-1]
        wanted = known[kernel].factors(rank)[factor][0]
        if tuple(leaf.shape) != wanted:
            wrong.append(f"{name} has shape {tuple(leaf.shape)}, expected {wanted}")
    if wrong:
        raise UserError(f"{what} is of another network: {listed(wrong)}; use it with the stage it was trained on")
