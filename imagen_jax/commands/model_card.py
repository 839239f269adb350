"""`imagen_jax model_card`: a model card in Markdown, for a trained cascade."""

import argparse

from imagen_jax.commands.parts.command import Command
from imagen_jax.commands.parts.paths import user_path


def add_flags(sub: argparse.ArgumentParser) -> None:
    """Adds the run directory and what no file of it says."""
    sub.add_argument("run_dir", type=user_path, metavar="RUN_DIR", help="cascade directory, or one stage's; runs/demo")
    sub.add_argument("--output", type=user_path, metavar="FILE", help="the card; default: RUN_DIR/README.md")
    sub.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    sub.add_argument("--name", metavar="TEXT", help="of the model; default: the name of RUN_DIR")
    sub.add_argument(
        "--license", default="unknown", metavar="ID", help="id of the Hub, e.g. apache-2.0, or a license's name"
    )
    sub.add_argument(
        "--language", nargs="*", default=[], metavar="CODE", help="of captions; default: as the data cards state"
    )
    sub.add_argument("--dataset", nargs="*", default=[], metavar="ID", help="training data on the Hub")
    sub.add_argument(
        "--corpus",
        nargs="*",
        type=user_path,
        default=[],
        metavar="DIR",
        help="corpora of the training, for their data cards; default: RUN_DIR/corpus",
    )


def run(args: argparse.Namespace) -> None:
    """Writes the card and prints its path."""
    from imagen_jax.report.model_card import CardOptions, write_model_card

    options = CardOptions(
        output=args.output,
        overwrite=args.overwrite,
        name=args.name,
        license=args.license,
        languages=args.language,
        datasets=args.dataset,
        corpora=args.corpus,
    )
    print(write_model_card(args.run_dir, options))


COMMAND = Command(
    name="model_card",
    help="write a model card with Hugging Face's fields from a run's evaluations",
    run=run,
    add_flags=add_flags,
    order=9,
)
