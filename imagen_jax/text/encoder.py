"""Captions to token embeddings: the frozen text encoder of Imagen (section 2.1).

A caption becomes the ids of its pieces and the special tokens that its vocabulary puts around them (T5: the
end-of-sequence token after), at most max_length together: a longer caption loses its last pieces, keeps the special
tokens, and is counted in `num_truncated`. "" is the special tokens alone.

Classifier-free guidance does not use the embedding of "": training drops the text of an example with
probability cond_drop_rate by setting its embeddings to zero and its mask to False (section 2.2), and sampling
does the same for the unconditional half. The models do that; nothing here or in the store is dropped.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from imagen_jax.checks import check_count, check_path
from imagen_jax.errors import UserError
from imagen_jax.sharding.rules import replicated
from imagen_jax.text.cleaning import clean_caption
from imagen_jax.text.encoders.config import EncoderConfig
from imagen_jax.text.encoders.t5 import T5Config
from imagen_jax.text.encoders.t5_params import params_sha256, random_params
from imagen_jax.text.store.format import fingerprint_differences
from imagen_jax.text.tokenizer import Tokenizer
from imagen_jax.text.weights.encoder_copy import known_sha256
from imagen_jax.text.weights.pretrained import LoadedEncoder, Pretrained, check_positions, load_encoder
from imagen_jax.typing import Array, Bool, Float, PyTree

# Batches are padded to few sizes and lengths, so that few programs are compiled.
_BATCH_SIZES = (8, 64)
_LENGTHS = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
_TOO_LONG = "TextConfig.max_length is too long"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig:
    """A text encoder: whose parameters, which vocabulary, how many tokens.

    Args:
      encoder: a T5Config draws a frozen random encoder of these sizes from `seed`; a Pretrained loads one.
      vocabulary_path: SentencePiece `.model` file, a Hugging Face folder that holds a vocabulary of T5, CLIP or BERT,
        or "bytes" (ByT5).
      max_length: most tokens of a caption, the special tokens around it included; >= 2, and no more than the
        encoder has positions (CLIP: 77, BERT: 512).
      clean: mend broken Unicode and HTML entities of captions first (see `cleaning`), as DeepFloyd IF does.
      seed: draws random parameters, >= 0; equal seeds give equal parameters.
    """

    encoder: T5Config | Pretrained
    vocabulary_path: str
    max_length: int
    clean: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.encoder, T5Config | Pretrained):
            raise UserError(f"TextConfig.encoder must be a T5Config or a Pretrained; got {self.encoder!r}")
        check_path("TextConfig.vocabulary_path", self.vocabulary_path)
        if not isinstance(self.clean, bool):
            raise UserError(f"TextConfig.clean must be True or False; got {self.clean!r}")
        for name, least in (("max_length", 2), ("seed", 0)):
            check_count(f"TextConfig.{name}", getattr(self, name), least)
        if isinstance(self.encoder, Pretrained) and self.encoder.sizes is not None:
            check_positions(self.max_length, self.encoder.sizes, _TOO_LONG)

    def sizes(self) -> EncoderConfig:
        """Sizes of the encoder; of a checkpoint, what its shapes tell."""
        return self.encoder if isinstance(self.encoder, T5Config) else self.encoder.config()


class TextEncoder:
    """Tokenises and encodes captions in batches.

    Attributes:
      config: what it was made from.
      sizes: of the encoder.
      num_truncated: captions cut at max_length so far.
    """

    def __init__(self, config: TextConfig, mesh: Mesh | None = None, expected: Mapping[str, Any] | None = None):
        """Opens the vocabulary and looks at the checkpoint; parameters are read or drawn when first needed.

        Args:
          config: the encoder.
          mesh: devices that parameters and batches are divided over; None is the first local device.
          expected: `fingerprint` that it must have; parameters are compared when they are loaded.

        Raises:
          UserError: another encoder or vocabulary is expected; vocabulary or checkpoint is missing or damaged; the
            vocabulary has more pieces than the encoder has embeddings; or max_length does not fit the encoder's
            positions or the special tokens.
        """
        self.config, self._mesh, self._expected = config, mesh, dict(expected or {})
        self.num_truncated = 0
        self._tokenizer = Tokenizer(config.vocabulary_path)
        self.sizes = config.sizes()
        if self._tokenizer.vocab_size > self.sizes.vocab_size:
            raise UserError(
                f"the vocabulary {config.vocabulary_path!r} has {self._tokenizer.vocab_size} pieces, but the "
                f"encoder's vocab_size is {self.sizes.vocab_size}; use the vocabulary that came with the encoder, or "
                "raise the vocab_size of a random one"
            )
        check_positions(config.max_length, self.sizes, _TOO_LONG)
        if config.max_length <= self._frame_length:
            raise UserError(
                f"TextConfig.max_length ({config.max_length}) leaves no room for a caption: this vocabulary puts "
                f"{self._frame_length} special tokens around it; choose at least {self._frame_length + 1}"
            )
        self._check_expected({"vocabulary": self._tokenizer.sha256, "encoder_config": self.sizes.fingerprint()})

    def _check_expected(self, found: Mapping[str, Any]) -> None:
        wanted = {name: self._expected[name] for name in found if name in self._expected}
        differences = fingerprint_differences(found, wanted)
        if differences:
            raise UserError(
                f"this is not the text encoder that the stages were trained with ({'; '.join(differences)}): "
                f"vocabulary {self.config.vocabulary_path!r}, encoder {self.config.encoder}. Point to the one "
                f"of the training, or restore it from a copy"
            )

    @functools.cached_property
    def _loaded(self) -> LoadedEncoder:
        encoder = self.config.encoder
        if isinstance(encoder, T5Config):
            params = random_params(encoder, self.config.seed)
            return LoadedEncoder(encoder, jax.device_put(params, self._mesh and replicated(self._mesh)), self._mesh)
        return load_encoder(encoder.path, config=self.sizes, mesh=self._mesh, first_layers=encoder.first_layers)

    @functools.cached_property
    def _checked(self) -> LoadedEncoder:
        """The encoder, whose parameters are those that are expected."""
        if "encoder" in self._expected:
            self._check_expected({"encoder": self._params_sha256})
        return self._loaded

    @functools.cached_property
    def _params_sha256(self) -> str:
        known = (
            None
            if isinstance(self.config.encoder, T5Config) or self.config.encoder.first_layers is not None
            else known_sha256(self.config.encoder.path, self.sizes.dtype)
        )
        return known or params_sha256(self._loaded.params)

    @property
    def params(self) -> PyTree:
        """The encoder's parameters on their devices; read or drawn where they are not there."""
        return self._checked.params

    def release(self) -> None:
        """Frees the parameters; they are read or drawn again when they are next needed."""
        for name in ("_checked", "_loaded"):
            self.__dict__.pop(name, None)

    @property
    def _frame_length(self) -> int:
        return len(self._tokenizer.prefix) + len(self._tokenizer.suffix)

    def count_tokens(self, captions: Sequence[str]) -> list[int]:
        """Tokens of each caption with the special tokens around it, before it is cut at max_length."""
        return [len(ids) + self._frame_length for ids in self._pieces(captions)]

    def count_unknown(self, captions: Sequence[str]) -> list[int]:
        """Tokens of each caption that stand for what the vocabulary does not know."""
        unknown = self._tokenizer.unk_id
        return [ids.count(unknown) if unknown is not None else 0 for ids in self._pieces(captions)]

    def tokenize(self, captions: Sequence[str]) -> list[list[int]]:
        """Token ids of each caption, cut to max_length, with the special tokens around them."""
        most = self.config.max_length - self._frame_length
        pieces = self._pieces(captions)
        self.num_truncated += sum(len(ids) > most for ids in pieces)
        return [[*self._tokenizer.prefix, *ids[:most], *self._tokenizer.suffix] for ids in pieces]

    def _pieces(self, captions: Sequence[str]) -> list[list[int]]:
        return self._tokenizer.encode([clean_caption(one) for one in captions] if self.config.clean else captions)

    def encode_unpadded(self, captions: Sequence[str], batch_size: int = 256) -> list[Float[np.ndarray, "_n d"]]:
        """Token embeddings of each caption, without padding.

        Args:
          captions: any number of captions.
          batch_size: most captions encoded at once; >= 1.
        """
        return self.encode_tokens(self.tokenize(captions), batch_size)

    def encode_tokens(self, tokens: Sequence[Sequence[int]], batch_size: int = 256) -> list[Float[np.ndarray, "_n d"]]:
        """Token embeddings of each list of ids, without padding; those of like length are encoded together."""
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
        text = np.zeros((*shape, self.sizes.embed_dim), np.float32)
        mask = np.zeros(shape, bool)
        for i, embedding in enumerate(self.encode_unpadded(captions)):
            text[i, : len(embedding)] = embedding
            mask[i, : len(embedding)] = True
        return text, mask

    def fingerprint(self, dtype: str = "float32") -> dict[str, Any]:
        """Identity of this encoder, to which an embedding store is tied (see EmbeddingStore.check).

        Args:
          dtype: the dtype that the embeddings are stored in.
        """
        return {
            "encoder": self._params_sha256,
            "encoder_config": self.sizes.fingerprint(),
            "vocabulary": self._tokenizer.sha256,
            "max_length": self.config.max_length,
            "clean": self.config.clean,
            "dtype": dtype,
        }

    def _encode_batch(self, tokens: Sequence[Sequence[int]], batch_size: int) -> np.ndarray:
        longest = max(len(ids) for ids in tokens)
        length = next((size for size in _LENGTHS if size >= longest), self.config.max_length)
        rows = next((size for size in _BATCH_SIZES if len(tokens) <= size < batch_size), batch_size)
        padded = np.full((rows, min(length, self.config.max_length)), self._tokenizer.pad_id, np.int32)
        # CLIP pads with its last token: the ids do not tell where a caption ends.
        mask = np.zeros(padded.shape, bool)
        for row, real, ids in zip(padded, mask, tokens, strict=False):
            row[: len(ids)], real[: len(ids)] = ids, True
        return np.asarray(self._encode_ids(padded, mask))[: len(tokens)]

    def _encode_ids(self, ids: np.ndarray, mask: np.ndarray) -> Array:
        return self._checked.encode(ids, mask)
