"""CLIP, both halves: embeddings of images and captions in one space, and their score."""

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.checks import check_count
from imagen_jax.errors import UserError
from imagen_jax.evals.features.extractor import TransformerExtractor, folder_fingerprint, in_batches
from imagen_jax.evals.features.pixels import CLIP_MEAN, CLIP_STD, Preparation, read_preparation
from imagen_jax.evals.features.vit import CLIPText, ViT, ViTConfig
from imagen_jax.evals.features.vit_weights import CLIP_TEXT, CLIP_VISION, load_params
from imagen_jax.evals.metrics import clip_score
from imagen_jax.text.encoders.clip import CLIPConfig
from imagen_jax.text.tokenizer import Tokenizer
from imagen_jax.text.weights.checkpoint_arrays import SafetensorsArrays
from imagen_jax.text.weights.transformer_weights import ACTIVATION_NAMES, clip_stated
from imagen_jax.typing import Array, Float, Int, UInt8

LAYER = "image_features"
# transformers leaves out what equals its defaults, which are those of ViT-B/32.
_VISION_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
_TEXT_DEFAULTS = {
    "vocab_size": 49408,
    "embed_dim": 512,
    "num_layers": 12,
    "mlp_dim": 2048,
    "max_positions": 77,
}
# Files of before 2023 say 2 and mean the largest id.
_LEGACY_EOS = 2
_LENGTHS = (16, 32, 48, 64)


class CLIPExtractor(TransformerExtractor):
    """Embeddings by a CLIP model of transformers' names: OpenAI's and OpenCLIP's, of any size.

    Args:
      path: the folder: config.json, .safetensors, for captions a vocabulary, and preprocessor_config.json where the
        images are not prepared as CLIP's are.
      config: what config.json holds.
      batch_size: images or captions computed at a time; >= 1.

    Attributes:
      kind: "clip".
      layers: ("image_features",).
      fingerprint: sha256 of the sha256s of config.json and the weights.

    Raises:
      UserError: the folder holds another network, or is damaged.
    """

    kind = "clip"
    layers = (LAYER,)

    def __init__(self, path: str, config: Mapping[str, Any], batch_size: int):
        check_count("batch_size", batch_size)
        self._path = path
        arrays = SafetensorsArrays(path)
        try:
            self._text, self._vision, width = _configs(config)
            self._eos = int({**(config.get("text_config") or {})}.get("eos_token_id", 49407))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, UserError) as error:
            raise UserError(
                f"{path}/config.json is not that of a CLIP model ({type(error).__name__}: {error}); download it again"
            ) from error
        side, key = self._vision.image_size, jax.random.key(0)
        preparation = read_preparation(path, Preparation(size=side, crop=side, mean=CLIP_MEAN, std=CLIP_STD))
        if preparation.side(side) != side:
            raise UserError(
                f"{path}/preprocessor_config.json makes images of {preparation.side(side)} pixels, and the network "
                f"of its config.json takes {side}; download it again"
            )
        super().__init__(preparation, side, batch_size)
        vision, text = ViT(self._vision, "clip", width), CLIPText(self._text, width)
        # Made inside, for their shapes alone: a damaged config may state images of any size.
        self._vision_params = load_params(
            arrays, CLIP_VISION, lambda: vision.init(key, jnp.zeros((1, side, side, 3))), self._vision.num_layers
        )
        ids = jnp.zeros((1, 2), jnp.int32)
        self._text_params = load_params(
            arrays, CLIP_TEXT, lambda: text.init(key, ids, ids[:, 0]), self._text.num_layers
        )
        self._of_pixels = jax.jit(lambda params, x: _unit(vision.apply({"params": params}, x)))
        self._of_ids = jax.jit(lambda params, ids, ends: _unit(text.apply({"params": params}, ids, ends)))
        self.fingerprint = folder_fingerprint(path)

    def features_of_prepared(self, pixels: Float[np.ndarray, "b h w 3"]) -> Float[Array, "b _d"]:
        """Embeddings of one batch of images that `prepare` made."""
        return self._of_pixels(self._vision_params, pixels)

    def image_features(self, images: UInt8[np.ndarray, "b h w 3"]) -> Float[np.ndarray, "b _d"]:
        """Embeddings of images, of length 1.

        Args:
          images: uint8, of any size; prepared as CLIP's are.

        Raises:
          UserError: the images are no such array.
        """
        return self.features(images)[LAYER]

    def text_features(self, captions: Sequence[str] | Int[np.ndarray, "b n"]) -> Float[np.ndarray, "b _d"]:
        """Embeddings of captions, of length 1.

        Args:
          captions: texts, of which those of too many tokens are cut; or token ids with the special ones around them.

        Raises:
          UserError: there are none, the folder has no vocabulary, or an id is not in it.
        """
        ids, ends = self._ids(captions)
        rows = np.concatenate([ids, ends[:, None]], axis=1)

        def run(part: np.ndarray) -> dict[str, Array]:
            return {"text": self._of_ids(self._text_params, part[:, :-1], part[:, -1])}

        return in_batches(run, rows, self._batch_size)["text"]

    def score(
        self, images: UInt8[np.ndarray, "b h w 3"], captions: Sequence[str] | Int[np.ndarray, "_b n"]
    ) -> Float[np.ndarray, "b"]:
        """CLIP score of each image and its caption: 100 max(cosine, 0).

        Args:
          images: as for `image_features`.
          captions: as for `text_features`, as many.

        Raises:
          UserError: there are not as many captions as images.
        """
        if len(images) != len(captions):
            raise UserError(f"{len(images)} images have {len(captions)} captions; give one caption an image")
        return clip_score(self.image_features(images), self.text_features(captions)).astype(np.float32)

    def _ids(self, captions: Any) -> tuple[np.ndarray, np.ndarray]:
        """Token ids [b, n] and the place of each caption's end."""
        if isinstance(captions, np.ndarray) and captions.dtype.kind in "iu":
            ids = captions.astype(np.int32)
            if ids.ndim != 2 or not 0 < ids.shape[1] <= self._text.max_positions:
                raise UserError(f"token ids must be [b, n], n up to {self._text.max_positions}; got {captions.shape}")
            if ids.size and not 0 <= ids.min() <= ids.max() < self._text.vocab_size:
                raise UserError(f"token ids must be in [0, {self._text.vocab_size})")
            ends = ids.argmax(1) if self._eos == _LEGACY_EOS else (ids == self._eos).argmax(1)
            return ids, ends.astype(np.int32)
        if isinstance(captions, str) or not len(captions):
            raise UserError(f"captions must be a list of texts, at least one; got {captions!r}")
        vocabulary = self._vocabulary
        most = self._text.max_positions - len(vocabulary.prefix) - len(vocabulary.suffix)
        rows = [[*vocabulary.prefix, *one[:most], *vocabulary.suffix] for one in vocabulary.encode(list(captions))]
        longest = max(map(len, rows))
        length = min(next((n for n in _LENGTHS if n >= longest), longest), self._text.max_positions)
        ids = np.full((len(rows), length), vocabulary.pad_id, np.int32)
        for row, one in zip(ids, rows, strict=True):
            row[: len(one)] = one
        if ids.max() >= self._text.vocab_size:
            raise UserError(f"the vocabulary of {self._path} is larger than the model's; download the folder again")
        return ids, np.array([len(one) - len(vocabulary.suffix) for one in rows], np.int32)

    @functools.cached_property
    def _vocabulary(self) -> Tokenizer:
        return Tokenizer(os.fspath(self._path))


def _unit(x: Any) -> Array:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def _configs(content: Mapping[str, Any]) -> tuple[CLIPConfig, ViTConfig, int]:
    """Sizes of both halves and of their joint space."""
    text = CLIPConfig(**{**_TEXT_DEFAULTS, **clip_stated(content)})
    # Old files say the same twice; transformers takes the second.
    stated = {
        **_VISION_DEFAULTS,
        **(content.get("vision_config") or {}),
        **(content.get("vision_config_dict") or {}),
    }
    vision = vit_config(stated, int(stated["intermediate_size"]))
    return text, vision, int(content.get("projection_dim", 512))


def vit_config(stated: Mapping[str, Any], mlp_dim: int, **more: Any) -> ViTConfig:
    """Sizes of a vision transformer from transformers' names for them; KeyError where one is missing."""
    return ViTConfig(
        embed_dim=stated["hidden_size"],
        num_heads=stated["num_attention_heads"],
        num_layers=stated["num_hidden_layers"],
        mlp_dim=mlp_dim,
        activation=ACTIVATION_NAMES[stated["hidden_act"]],
        norm_epsilon=float(stated["layer_norm_eps"]),
        patch_size=stated["patch_size"],
        **{"image_size": stated["image_size"], **more},
    )
