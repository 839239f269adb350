"""The console command: `imagen_jax MODE …`. One handler a mode; a mode's libraries load only when it runs."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from imagen_jax.errors import UserError, exit_code
from imagen_jax.sampling.flags import add_sample_flags, captions_of, options_of

# What a gin mode builds and what it calls with it: MODE: (config class, function).
GIN_TARGETS = {
    "cache_text": ("imagen_jax.text.store.cache:CacheConfig", "imagen_jax.main:cache_text"),
    "validate_cache": ("imagen_jax.text.store.cache:CacheConfig", "imagen_jax.main:validate_cache"),
    "train": ("imagen_jax.train.config:TrainConfig", "imagen_jax.commands.training:run"),
    "plan": ("imagen_jax.train.config:TrainConfig", "imagen_jax.main:plan"),
    "eval": ("imagen_jax.evals.evaluator:EvalConfig", "imagen_jax.evals.evaluator:run"),
}
DRY_RUN = "imagen_jax.planning.dry_run:run"
IMPORT_TEXT = "imagen_jax.text.weights.encoder_copy:import_text"
SAMPLE = "imagen_jax.sampling.command:run"
REPORT = "imagen_jax.report.page:write_report"

HELP = {
    "build_corpus": "turn pairs of image and caption into a corpus directory of sharded records",
    "import_text": "copy the text encoder of a t5x checkpoint or a Hugging Face folder",
    "cache_text": "embed every caption of a corpus once and store the embeddings",
    "validate_cache": "check stored embeddings against their digests, and some against the encoder",
    "train": "train one stage of the cascade, or continue its run",
    "plan": "what a training run would take on a TPU slice: memory, collectives, step time; needs no TPU",
    "sample": "draw images from captions, or change images, with a trained cascade",
    "eval": "measure how well a cascade's images match their captions",
    "report": "write one page with the curves, samples and figures of a run",
}
GIN_FLAGS = """\
  --gin.NAME=VALUE      sets the macro NAME of the gin files; repeatable
  --gin.Class.parameter=VALUE
                        sets one parameter; a VALUE that is plain text or a path needs no quotes
"""


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; --gin.X=… flags are taken out before it is used."""
    parser = argparse.ArgumentParser("imagen_jax", description="Train Imagen-style cascades.", allow_abbrev=False)
    modes = parser.add_subparsers(dest="command", required=True, metavar="MODE")
    for mode, summary in HELP.items():
        takes_gin = mode in GIN_TARGETS
        sub = modes.add_parser(
            mode,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog=GIN_FLAGS if takes_gin else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if takes_gin:
            add_gin_flags(sub)
        if mode in FLAGS:
            FLAGS[mode](sub)
    return parser


def _add_build_flags(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--images",
        required=True,
        metavar="PATH",
        help="folder of images with captions beside them, or a .csv, .jsonl or .parquet list",
    )
    sub.add_argument("--output", required=True, metavar="DIR", help="corpus directory to write")
    sub.add_argument("--image_size", type=int, required=True, metavar="N", help="side of the squares, in pixels")
    sub.add_argument(
        "--min_size", type=int, metavar="N", help="least shorter side of an image, in pixels (default: image_size)"
    )
    sub.add_argument("--name", default="images", help="name of the corpus (default images)")
    sub.add_argument(
        "--val_fraction", type=float, default=0.0, metavar="F", help="part of the images kept for validation"
    )
    sub.add_argument("--seed", type=int, default=0, help="fixes which images those are (default 0)")
    sub.add_argument("--vocab_size", type=int, metavar="N", help="also train a vocabulary of at most N pieces")
    sub.add_argument("--num_workers", type=int, default=0, metavar="N", help="decoding processes (default none)")
    sub.add_argument("--overwrite", action="store_true", help="replace a corpus of other settings")


def _add_import_flags(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--from",
        dest="source",
        required=True,
        metavar="PATH",
        help="t5x checkpoint (local or gs://), or Hugging Face folder with .safetensors files",
    )
    sub.add_argument("--to", dest="directory", required=True, metavar="DIR", help="copy to write")
    sub.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of the matrices (default float32)"
    )
    sub.add_argument("--overwrite", action="store_true", help="replace a copy that is there")


def add_gin_flags(sub: argparse.ArgumentParser) -> None:
    """Adds the flags of the modes that a gin file configures."""
    sub.add_argument(
        "--gin_file", action="append", default=[], metavar="FILE", help="gin file; repeatable, later ones win"
    )
    sub.add_argument(
        "--gin_search_paths",
        action="append",
        default=[],
        metavar="DIR[,DIR]",
        help="more folders in which gin files and their includes are looked for; repeatable",
    )


def _add_train_flags(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--dry_run",
        "--dry-run",
        action="store_true",
        help="print the operative config, parameter count, mesh, batch and memory a device; train nothing",
    )
    _add_distributed_flags(sub)


def _add_distributed_flags(sub: argparse.ArgumentParser) -> None:
    several = sub.add_argument_group("several hosts (all three together, on every host)")
    several.add_argument("--coordinator_address", metavar="HOST:PORT", help="address of process 0")
    several.add_argument("--num_processes", type=int, metavar="N", help="number of processes")
    several.add_argument("--process_id", type=int, metavar="I", help="number of this process, from 0")


def _add_plan_flags(sub: argparse.ArgumentParser) -> None:
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
    sub.add_argument("--json", metavar="PATH", help="also write the plan as JSON")


def _add_report_flags(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--run_dir", required=True, metavar="DIR", help="cascade run directory, e.g. runs/demo")


FLAGS = {
    "build_corpus": _add_build_flags,
    "import_text": _add_import_flags,
    "cache_text": _add_distributed_flags,
    "train": _add_train_flags,
    "plan": _add_plan_flags,
    "sample": add_sample_flags,
    "report": _add_report_flags,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one mode.

    Returns:
      The exit code: 0, or, told on stderr in plain words, 2 after an error of the user's, 130 after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    code = exit_code(lambda: _run(arguments))
    if code and "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized():
        os._exit(code)  # The usual exit would wait for the other hosts, and they for this one.
    return code


def _run(arguments: list[str]) -> None:
    # gin itself is slow to import, so only a mode that uses it does.
    bindings: list[str] = []
    if any(word.startswith("--gin.") for word in arguments):
        from imagen_jax.gin_config import split_gin_flags

        bindings, arguments = split_gin_flags(arguments)
    parser = build_parser()
    args = parser.parse_args(arguments)
    if bindings and args.command not in GIN_TARGETS:
        parser.error(f"{args.command} takes no --gin flags")
    if hasattr(args, "coordinator_address"):
        _start_distributed(args)
    if args.command in GIN_TARGETS:
        _run_gin_mode(args, bindings)
    else:
        handlers = {"build_corpus": _build_corpus, "import_text": _import_text, "sample": _sample, "report": _report}
        handlers[args.command](args)


def load_gin(mode: str, args: argparse.Namespace, bindings: Sequence[str]) -> tuple[Any, str]:
    """The config of a gin mode that its flags describe, and the operative config."""
    from imagen_jax import gin_config

    if not args.gin_file:
        raise UserError(f"{mode} needs a configuration; add --gin_file=FILE (see configs/experiments/)")
    search_paths = [path for word in args.gin_search_paths for path in word.split(",")]
    # A plan reads no data: nobody has to say where it would lie.
    open_paths = "not read" if mode == "plan" else None
    return gin_config.load_with_operative(
        _load(GIN_TARGETS[mode][0]), args.gin_file, bindings, search_paths, open_paths
    )


def _run_gin_mode(args: argparse.Namespace, bindings: Sequence[str]) -> None:
    config, operative = load_gin(args.command, args, bindings)
    function = GIN_TARGETS[args.command][1]
    if args.command == "plan":
        _load(function)(config, args)
    elif args.command != "train":
        _load(function)(config)
    elif args.dry_run:
        print(operative)
        _load(DRY_RUN)(config)
    else:
        _load(function)(config, operative_config=operative)


def _build_corpus(args: argparse.Namespace) -> None:
    from imagen_jax.data.builder import build_corpus

    source, config = build_inputs(args)
    report = build_corpus(source, args.output, config, num_workers=args.num_workers, overwrite=args.overwrite)
    print(f"{args.output}: {report}")


def build_inputs(args: argparse.Namespace) -> tuple[Any, Any]:
    """The Source and the BuildConfig that build_corpus' flags name."""
    from imagen_jax.data.builder import BuildConfig
    from imagen_jax.data.sources import folder_source, list_source

    config = BuildConfig(
        name=args.name,
        image_size=args.image_size,
        min_size=args.min_size,
        seed=args.seed,
        vocab_size=args.vocab_size,
    )
    open_source = list_source if os.path.isfile(args.images) else folder_source
    return open_source(args.images, val_fraction=args.val_fraction, seed=args.seed), config


def cache_text(config: Any) -> None:
    """Embeds the captions of the corpus that a CacheConfig names: the join of data/ and text/."""
    import jax

    from imagen_jax.text.store.cache import cache_text

    processes = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    cache_text(config, **_examples_of(config), **processes)


def validate_cache(config: Any) -> None:
    """Checks the store that a CacheConfig names against its corpus."""
    from imagen_jax.text.store.validate import validate_cache

    validate_cache(config, **_examples_of(config))


def _examples_of(config: Any) -> dict[str, Any]:
    from imagen_jax.data.records import Corpus

    corpus = Corpus(config.corpus_dir)
    num_examples = sum(corpus.num_examples(split) for split in corpus.splits)
    return {"examples": corpus.captions(), "num_examples": num_examples, "corpus_id": corpus.digest}


def plan(config: Any, args: argparse.Namespace) -> None:
    """Plans a run with the flags of the command line."""
    from imagen_jax.planning.plan import PlanOptions, run

    names = ("topology", "num_slices", "global_batch_size", "optimization_level", "sampler")
    run(config, PlanOptions(**{name: getattr(args, name) for name in names}), args.json, args.search)


def _import_text(args: argparse.Namespace) -> None:
    _load(IMPORT_TEXT)(args.source, args.directory, dtype=args.dtype, overwrite=args.overwrite)


def _report(args: argparse.Namespace) -> None:
    print(_load(REPORT)(args.run_dir))


def _sample(args: argparse.Namespace) -> None:
    captions = captions_of(args)
    _load(SAMPLE)(args.checkpoint, captions, **options_of(args))


def _start_distributed(args: argparse.Namespace) -> None:
    """Joins the other processes where the flags ask for it."""
    flags = {name: getattr(args, name) for name in ("coordinator_address", "num_processes", "process_id")}
    missing = [f"--{name}" for name, value in flags.items() if value is None]
    if len(missing) == len(flags):
        return
    if missing:
        raise UserError(
            f"--coordinator_address, --num_processes and --process_id belong together; {' and '.join(missing)} missing"
        )
    last = args.num_processes - 1
    if not 0 <= args.process_id <= last:
        raise UserError(f"--process_id ({args.process_id}) must be from 0 to {last}, for --num_processes={last + 1}")
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        args.coordinator_address, args.num_processes, args.process_id, heartbeat_timeout_seconds=10
    )
    sys.excepthook = _exit_at_once


def _exit_at_once(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Ends this process with its traceback, so that the other hosts notice instead of waiting for minutes."""
    sys.__excepthook__(kind, error, trace)
    sys.stderr.flush()
    os._exit(1)


def _load(name: str) -> Any:
    """The object that "package.module:attribute" names."""
    module, attribute = name.split(":")
    return getattr(importlib.import_module(module), attribute)


if __name__ == "__main__":
    sys.exit(main())
