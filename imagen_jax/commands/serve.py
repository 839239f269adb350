"""`imagen_jax serve`: images by HTTP from a trained cascade."""

import argparse
import importlib.util

from imagen_jax.commands.parts.command import Command
from imagen_jax.commands.parts.paths import add_text_encoder_flag, user_path
from imagen_jax.errors import UserError
from imagen_jax.safety.audit import PROMPTS
from imagen_jax.safety.prompt_filter import DEFAULT_LIST


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not whole numbers with commas between") from error


def _path_or_off(text: str) -> str:
    return text if text == "off" else user_path(text)


def add_flags(sub: argparse.ArgumentParser) -> None:
    """Adds the cascade, the address and the limits."""
    sub.add_argument("checkpoint", type=user_path, metavar="BUNDLE", help="bundle, or run directory of a cascade")
    add_text_encoder_flag(sub)
    sub.add_argument(
        "--host", default="127.0.0.1", metavar="NAME", help="address to listen on (127.0.0.1: this machine alone)"
    )
    sub.add_argument("--port", type=int, default=8000, metavar="N", help="0 takes a free one (8000)")
    sub.add_argument(
        "--batch_sizes", type=_sizes, default=(1, 4, 16), metavar="N[,N…]", help="images drawn at a time (1,4,16)"
    )
    sub.add_argument("--queue_limit", type=int, default=64, metavar="N", help="images that may wait (64)")
    sub.add_argument(
        "--steps", type=_sizes, default=(), metavar="N[,N…]", help="numbers of steps that requests may ask for (none)"
    )
    sub.add_argument("--max_images", type=int, default=8, metavar="N", help="images of a request (8)")
    sub.add_argument(
        "--prompt_filter",
        type=_path_or_off,
        default=DEFAULT_LIST,
        metavar="FILE",
        help=f"words of refused prompts, or off ({DEFAULT_LIST})",
    )
    sub.add_argument(
        "--audit_log",
        type=_path_or_off,
        default="serve_audit.jsonl",
        metavar="FILE",
        help="file that notes every request, or off (serve_audit.jsonl)",
    )
    sub.add_argument(
        "--audit_prompts",
        choices=PROMPTS,
        default=PROMPTS[0],
        help="what the log has of a prompt: its SHA-256 (digest) or itself (text)",
    )
    sub.add_argument(
        "--watermark",
        default="imagen_jax",
        metavar="KEY",
        help="key of the invisible mark that images of 256 pixels or more get, or off (imagen_jax)",
    )
    sub.add_argument(
        "--provenance", choices=("on", "off"), default="on", help="XMP in PNG files that says that a model drew them"
    )
    sub.add_argument(
        "--image_filter",
        choices=("auto", "on", "off"),
        default="auto",
        help="refuse images in which nudenet finds nudity (auto: where it is installed)",
    )
    sub.add_argument(
        "--concept_filter",
        nargs=2,
        type=user_path,
        metavar=("FILE", "CLIP"),
        help="refuse images by captions in a file and a folder of CLIP weights (none)",
    )
    sub.add_argument(
        "--c2pa",
        nargs=2,
        type=user_path,
        metavar=("CERTIFICATE", "KEY"),
        help="PEM files to sign the provenance of images with (unsigned)",
    )
    sub.add_argument("--timeout", type=float, default=300.0, metavar="S", help="seconds until a request fails (300)")


def run(args: argparse.Namespace) -> None:
    """Serves until it is stopped.

    Raises:
      UserError: the extra is not installed, or see `serving.server.serve`.
    """
    for library in ("starlette", "uvicorn", "prometheus_client", "python_multipart"):
        if importlib.util.find_spec(library) is None:
            raise UserError(f"serving needs {library}, which is not installed; pip install 'imagen_jax[serve]'")
    from imagen_jax.commands.parts.guard import guard_of
    from imagen_jax.sampling.cascade import Cascade
    from imagen_jax.serving.requests import Limits
    from imagen_jax.serving.server import ServerConfig, serve

    config = ServerConfig(
        host=args.host,
        port=args.port,
        batch_sizes=args.batch_sizes,
        queue_limit=args.queue_limit,
        steps=args.steps,
        limits=Limits(images=args.max_images, seconds=args.timeout),
        guard=guard_of(args),
    )
    serve(Cascade.load(args.checkpoint, text_encoder=args.text_encoder), config)


COMMAND = Command(
    name="serve",
    help="draw images by HTTP with a trained cascade",
    run=run,
    add_flags=add_flags,
    order=11,
)
