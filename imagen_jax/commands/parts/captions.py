"""The captions of a corpus, as the embedding store takes them: the join of the rooms data and text."""

from typing import Any


def cache_class() -> type:
    """Imports CacheConfig."""
    from imagen_jax.text.store.cache import CacheConfig

    return CacheConfig


def captions_of_corpus(config: Any) -> dict[str, Any]:
    """Opens the corpus that a CacheConfig names.

    Returns:
      The arguments examples, num_examples and corpus_id of `cache_text` and `validate_cache`.
    """
    from imagen_jax.data.records import Corpus

    corpus = Corpus(config.corpus_dir)
    num_examples = sum(corpus.num_examples(split) for split in corpus.splits)
    return {"examples": corpus.captions(), "num_examples": num_examples, "corpus_id": corpus.digest}
