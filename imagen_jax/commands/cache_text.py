"""`imagen_jax cache_text`: the captions of a corpus to a store of their embeddings."""

import argparse
from typing import Any

from imagen_jax.commands.parts.captions import cache_class, captions_of_corpus
from imagen_jax.commands.parts.command import GinCommand


def cache_corpus(config: Any) -> None:
    """Embeds the captions of the corpus that a CacheConfig names; several processes share the work."""
    import jax

    from imagen_jax.text.store.cache import cache_text

    processes = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    cache_text(config, **captions_of_corpus(config), **processes)


def run(args: argparse.Namespace, config: Any, operative: str) -> None:
    """Writes the store, or what of it is missing."""
    cache_corpus(config)


COMMAND = GinCommand(
    name="cache_text",
    help="embed every caption of a corpus once and store the embeddings",
    config_class=cache_class,
    run=run,
    order=3,
    several_hosts=True,
)
