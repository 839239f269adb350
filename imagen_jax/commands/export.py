"""`imagen_jax export`: a trained cascade as one directory that leaves the house."""

import argparse
from typing import TYPE_CHECKING

from imagen_jax.commands.parts.command import Command
from imagen_jax.commands.parts.paths import add_lora_flag, user_path

if TYPE_CHECKING:
    from imagen_jax.sampling.cascade import Cascade

_VERSIONS, _DATA_CARD = "versions.json", "card.json"


def add_flags(sub: argparse.ArgumentParser) -> None:
    """Adds the flags that name the cascade and the directory to write."""
    sub.add_argument(
        "--from",
        type=user_path,
        dest="source",
        required=True,
        metavar="RUN",
        help="cascade directory, one stage's, or a bundle",
    )
    sub.add_argument("--to", type=user_path, dest="directory", required=True, metavar="DIR", help="directory to write")
    sub.add_argument(
        "--format",
        choices=("bundle", "stablehlo", "peft", "embedding"),
        default="bundle",
        help="bundle (default); stablehlo: for jax alone; peft: of a LoRA run; embedding: a learned word's file",
    )
    sub.add_argument(
        "--weights",
        choices=("float32", "bfloat16", "int8"),
        default="float32",
        help="of a bundle: kernels as they are (default), in half or in a quarter of the bytes",
    )
    sub.add_argument("--text_encoder", type=user_path, metavar="DIR", help="pretrained encoder; default: as noted")
    add_lora_flag(sub)
    sub.add_argument("--license", default="unknown", metavar="ID", help="for the model card, e.g. apache-2.0")
    sub.add_argument("--overwrite", action="store_true", help="replace a bundle, or programs, that are there")


def run(args: argparse.Namespace) -> None:
    """Writes the directory, loads it again, compares, and prints its path.

    Raises:
      UserError: it cannot be written so, or weights in fewer bits are asked for outside of a bundle.
    """
    if args.weights != "float32" and args.format != "bundle":
        from imagen_jax.errors import UserError

        raise UserError(f"--weights={args.weights} is of bundles; got --format={args.format}: leave one of them out")
    if args.format == "peft":
        _export_lora(args)
        return
    if args.format == "embedding":
        from imagen_jax.finetune.words import write_word

        write_word(args.source, args.directory, args.overwrite)
        print(args.directory)
        return
    from imagen_jax.sampling.cascade import Cascade

    cascade = Cascade.load(args.source, text_encoder=args.text_encoder, lora=args.lora)
    if args.format == "stablehlo":
        cascade.export(args.directory, format=args.format, overwrite=args.overwrite)
        print(args.directory)
        return
    companions = _companions(args.source, cascade, args.license)
    changes = cascade.export(
        args.directory, format=args.format, companions=companions, overwrite=args.overwrite, form=args.weights
    )
    if args.weights != "float32":
        for name, change in changes.items():
            print(f"stage {name}: with {args.weights} weights the output of one call changes by {100 * change:.2g} %")
    print(args.directory)


def _export_lora(args: argparse.Namespace) -> None:
    """Writes the factors of a LoRA run in PEFT's form."""
    from imagen_jax.errors import UserError
    from imagen_jax.finetune.loras import Lora
    from imagen_jax.finetune.peft import write_peft

    if args.lora:
        raise UserError(
            f"--lora ({', '.join(args.lora)}) is merged into a bundle; --format=peft writes one LoRA as it is"
        )
    write_peft(Lora.of_run(args.source), args.directory, overwrite=args.overwrite)
    print(args.directory)


def _companions(source: str, cascade: "Cascade", license: str) -> dict[str, bytes]:
    """Model card, data card, and the versions that each stage was trained with, where the run holds them."""
    from imagen_jax.export.bundle import CARD, is_bundle
    from imagen_jax.files import as_path, files_under
    from imagen_jax.report.model_card import CardOptions, model_card

    folder = as_path(source)
    if is_bundle(source):  # It has its own, of the run that it is from.
        names = [name for name in files_under(source) if name == CARD or name.startswith("training/")]
        return {name: (folder / name).read_bytes() for name in names}
    found = {"README.md": model_card(folder, CardOptions(license=license)).encode()}
    kept = {f"training/{name}/{_VERSIONS}": folder / name / _VERSIONS for name in cascade.names}
    kept[f"training/{_VERSIONS}"] = folder / _VERSIONS
    kept[f"training/data/{_DATA_CARD}"] = folder / "corpus" / _DATA_CARD
    return found | {name: path.read_bytes() for name, path in kept.items() if path.is_file()}


COMMAND = Command(
    name="export",
    help="write a trained cascade as one directory that loads anywhere",
    run=run,
    add_flags=add_flags,
    order=9,
)
