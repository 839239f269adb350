"""Optimizers and learning-rate schedule, with the paper's numbers as defaults.

The base model is trained with Adafactor (optax defaults, no weight decay), the super-resolution stages with
Adam (b1 0.9, b2 0.999, eps 1e-8): the paper found that Adafactor hurts their quality. The rate is 1e-4 after
10 000 steps of linear warm-up, then constant, or falling to zero as a cosine.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from imagen_jax.checks import check_count
from imagen_jax.errors import UserError
from imagen_jax.typing import Array, Float, Int, PyTree

NAMES = ("adafactor", "adam", "adamw")
SCHEDULES = ("constant", "cosine")


def decayed(params: PyTree) -> PyTree:
    """True at the parameters that weight decay holds for: those named "kernel".

    By name, not by rank: the scale of a norm in a scanned network has a second axis.
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: "kernel" in jax.tree_util.keystr(path[-1:]), params)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """One optimizer and its learning rate.

    Args:
      name: "adafactor" (paper: base), "adam" (paper: super-resolution) or "adamw".
      learning_rate: rate after the warm-up, > 0.
      warmup_steps: steps of linear warm-up, >= 0.
      schedule: "constant" or "cosine" (to zero at `num_steps`).
      num_steps: step at which a cosine schedule reaches zero; belongs to "cosine" alone.
      b1, b2, eps: Adam's moments and denominator; Adafactor keeps optax's own.
      weight_decay: decoupled decay of the kernels, for "adamw" alone; norms and biases are not decayed.
      grad_clip_norm: largest global norm of the gradient; None does not clip (the paper names no clipping).

    Raises:
      UserError: a value is out of range, or does not belong to the chosen optimizer or schedule.
    """

    name: str = "adafactor"
    learning_rate: float = 1e-4
    warmup_steps: int = 10_000
    schedule: str = "constant"
    num_steps: int | None = None
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    grad_clip_norm: float | None = None

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise UserError(f"name ({self.name!r}) must be one of {', '.join(NAMES)}")
        if self.schedule not in SCHEDULES:
            raise UserError(f"schedule ({self.schedule!r}) must be one of {', '.join(SCHEDULES)}")
        if not self.learning_rate > 0:
            raise UserError(f"learning_rate ({self.learning_rate!r}) must be > 0; the paper's is 1e-4")
        check_count("warmup_steps", self.warmup_steps, 0)
        for moment in ("b1", "b2"):
            if not 0 <= getattr(self, moment) < 1:
                raise UserError(f"{moment} ({getattr(self, moment)}) must be in [0, 1)")
        if not self.eps > 0:
            raise UserError(f"eps ({self.eps}) must be > 0; 1e-8 is usual")
        if self.weight_decay < 0 or (self.weight_decay and self.name != "adamw"):
            raise UserError(f"weight_decay ({self.weight_decay}) must be 0 for {self.name}; choose adamw")
        if self.grad_clip_norm is not None and not self.grad_clip_norm > 0:
            raise UserError(f"grad_clip_norm ({self.grad_clip_norm}) must be > 0, or None for no clipping")
        if self.schedule == "cosine":
            if not isinstance(self.num_steps, int) or self.num_steps <= self.warmup_steps:
                raise UserError(
                    f"a cosine schedule needs num_steps ({self.num_steps!r}) above warmup_steps "
                    f"({self.warmup_steps}): set it to the length of the run"
                )
        elif self.num_steps is not None:
            raise UserError(f"num_steps ({self.num_steps}) of the optimizer is for the cosine schedule; drop it")

    def rate(self) -> Callable[[Int[Array, ""]], Float[Array, ""]]:
        """Learning rate as a function of the number of updates done before this one."""

        def rate_at(count: Int[Array, ""]) -> Float[Array, ""]:
            step = jnp.asarray(count, jnp.float32)
            warmup = jnp.minimum(1.0, (step + 1) / max(self.warmup_steps, 1))
            if self.schedule == "constant":
                return self.learning_rate * warmup
            assert self.num_steps is not None
            done = jnp.clip((step - self.warmup_steps) / (self.num_steps - self.warmup_steps), 0.0, 1.0)
            return self.learning_rate * warmup * 0.5 * (1 + jnp.cos(jnp.pi * done))

        return rate_at

    def build(self) -> optax.GradientTransformation:
        """The optax transformation: clipping, then the optimizer at the scheduled rate."""
        if self.name == "adafactor":
            update = optax.adafactor(self.rate())
        elif self.name == "adam":
            update = optax.adam(self.rate(), b1=self.b1, b2=self.b2, eps=self.eps)
        else:
            update = optax.adamw(
                self.rate(), b1=self.b1, b2=self.b2, eps=self.eps, weight_decay=self.weight_decay, mask=decayed
            )
        if self.grad_clip_norm is None:
            return update
        return optax.chain(optax.clip_by_global_norm(self.grad_clip_norm), update)
