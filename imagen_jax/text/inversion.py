"""Words with learned vectors (textual inversion, arXiv 2208.01618): rows of a T5's token table that it did not have.

A word in a caption, such as <gorp>, stands for one or more tokens of its own. Their ids follow those of the encoder;
their vectors enter the frozen T5 where rows of its table would, and everything after them is as it was.

A word's file is .safetensors with one array, [tokens, width] under the word, as diffusers' "learned_embeds" has it
(https://huggingface.co/docs/diffusers/training/text_inversion); its header names the encoder by digest.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from imagen_jax.errors import UserError
from imagen_jax.files import local_copy, write_bytes
from imagen_jax.text.encoder import TextConfig, TextEncoder
from imagen_jax.text.encoders.t5 import EncoderStack, T5Config
from imagen_jax.typing import Array, Bool, Float, Int, PyTree

_ENCODER = "encoder"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnedWord:
    """A word and its vectors.

    Args:
      word: as it stands in captions; no white space.
      vectors: float32 [tokens, width of the encoder].
      encoder: SHA-256 of the encoder's parameters.

    Raises:
      UserError: the word is empty or holds white space, or the vectors are no finite matrix.
    """

    word: str
    vectors: np.ndarray
    encoder: str

    def __post_init__(self) -> None:
        if not self.word or self.word.split() != [self.word]:
            raise UserError(f"the learned word {self.word!r} must be one word without white space, e.g. <gorp>")
        if self.vectors.ndim != 2 or not self.vectors.size or not np.isfinite(self.vectors).all():
            raise UserError(f"the vectors of {self.word!r} must be finite numbers [tokens, width]; learn them again")

    def save(self, path: str) -> None:
        """Writes the word's file."""
        arrays = {self.word: np.ascontiguousarray(self.vectors, np.float32)}
        write_bytes(path, save(arrays, {"format": "pt", _ENCODER: self.encoder}), sync=True)

    @classmethod
    def load(cls, path: str) -> "LearnedWord":
        """Reads a word's file.

        Raises:
          UserError: it is not there, is damaged, or holds no single word of a known encoder.
        """
        try:
            with safe_open(local_copy(path), framework="np") as file:
                names, told = list(file.keys()), file.metadata() or {}
                if len(names) != 1 or _ENCODER not in told:
                    raise UserError(
                        f"{path} holds {len(names)} arrays and {'an' if _ENCODER in told else 'no'} encoder's digest; "
                        "expected the file of one word, as `imagen_jax export --format=embedding` writes it"
                    )
                stored = file.get_tensor(names[0])
        except (OSError, SafetensorError, TypeError, AttributeError) as error:  # The last two: a type NumPy lacks.
            raise UserError(
                f"the embedding {path} cannot be read ({error}); check the path, or export it again"
            ) from error
        if not jnp.issubdtype(stored.dtype, jnp.floating):
            raise UserError(f"the embedding {path} holds {stored.dtype}, expected float32; export it again")
        # A number too large for float32 becomes infinite, which the word refuses.
        with np.errstate(over="ignore"):
            vectors = np.asarray(stored, np.float32)
        return cls(word=names[0], vectors=vectors, encoder=told[_ENCODER])


class WordEncoder(TextEncoder):
    """A T5 that knows learned words beside its vocabulary; its fingerprint is that of the T5."""

    def __init__(
        self,
        config: TextConfig,
        words: Sequence[LearnedWord],
        mesh: Mesh | None = None,
        expected: Mapping[str, Any] | None = None,
    ):
        """Opens the encoder as `TextEncoder` does.

        Args:
          config, mesh, expected: as for `TextEncoder`.
          words: at least one.

        Raises:
          UserError: as `TextEncoder`; or the encoder is no T5, a word is there twice or was learned with another one.
        """
        super().__init__(config, mesh, expected)
        sizes = self.sizes
        if not isinstance(sizes, T5Config):
            raise UserError(f"learned words are for T5 encoders, this one is {type(sizes).__name__}; leave them out")
        self._words, first = dict[str, list[int]](), sizes.vocab_size
        for one in words:
            if one.word in self._words:
                raise UserError(f"the learned word {one.word!r} is given twice; give each once")
            if one.vectors.shape[1] != sizes.embed_dim or one.encoder != self._params_sha256:
                raise UserError(
                    f"the learned word {one.word!r} is of another text encoder: width {one.vectors.shape[1]}, digest "
                    f"{one.encoder[:12]}; this one has {sizes.embed_dim}, {self._params_sha256[:12]}"
                )
            self._words[one.word] = list(range(first, first + len(one.vectors)))
            first += len(one.vectors)
        # Where several words begin at one place the longest is meant: <dogs>, not <dog> and an s.
        longest_first = sorted(self._words, key=len, reverse=True)
        self._split = re.compile(f"({'|'.join(map(re.escape, longest_first))})")
        self._vectors = np.concatenate([one.vectors for one in words])
        self._apply = jax.jit(lambda *arrays: encode_with(sizes, *arrays))

    def _pieces(self, captions: Sequence[str]) -> list[list[int]]:
        return [self._ids_of(caption) for caption in captions]

    def _ids_of(self, caption: str) -> list[int]:
        ids: list[int] = []
        for part in self._split.split(caption):
            if part in self._words:
                ids += self._words[part]
            elif part.strip():
                ids += super()._pieces([part])[0]
        return ids

    def _encode_ids(self, ids: np.ndarray, mask: np.ndarray) -> Array:
        return self._apply(self._checked.params, self._vectors, ids, mask)


def open_encoder(config: TextConfig, embeddings: Sequence[str], expected: Mapping[str, Any]) -> TextEncoder:
    """A text encoder, which knows the learned words of files if there are any.

    Args:
      config, expected: as for `TextEncoder`.
      embeddings: files of learned words.

    Raises:
      UserError: as `LearnedWord.load` and `WordEncoder`.
    """
    words = [LearnedWord.load(file) for file in embeddings]
    return WordEncoder(config, words, expected=expected) if words else TextEncoder(config, expected=expected)


class IdEncoder(WordEncoder):
    """Gives each token's id in the place of its embedding: whoever trains the vectors runs the encoder itself."""

    def encode(self, captions: Sequence[str]) -> tuple[Float[np.ndarray, "b n d"], Bool[np.ndarray, "b n"]]:
        """Ids as float32, which holds them exactly, repeated over the width; and the mask of the real tokens."""
        shape = (len(captions), self.config.max_length)
        text, mask = np.zeros((*shape, self.sizes.embed_dim), np.float32), np.zeros(shape, bool)
        for i, ids in enumerate(self.tokenize(captions)):
            text[i, : len(ids)], mask[i, : len(ids)] = np.asarray(ids, np.float32)[:, None], True
        return text, mask


def encode_with(
    config: T5Config,
    params: PyTree,
    vectors: Float[Array, "k d"],
    ids: Int[Array, "b n"],
    mask: Bool[Array, "b n"],
) -> Float[Array, "b n d"]:
    """Token outputs of a T5, where ids beyond its own take learned vectors.

    Args:
      config: sizes.
      params: of the T5.
      vectors: of ids config.vocab_size, config.vocab_size + 1, ….
      ids, mask: tokens, and which of them are real; outputs elsewhere carry no meaning.
    """
    number = ids - config.vocab_size
    known = jnp.take(params["token_embedder"]["embedding"], jnp.minimum(ids, config.vocab_size - 1), axis=0)
    learned = jnp.take(vectors, jnp.clip(number, 0, vectors.shape[0] - 1), axis=0)
    entered = jnp.where((number >= 0)[..., None], learned, known).astype(config.dtype)
    encoded: Any = EncoderStack(config, jnp.float32).apply({"params": params["encoder"]}, entered, mask)
    return encoded.astype(jnp.float32)
