"""`imagen_jax eval`: one cascade, any number of evaluators, each writing its own result into the run directory."""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax

from imagen_jax.checks import check_path
from imagen_jax.errors import UserError
from imagen_jax.sampling.cascade import Cascade

DIRECTIONS = ("max", "min")


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
      best: the number in a result that `follow` keeps the best checkpoint by, as "FILE:NAME/NAME…", e.g.
        "eval.json:alignment/2/single_both"; None: none is kept for its result.
      best_is: whether the "max" or the "min" is best.
    """

    run_dir: str
    evaluators: tuple[Evaluator, ...]
    best: str | None = None
    best_is: str = "max"

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
        file, _, name = (self.best or "eval.json:name").partition(":")
        if not file.endswith(".json") or not all(name.split("/")):
            raise UserError(
                f"EvalConfig.best ({self.best!r}) must be the file of a result and a place in it, e.g. "
                "'eval.json:alignment/2/single_both'"
            )
        if self.best_is not in DIRECTIONS:
            raise UserError(f"EvalConfig.best_is ({self.best_is!r}) must be one of {', '.join(DIRECTIONS)}")


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
