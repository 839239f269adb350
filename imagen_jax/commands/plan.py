"""`imagen_jax plan`: a training run on a TPU slice that need not be here."""

import argparse
from typing import Any

from imagen_jax.commands.parts.command import GinCommand
from imagen_jax.commands.parts.paths import user_path


def add_flags(sub: argparse.ArgumentParser) -> None:
    """Adds the flags that name the slice, the compiler's effort and the outputs."""
    sub.add_argument(
        "--topology",
        default="local",
        metavar="NAME",
        help="TPU slice, e.g. v4-512 (256 chips), v5e-8, v5p-128, v6e-256, tpu7x-8, or local: the devices here",
    )
    sub.add_argument("--num_slices", type=int, default=1, metavar="N", help="slices joined by the data-centre network")
    sub.add_argument("--global_batch_size", type=int, metavar="N", help="instead of the run's batch_size")
    sub.add_argument(
        "--optimization_level",
        default="O1",
        metavar="LEVEL",
        help="of the compiler: O0, O1 (what is taken; fast to compile), O2, O3, or default (as in training)",
    )
    sub.add_argument("--sampler", action="store_true", help="plan the stage's guided sampling too")
    sub.add_argument("--search", action="store_true", help="try every mesh, accumulating where memory asks for it")
    sub.add_argument("--json", type=user_path, metavar="PATH", help="also write the plan as JSON")


def config_class() -> type:
    """Imports TrainConfig."""
    from imagen_jax.train.config import TrainConfig

    return TrainConfig


def run(args: argparse.Namespace, config: Any, operative: str) -> None:
    """Prints the plan, and writes it where --json says."""
    from imagen_jax.planning.plan import PlanOptions
    from imagen_jax.planning.plan import run as run_plan

    options = PlanOptions(
        topology=args.topology,
        num_slices=args.num_slices,
        global_batch_size=args.global_batch_size,
        optimization_level=args.optimization_level,
        sampler=args.sampler,
    )
    run_plan(config, options, args.json, args.search)


COMMAND = GinCommand(
    name="plan",
    help="what a training run would take on a TPU slice: memory, collectives, step time; needs no TPU",
    config_class=config_class,
    run=run,
    add_flags=add_flags,
    order=6,
    # A plan reads no data: nobody has to say where it would lie.
    open_paths="not read",
)
