"""`imagen_jax eval`: every evaluator of a gin file on one cascade."""

import argparse
from typing import Any

from imagen_jax.commands.parts.command import GinCommand


def config_class() -> type:
    """Imports EvalConfig."""
    from imagen_jax.evals.evaluator import EvalConfig

    return EvalConfig


def add_flags(sub: argparse.ArgumentParser) -> None:
    """Adds --protocols."""
    sub.add_argument(
        "--protocols",
        metavar="NAME[,NAME]",
        help="protocols of FID, or all, for evaluators of images (configs/runs/image_scores.gin)",
    )


def run(args: argparse.Namespace, config: Any, operative: str) -> None:
    """Loads the cascade and runs the evaluators."""
    from imagen_jax.evals.evaluator import run as run_evaluators

    if args.protocols is not None:
        from imagen_jax.evals.evaluator import with_protocols

        config = with_protocols(config, tuple(args.protocols.split(",")))
    run_evaluators(config)


COMMAND = GinCommand(
    name="eval",
    help="measure a cascade's images, or those of a folder",
    config_class=config_class,
    run=run,
    add_flags=add_flags,
    order=8,
    several_hosts=True,
)
