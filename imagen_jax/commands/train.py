"""`imagen_jax train`: one stage of the cascade."""

import argparse
from typing import Any

from imagen_jax.commands.parts.command import GinCommand


def add_flags(sub: argparse.ArgumentParser) -> None:
    """Adds --dry_run and --profile_steps."""
    sub.add_argument(
        "--dry_run",
        "--dry-run",
        action="store_true",
        help="print the operative config, parameter count, mesh, batch and memory a device; train nothing",
    )
    sub.add_argument(
        "--profile_steps",
        metavar="A:B",
        help="write a trace of updates A to B into MODEL_DIR/tensorboard, for TensorBoard and xprof",
    )


def config_class() -> type:
    """Imports TrainConfig."""
    from imagen_jax.train.config import TrainConfig

    return TrainConfig


def run(args: argparse.Namespace, config: Any, operative: str) -> None:
    """Trains, or says what would be trained."""
    if args.dry_run:
        from imagen_jax.planning.dry_run import run as print_dry_run

        print(operative)
        print_dry_run(config)
    else:
        from imagen_jax.commands.parts.training import run as run_training

        run_training(config, operative_config=operative, profile_steps=args.profile_steps)


COMMAND = GinCommand(
    name="train",
    help="train one stage of the cascade, or continue its run",
    config_class=config_class,
    run=run,
    add_flags=add_flags,
    order=5,
    several_hosts=True,
)
