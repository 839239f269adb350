"""`imagen_jax eval`: every evaluator of a gin file on one cascade."""

import argparse
from typing import Any

from imagen_jax.commands.parts.command import GinCommand


def config_class() -> type:
    """Imports EvalConfig."""
    from imagen_jax.evals.evaluator import EvalConfig

    return EvalConfig


def run(args: argparse.Namespace, config: Any, operative: str) -> None:
    """Loads the cascade and runs the evaluators."""
    from imagen_jax.evals.evaluator import run as run_evaluators

    run_evaluators(config)


COMMAND = GinCommand(
    name="eval",
    help="measure how well a cascade's images match their captions",
    config_class=config_class,
    run=run,
    order=8,
)
