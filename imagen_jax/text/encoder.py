"""Captions to token embeddings: the frozen text encoder of Imagen (section 2.1).

A caption becomes SentencePiece ids and the end-of-sequence token, at most max_length together: a longer
caption loses its last pieces, keeps the end-of-sequence token, and is counted in `num_truncated`. "" is the
end-of-sequence token alone.

Classifier-free guidance does not use the embedding of "": training drops the text of an example with
probability cond_drop_rate by setting its embeddings to zero and its mask to False (section 2.2), and sampling
does the same for the unconditional half. The models do that; nothing here or in the store is dropped.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.errors import UserError
from imagen_jax.text import tokenizer
from imagen_jax.text.store_format import file_sha256
from imagen_jax.text.t5_encoder import T5Config, T5Encoder, params_sha256, random_params
from imagen_jax.typing import Bool, Float, PyTree

# Batches are padded to few sizes and lengths, so that few programs are compiled.
_BATCH_SIZES = (8, 64)
_LENGTHS = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig:
    """A text encoder: sizes, vocabulary, length and the seed of its frozen random parameters.

    Args:
      encoder: sizes of the T5 encoder.
      vocabulary_path: SentencePiece `.model` file.
      max_length: most tokens of a caption, the end-of-sequence token included; >= 2.
      seed: draws the parameters, >= 0; equal seeds give equal parameters.
    """

    encoder: T5Config
    vocabulary_path: str
    max_length: int
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.encoder, T5Config):
            raise UserError(f"TextConfig.encoder must be a T5Config; got {self.encoder!r}")
        if not isinstance(self.vocabulary_path, str) or not self.vocabulary_path:
            raise UserError(f"TextConfig.vocabulary_path must be a file name; got {self.vocabulary_path!r}")
        for name, least in (("max_length", 2), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise UserError(f"TextConfig.{name} must be an integer >= {least}; got {value!r}")


class TextEncoder:
    """Tokenises and encodes captions in batches.

    Attributes:
      config: what it was made from.
      num_truncated: captions cut at max_length so far.
    """

    def __init__(self, config: TextConfig, params: PyTree):
        """Args: config: sizes and vocabulary; params: the T5Encoder's, e.g. of a checkpoint.

        Raises:
          UserError: the vocabulary is missing, or has more pieces than the encoder has embeddings.
        """
        vocabulary = _load_vocabulary(config)
        self.config = config
        self.num_truncated = 0
        self._tokenizer = vocabulary.tokenizer
        self._params = jax.device_put(params)
        self._params_sha256: str | None = None
        module = T5Encoder(config.encoder)
        self._apply = jax.jit(lambda params, tokens, mask: module.apply({"params": params}, tokens, mask))

    @classmethod
    def from_config(cls, config: TextConfig) -> "TextEncoder":
        """The frozen random encoder that `config` states."""
        _load_vocabulary(config)  # its errors come before the seconds that the draw takes
        return cls(config, random_params(config.encoder, config.seed))

    def count_tokens(self, captions: Sequence[str]) -> list[int]:
        """Tokens of each caption with the end-of-sequence token, before it is cut at max_length."""
        return [len(ids) + 1 for ids in self._tokenizer.EncodeAsIds(list(captions))]

    def tokenize(self, captions: Sequence[str]) -> list[list[int]]:
        """Token ids of each caption, cut to max_length, the last one end-of-sequence."""
        most = self.config.max_length - 1
        pieces = self._tokenizer.EncodeAsIds(list(captions))
        self.num_truncated += sum(len(ids) > most for ids in pieces)
        return [[*ids[:most], tokenizer.EOS_ID] for ids in pieces]

    def encode_unpadded(self, captions: Sequence[str], batch_size: int = 256) -> list[Float[np.ndarray, "_n d"]]:
        """Token embeddings of each caption, without padding.

        Args:
          captions: any number of captions.
          batch_size: most captions encoded at once; >= 1.
        """
        tokens = self.tokenize(captions)
        by_length = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
        embeddings: list[Any] = [None] * len(tokens)
        for start in range(0, len(tokens), batch_size):
            chosen = by_length[start : start + batch_size]
            encoded = self._encode_batch([tokens[i] for i in chosen], batch_size)
            for i, row in zip(chosen, encoded, strict=True):
                embeddings[i] = row[: len(tokens[i])]
        return embeddings

    def encode(self, captions: Sequence[str]) -> tuple[Float[np.ndarray, "b n d"], Bool[np.ndarray, "b n"]]:
        """Token embeddings padded with zeros to max_length, and the mask of the real tokens."""
        shape = (len(captions), self.config.max_length)
        text = np.zeros((*shape, self.config.encoder.embed_dim), np.float32)
        mask = np.zeros(shape, bool)
        for i, embedding in enumerate(self.encode_unpadded(captions)):
            text[i, : len(embedding)] = embedding
            mask[i, : len(embedding)] = True
        return text, mask

    def fingerprint(self, dtype: str = "float32") -> dict[str, Any]:
        """What an embedding store of this encoder is tied to (see EmbeddingStore.check).

        Args:
          dtype: the dtype that the embeddings are stored in.
        """
        if self._params_sha256 is None:
            self._params_sha256 = params_sha256(self._params)
        encoder_config = dataclasses.asdict(self.config.encoder)
        encoder_config["activations"] = list(encoder_config["activations"])  # as JSON gives it back
        return {
            "encoder": self._params_sha256,
            "encoder_config": encoder_config,
            "vocabulary": file_sha256(self.config.vocabulary_path),
            "max_length": self.config.max_length,
            "dtype": dtype,
        }

    def _encode_batch(self, tokens: Sequence[Sequence[int]], batch_size: int) -> np.ndarray:
        longest = max(len(ids) for ids in tokens)
        length = next((size for size in _LENGTHS if size >= longest), self.config.max_length)
        rows = next((size for size in _BATCH_SIZES if len(tokens) <= size < batch_size), batch_size)
        padded = np.full((rows, min(length, self.config.max_length)), tokenizer.PAD_ID, np.int32)
        for row, ids in zip(padded, tokens, strict=False):
            row[: len(ids)] = ids
        encoded = self._apply(self._params, jnp.asarray(padded), jnp.asarray(padded != tokenizer.PAD_ID))
        return np.asarray(encoded)[: len(tokens)]


def _load_vocabulary(config: TextConfig) -> Any:
    vocabulary = tokenizer.load_vocabulary(config.vocabulary_path)
    if vocabulary.vocab_size > config.encoder.vocab_size:
        raise UserError(
            f"the vocabulary {config.vocabulary_path!r} has {vocabulary.vocab_size} pieces, but the "
            f"encoder's vocab_size is {config.encoder.vocab_size}; raise T5Config.vocab_size or use a "
            "smaller vocabulary"
        )
    return vocabulary
