"""Checks an embedding store against its digests and against the encoder (the `validate_cache` mode)."""

from collections.abc import Iterable

import numpy as np

from imagen_jax.errors import UserError, listed
from imagen_jax.progress import Progress
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.text.store.cache import CacheConfig
from imagen_jax.text.store.reader import EmbeddingStore
from imagen_jax.typing import Float

# Least cosine of a token's stored embedding and the one encoded again: other batches and other processors sum in
# another order, bfloat16 keeps 8 bits, int8 keeps 7 and the scale of the largest number.
LEAST_COSINE = {"float32": 0.9999, "bfloat16": 0.999, "int8": 0.998}


def validate_cache(
    config: CacheConfig, examples: Iterable[tuple[bytes, str]], *, num_examples: int, corpus_id: str
) -> None:
    """Compares every file with its digest, and `config.num_validated` embeddings with what the encoder gives.

    Args:
      config: as for `cache_text`.
      examples: (key, caption) of every example; read once.
      num_examples: how many there are.
      corpus_id: as for `cache_text`.

    Raises:
      UserError: the store is of other settings or another corpus, files are damaged (each is named), or
        embeddings are not those of their captions.
    """
    encoder = TextEncoder(config.text)
    store = EmbeddingStore.open(config.store_dir)
    store.check(encoder.fingerprint(config.dtype))
    if (store.corpus_id, store.num_keys) != (corpus_id, num_examples):
        raise UserError(
            f"the embedding store {config.store_dir!r} is of corpus {store.corpus_id!r} with {store.num_keys} "
            f"examples; expected {corpus_id!r} with {num_examples}; run `imagen_jax cache_text` with overwrite set"
        )
    store.verify()
    stride = -(-num_examples // config.num_validated)
    chosen = [example for number, example in enumerate(examples) if number % stride == 0]
    least, wrong = 1.0, []
    with Progress(len(chosen), "validate_cache", "caption") as progress:
        for start in range(0, len(chosen), config.batch_size):
            keys, captions = zip(*chosen[start : start + config.batch_size], strict=True)
            pairs = zip(store.lookup(keys), encoder.encode_unpadded(captions, config.batch_size), strict=True)
            for key, caption, (stored, again) in zip(keys, captions, pairs, strict=True):
                similar = least_cosine(stored, again)
                least = min(least, similar)
                if similar < LEAST_COSINE[config.dtype]:
                    wrong.append(f"{key!r} ({caption[:60]!r}): cosine {similar:.4f}")
            progress.update(len(keys))
    if wrong:
        raise UserError(
            f"{len(wrong)} of {len(chosen)} embeddings in {config.store_dir!r} are not those of their captions, "
            f"expected a cosine of at least {LEAST_COSINE[config.dtype]}: {listed(wrong)}; run `imagen_jax cache_text` "
            "with overwrite set"
        )
    print(
        f"validate_cache: {config.store_dir} is whole: {store.num_embeddings} embeddings agree with their digests, "
        f"{len(chosen)} encoded again with a cosine of at least {least:.6f} a token",
        flush=True,
    )


def least_cosine(one: Float[np.ndarray, "_n d"], other: Float[np.ndarray, "_m d"]) -> float:
    """Least cosine between equal tokens of two embeddings; -1 where they have another number of tokens."""
    if one.shape != other.shape:
        return -1.0
    one, other = one.astype(np.float64), np.asarray(other, np.float64)
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return float(((one * other).sum(axis=1) / np.maximum(norms, 1e-30)).min(initial=1.0))
