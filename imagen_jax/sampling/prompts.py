"""Warnings of prompts that the text encoder does not take whole."""

import sys
from collections.abc import Sequence

from imagen_jax.text.encoder import TextEncoder

_MAX_SHOWN = 80


def tell_lost(encoder: TextEncoder, kind: str, prompts: Sequence[str]) -> None:
    """Tells, on stderr, of prompts that are cut and of characters that the vocabulary does not know.

    Args:
      encoder: takes the prompts.
      kind: what the prompts are called.
      prompts: as they were given.
    """
    most = encoder.config.max_length
    long = [i for i, count in enumerate(encoder.count_tokens(prompts)) if count > most]
    if long:
        print(
            f"warning: {len(long)} of {len(prompts)} {kind} are longer than the {most} tokens that the text "
            f"encoder takes and are cut there; the first: {_shown(prompts[long[0]])}",
            file=sys.stderr,
        )
    unknown = [i for i, count in enumerate(encoder.count_unknown(prompts)) if count]
    if unknown:
        print(
            f"warning: {len(unknown)} of {len(prompts)} {kind} hold characters that the vocabulary does not know, "
            f"which are drawn as one unknown word; the first: {_shown(prompts[unknown[0]])}",
            file=sys.stderr,
        )


def _shown(prompt: str) -> str:
    return repr(prompt) if len(prompt) <= _MAX_SHOWN else f"{prompt[:_MAX_SHOWN]!r}…"
