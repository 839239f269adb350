"""`imagen_jax follow`: the evaluators of a gin file on each checkpoint of a run, beside its training."""

import argparse
from typing import Any

from imagen_jax.commands.parts.command import GinCommand


def config_class() -> type:
    """Imports EvalConfig."""
    from imagen_jax.evals.evaluator import EvalConfig

    return EvalConfig


def add_flags(sub: argparse.ArgumentParser) -> None:
    """Adds --stage, --once and --poll."""
    sub.add_argument(
        "--stage",
        metavar="NAME",
        help="folder of the followed stage, where RUN_DIR is a cascade's; the other stages are the newest",
    )
    sub.add_argument("--once", action="store_true", help="end when nothing is left, also where training goes on")
    sub.add_argument(
        "--poll", type=float, default=30.0, metavar="S", help="seconds between looks (default %(default)g)"
    )


def run(args: argparse.Namespace, config: Any, operative: str) -> None:
    """Follows the run."""
    from imagen_jax.evals.follow import follow

    follow(config, stage=args.stage, once=args.once, poll_s=args.poll)


COMMAND = GinCommand(
    name="follow",
    help="measure each checkpoint of a run that trains, and note the best",
    config_class=config_class,
    run=run,
    add_flags=add_flags,
    order=8,
)
