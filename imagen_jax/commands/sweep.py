"""`imagen_jax sweep`: a cascade under every combination of sampling settings, measured and tabled."""

import argparse
import shlex
import sys
from typing import Any

from imagen_jax.commands.parts.command import GinCommand


def add_flags(sub: argparse.ArgumentParser) -> None:
    """Adds --dry_run."""
    sub.add_argument(
        "--dry_run",
        "--dry-run",
        action="store_true",
        help="print the points, and the images, seconds and bytes to come; draw nothing",
    )


def config_class() -> type:
    """Imports SweepConfig."""
    from imagen_jax.evals.sweeps.sweep import SweepConfig

    return SweepConfig


def run(args: argparse.Namespace, config: Any, operative: str) -> None:
    """Runs the sweep and writes its page, or says what it would do."""
    from imagen_jax.evals.sweeps.sweep import dry_run, run_sweep

    if args.dry_run:
        print(dry_run(config))
        return
    from imagen_jax.report.sweep import write_sweep_page

    run_sweep(config, command=shlex.join(["imagen_jax", *sys.argv[1:]]))
    print(write_sweep_page(config.output_dir))


COMMAND = GinCommand(
    name="sweep",
    help="draw and measure a cascade under every combination of sampling settings",
    config_class=config_class,
    run=run,
    add_flags=add_flags,
    order=8,
)
