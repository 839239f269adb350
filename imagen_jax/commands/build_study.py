"""`imagen_jax build_study`: two folders of images → a page on which people compare them."""

import argparse

from imagen_jax.commands.parts.command import Command
from imagen_jax.commands.parts.paths import user_path


def add_flags(sub: argparse.ArgumentParser) -> None:
    """Adds the folders and how much of them is shown."""
    for name, text in (
        ("first", "images of a model, with prompts.jsonl"),
        ("second", "those of another, same prompts"),
    ):
        sub.add_argument(f"--{name}", type=user_path, required=True, metavar="DIR", help=text)
    sub.add_argument("--output", type=user_path, required=True, metavar="DIR", help="folder of the study, to be made")
    sub.add_argument("--real", action="store_true", help="--second holds photographs: the paper's study of COCO")
    sub.add_argument(
        "--num_prompts", type=int, metavar="N", help="prompts chosen at random; default: all, with --real at most 200"
    )
    sub.add_argument("--num_samples", type=int, default=8, metavar="N", help="images a side, chosen at random (8)")
    sub.add_argument("--seed", type=int, default=0, metavar="N", help="of what is chosen, and of order and sides (0)")


def run(args: argparse.Namespace) -> None:
    """Writes the study and says where its page is."""
    from imagen_jax.ratings.build import build_study

    study = build_study(
        (args.first, args.second), args.output, args.real, args.num_prompts, args.num_samples, args.seed
    )
    print(f"{args.output}/site/index.html: {len(study.items)} pairs")


COMMAND = Command(
    name="build_study",
    help="make a page on which people compare the images of two models, or of one with photographs",
    run=run,
    add_flags=add_flags,
    order=12,
)
