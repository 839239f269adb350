"""The guard of `imagen_jax serve`, as its flags say."""

import argparse

from imagen_jax.export.bundle import DIGESTS, is_bundle
from imagen_jax.files import as_path, sha256_of_file
from imagen_jax.safety.audit import AuditLog
from imagen_jax.safety.guard import Guard
from imagen_jax.safety.prompt_filter import PromptFilter
from imagen_jax.safety.provenance import Provenance
from imagen_jax.versions import code_version


def guard_of(args: argparse.Namespace) -> Guard:
    """The parts of safety that the flags leave on.

    Raises:
      UserError: the list of words is none, or the log cannot be written.
    """
    return Guard(
        prompt_filter=None if args.prompt_filter == "off" else PromptFilter.load(args.prompt_filter),
        watermark=None if args.watermark == "off" else args.watermark,
        provenance=_provenance(args.checkpoint) if args.provenance == "on" else None,
        audit=None if args.audit_log == "off" else AuditLog(path=args.audit_log, prompts=args.audit_prompts),
    )


def _provenance(checkpoint: str) -> Provenance:
    digests = as_path(checkpoint) / DIGESTS
    # That a bundle has none, who loads it tells.
    bundle = sha256_of_file(digests) if is_bundle(checkpoint) and digests.is_file() else None
    return Provenance(generator=f"imagen_jax {code_version()}", bundle=bundle)
