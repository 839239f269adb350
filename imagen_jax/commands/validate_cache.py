"""`imagen_jax validate_cache`: a store of embeddings against its digests, its corpus and its encoder."""

import argparse
from typing import Any

from imagen_jax.commands.parts.captions import cache_class, captions_of_corpus
from imagen_jax.commands.parts.command import GinCommand


def run(args: argparse.Namespace, config: Any, operative: str) -> None:
    """Checks the store that a CacheConfig names against its corpus."""
    from imagen_jax.text.store.validate import validate_cache

    validate_cache(config, **captions_of_corpus(config))


COMMAND = GinCommand(
    name="validate_cache",
    help="check stored embeddings against their digests, and some against the encoder",
    config_class=cache_class,
    run=run,
    order=4,
)
