"""`imagen_jax checkpoints`: list, verify, prune, copy and compare the checkpoints of a run."""

import argparse

from imagen_jax.commands.parts.command import Command
from imagen_jax.commands.parts.paths import user_path


def _step(text: str) -> int | str:
    """Reads a step: a count, or "best"."""
    return text if text == "best" else _count(text, 0)


def _positive(text: str) -> int:
    return _count(text, 1)


def _count(text: str, least: int) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) >= least):
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, at least {least}")
    return int(text)


def _add_path(parser: argparse.ArgumentParser, name: str, what: str) -> None:
    parser.add_argument(name, type=user_path, metavar=name.upper(), help=what)


def add_flags(sub: argparse.ArgumentParser) -> None:
    """Adds the actions with their flags."""
    actions = sub.add_subparsers(dest="action", required=True, metavar="ACTION")
    run, either = (
        "run directory of a stage",
        "a checkpoint, RUN/checkpoints/checkpoint_N, or a run directory: its newest",
    )

    table = actions.add_parser("list", help="table of the checkpoints: size, age, and which is the best or damaged")
    _add_path(table, "dir", run)

    verify = actions.add_parser("verify", help="compare every file with its digest; exit code 1 where one is damaged")
    _add_path(verify, "dir", run)
    verify.add_argument("--step", type=_step, metavar="N", help="this one alone, or best; default: all")

    prune = actions.add_parser("prune", help="remove old checkpoints; the best always stays")
    _add_path(prune, "dir", run)
    prune.add_argument("--keep", type=_positive, required=True, metavar="K", help="newest checkpoints that stay")
    prune.add_argument("--keep_every", type=_positive, metavar="N", help="checkpoints of steps that N divides stay too")
    prune.add_argument("--dry_run", "--dry-run", action="store_true", help="say what would be removed; remove nothing")

    copy = actions.add_parser("copy", help="copy a checkpoint into another run directory, and compare its digests")
    _add_path(copy, "source", either)
    _add_path(copy, "to", "run directory that gets the copy")
    parts = copy.add_mutually_exclusive_group()
    parts.add_argument("--ema_only", action="store_true", help="averaged parameters alone: enough to sample")
    parts.add_argument("--params_only", action="store_true", help="without the optimizer: enough to start another run")

    diff = actions.add_parser("diff", help="lines of config that differ, and the largest difference in each array")
    _add_path(diff, "one", either)
    _add_path(diff, "two", either)


def run(args: argparse.Namespace) -> None:
    """Does the action."""
    _ACTIONS[args.action](args)


def _list(args: argparse.Namespace) -> None:
    from imagen_jax.checkpoints.manage import lines

    print("\n".join(lines(args.dir)))


def _verify(args: argparse.Namespace) -> None:
    from imagen_jax.checkpoints.manage import verified

    damaged = 0
    for path, error in verified(args.dir, args.step):
        print(f"{path.name}: whole" if error is None else str(error), flush=True)
        damaged += error is not None
    if damaged:
        raise SystemExit(1)


def _prune(args: argparse.Namespace) -> None:
    from imagen_jax.checkpoints import folders
    from imagen_jax.train.run_dir import only_trainer

    folders.existing(args.dir, None)
    if args.dry_run:
        for step in folders.old_steps(args.dir, args.keep, args.keep_every):
            print(f"checkpoint_{step}: would be removed")
        return
    with only_trainer(args.dir):
        for step in folders.old_steps(args.dir, args.keep, args.keep_every):
            folders.remove(folders.checkpoint_dir(args.dir, step))
            print(f"checkpoint_{step}: removed", flush=True)


def _copy(args: argparse.Namespace) -> None:
    from imagen_jax.checkpoints.checkpoints import ITEMS
    from imagen_jax.checkpoints.manage import copy, located
    from imagen_jax.files import make_dirs
    from imagen_jax.train.run_dir import only_trainer

    items = ("ema_params",) if args.ema_only else ("params", "ema_params") if args.params_only else ITEMS
    source = located(args.source)
    make_dirs(args.to)
    with only_trainer(args.to):
        print(copy(source, args.to, items))


def _diff(args: argparse.Namespace) -> None:
    from imagen_jax.checkpoints.manage import differences, located

    for line in differences(located(args.one), located(args.two)):
        print(line)


_ACTIONS = {"list": _list, "verify": _verify, "prune": _prune, "copy": _copy, "diff": _diff}

COMMAND = Command(
    name="checkpoints",
    help="list, verify, prune, copy or compare the checkpoints of a run",
    run=run,
    add_flags=add_flags,
    order=19,
)
