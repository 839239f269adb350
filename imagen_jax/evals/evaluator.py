"""`imagen_jax eval`: one cascade, any number of evaluators, each writing its own result into the run directory."""

import dataclasses
from typing import Protocol, runtime_checkable

from imagen_jax.checks import check_path
from imagen_jax.errors import UserError
from imagen_jax.sampling.cascade import Cascade


@runtime_checkable
class Evaluator(Protocol):
    """One measurement of a cascade."""

    def evaluate(self, cascade: Cascade, run_dir: str) -> None:
        """Measures `cascade` and writes the result under `run_dir`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """A cascade and the evaluators that measure it.

    Args:
      run_dir: cascade directory, or run directory of one stage.
      evaluators: run in this order on the one loaded cascade.
    """

    run_dir: str
    evaluators: tuple[Evaluator, ...]

    def __post_init__(self) -> None:
        check_path("EvalConfig.run_dir", self.run_dir)
        object.__setattr__(self, "evaluators", tuple(self.evaluators))
        if not self.evaluators:
            raise UserError("EvalConfig.evaluators is empty; name at least one, e.g. (@alignment.Alignment(),)")
        for one in self.evaluators:
            if not isinstance(one, Evaluator):
                raise UserError(
                    f"EvalConfig.evaluators holds {one!r}; expected evaluators, e.g. @alignment.Alignment()"
                )


def run(config: EvalConfig) -> None:
    """Loads the cascade and runs every evaluator on it."""
    cascade = Cascade.load(config.run_dir)
    for evaluator in config.evaluators:
        evaluator.evaluate(cascade, config.run_dir)
