"""Textual inversion (arXiv 2208.01618): the vectors of a new word are trained, network and text encoder are frozen.

A batch holds the ids of its tokens (`text.inversion.IdEncoder`); the loss runs the T5 on them, so that its gradient
reaches the vectors through the network and the T5.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from imagen_jax.finetune.source import Source
from imagen_jax.finetune.words import VECTORS
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.text.encoders.t5 import T5Config
from imagen_jax.text.inversion import IdEncoder, LearnedWord, encode_with
from imagen_jax.text.weights.pretrained import abstract_encoder
from imagen_jax.train.config import InversionConfig, TrainConfig
from imagen_jax.train.objective import Batch
from imagen_jax.train.stage_objective import StageObjective
from imagen_jax.typing import Array, Float, PRNGKeyArray, PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class InversionObjective(StageObjective):
    """Trains a word's vectors on the stage's loss.

    Args:
      num_vectors: tokens of the word.
      sizes: of the T5.
      start: float32 [num_vectors, width]: where the vectors begin; None, as in a plan, is zeros.
      base: the stage's parameters; None until they are needed.
      encoder: the T5; None until it is needed.
    """

    num_vectors: int
    sizes: T5Config
    start: np.ndarray | None = None
    base: Source | None = None
    encoder: TextEncoder | None = None

    def init(self, rng: PRNGKeyArray) -> PyTree:
        """The vectors as they begin."""
        shape = (self.num_vectors, self.sizes.embed_dim)
        return {VECTORS: jnp.zeros(shape) if self.start is None else jnp.asarray(self.start)}

    def frozen_spec(self, mesh: Mesh) -> PyTree:
        """Parameters of network and T5."""
        return {"network": self.network_spec(mesh), "encoder": abstract_encoder(self.sizes, mesh, 1, 2)[1]}

    def load_frozen(self, mesh: Mesh) -> PyTree:
        """The averaged parameters of the stage, and the T5's; the encoder's own copy of these is released.

        Raises:
          UserError: they are gone, damaged or of another network.
        """
        assert self.base is not None and self.encoder is not None
        spec = self.frozen_spec(mesh)
        place = lambda leaf, like: jax.device_put(np.asarray(leaf, like.dtype), like.sharding)  # noqa: E731
        encoder = jax.tree.map(place, self.encoder.params, spec["encoder"])
        self.encoder.release()
        return {"network": self.base.restore(spec["network"]), "encoder": encoder}

    def diffusion_loss(
        self, params: PyTree, frozen: PyTree, batch: Batch, rng: PRNGKeyArray, mesh: Mesh | None = None
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Loss of the frozen stage on text in which the word has these vectors."""
        ids, mask = batch["text"][..., 0].astype(jnp.int32), batch["text_mask"]
        text = encode_with(self.sizes, frozen["encoder"], params[VECTORS], ids, mask) * mask[..., None]
        return super().diffusion_loss(frozen["network"], (), {**batch, "text": text}, rng, mesh)


def first_vectors(config: InversionConfig, encoder: TextEncoder) -> np.ndarray:
    """Where the vectors begin: the mean of the start word's rows in the T5's table, or of all rows without one."""
    table = np.asarray(encoder.params["token_embedder"]["embedding"], np.float32)
    if config.start:
        ids = encoder.tokenize([config.start])[0][:-1]
        table = table[ids]
    return np.tile(table.mean(axis=0), (config.num_vectors, 1))


def word_encoder(config: TrainConfig, encoder: TextEncoder, start: np.ndarray) -> IdEncoder:
    """Reader of the captions of a run that learns a word."""
    assert config.inversion is not None
    word = LearnedWord(word=config.inversion.word, vectors=start, encoder=encoder.fingerprint()["encoder"])
    reader = IdEncoder(config.text, [word])
    reader.release()
    return reader
