"""The guard of `imagen_jax serve`, as its flags say."""

import argparse

from imagen_jax.safety.audit import AuditLog
from imagen_jax.safety.guard import Guard
from imagen_jax.safety.prompt_filter import PromptFilter


def guard_of(args: argparse.Namespace) -> Guard:
    """The parts of safety that the flags leave on.

    Raises:
      UserError: the list of words is none, or the log cannot be written.
    """
    return Guard(
        prompt_filter=None if args.prompt_filter == "off" else PromptFilter.load(args.prompt_filter),
        watermark=None if args.watermark == "off" else args.watermark,
        audit=None if args.audit_log == "off" else AuditLog(path=args.audit_log, prompts=args.audit_prompts),
    )
