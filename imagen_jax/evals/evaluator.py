"""`imagen_jax eval`: one cascade, any number of evaluators, each writing its own result into the run directory."""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax

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
    """Loads the cascade, where an evaluator needs one, and runs every evaluator on it.

    Evaluators of what is there already say so by `needs_cascade = False`; those whose images several processes share,
    by `shares_images = True`.

    Raises:
      UserError: there are several processes, and an evaluator does not share its images among them.
    """
    alone = [type(one).__name__ for one in config.evaluators if not getattr(one, "shares_images", False)]
    if alone and jax.process_count() > 1:
        raise UserError(
            f"{alone[0]} of EvalConfig.evaluators runs in one process, and there are {jax.process_count()}: add "
            "--num_processes=1 and start one, or name evaluators that share their images (image_scores.ImageScores)"
        )
    needs = [getattr(evaluator, "needs_cascade", True) for evaluator in config.evaluators]
    cascade: Any = Cascade.load(config.run_dir) if any(needs) else None
    for evaluator in config.evaluators:
        evaluator.evaluate(cascade, config.run_dir)


def with_protocols(config: EvalConfig, names: tuple[str, ...]) -> EvalConfig:
    """The config with other protocols in each evaluator that has some.

    Raises:
      UserError: a name is unknown, or no evaluator has protocols.
    """
    made = tuple(
        dataclasses.replace(one, protocols=names) if hasattr(one, "protocols") else one  # type: ignore[type-var]
        for one in config.evaluators
    )
    if not any(hasattr(one, "protocols") for one in made):
        raise UserError("--protocols is for evaluators that have some: give --gin_file=configs/runs/image_scores.gin")
    return dataclasses.replace(config, evaluators=made)
