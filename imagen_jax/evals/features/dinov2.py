"""DINOv2: the features of FD-DINOv2 (arXiv 2306.04675)."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.checks import check_count
from imagen_jax.errors import UserError
from imagen_jax.evals.features.clip import vit_config
from imagen_jax.evals.features.extractor import TransformerExtractor, folder_fingerprint
from imagen_jax.evals.features.pixels import IMAGENET_MEAN, IMAGENET_STD, Preparation, read_preparation
from imagen_jax.evals.features.vit import ViT
from imagen_jax.evals.features.vit_weights import DINOV2, load_params
from imagen_jax.text.weights.checkpoint_arrays import SafetensorsArrays
from imagen_jax.typing import Array, Float

_DEFAULTS = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "mlp_ratio": 4,
    "image_size": 224,
    "patch_size": 14,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
}


class DINOv2Extractor(TransformerExtractor):
    """The normed class token of a DINOv2 model of transformers' names, with or without registers.

    Args:
      path: the folder: config.json, .safetensors, and preprocessor_config.json where the images are not resized to 256
        and cropped to 224.
      config: what config.json holds.
      batch_size: images computed at a time; >= 1.

    Attributes:
      kind: "dinov2".
      layers: ("cls",).
      fingerprint: sha256 of the sha256s of config.json and the weights.

    Raises:
      UserError: the folder holds another network, or is damaged.
    """

    kind = "dinov2"
    layers = ("cls",)

    def __init__(self, path: str, config: Mapping[str, Any], batch_size: int):
        check_count("batch_size", batch_size)
        stated = {**_DEFAULTS, **config}
        registers = stated["model_type"] == "dinov2_with_registers"
        if stated.get("use_swiglu_ffn"):
            raise UserError(f"{path} has gated feed-forward blocks (giant), which are not supported; give B/14 or L/14")
        usual = Preparation(size=256, crop=224, mean=IMAGENET_MEAN, std=IMAGENET_STD)
        preparation = read_preparation(path, usual)
        try:
            side = preparation.side(int(stated["image_size"]))
            grid = int(stated["image_size"]) // int(stated["patch_size"])
            more = {"image_size": side, "num_registers": int(stated.get("num_register_tokens", 4)) if registers else 0}
            made = vit_config(stated, int(int(stated["hidden_size"]) * float(stated["mlp_ratio"])), **more)
        except (KeyError, TypeError, ValueError, ArithmeticError, UserError) as error:
            raise UserError(
                f"{path}/config.json is not that of a DINOv2 model ({type(error).__name__}: {error}); download it again"
            ) from error
        super().__init__(preparation, side, batch_size)
        network = ViT(made, "dinov2", 1)

        def resized(positions: np.ndarray) -> np.ndarray:
            return resized_positions(positions, made.grid, antialias=registers)

        self._params = load_params(
            SafetensorsArrays(path),
            DINOV2,
            lambda: network.init(jax.random.key(0), jnp.zeros((1, side, side, 3))),
            made.num_layers,
            {"position_embedding": resized if grid != made.grid else np.asarray},
        )
        self._apply = jax.jit(lambda params, x: network.apply({"params": params}, x))
        self.fingerprint = folder_fingerprint(path)

    def features_of_prepared(self, pixels: Float[np.ndarray, "b h w 3"]) -> Float[Array, "b _d"]:
        """Class tokens of one batch of images that `prepare` made."""
        return self._apply(self._params, pixels)


def resized_positions(positions: np.ndarray, grid: int, antialias: bool) -> np.ndarray:
    """Learnt positions for another number of patches, as PyTorch's bicubic interpolation makes them.

    Args:
      positions: [1 + g * g, d], the class token's first.
      grid: patches on a side.
      antialias: as for models with registers.
    """
    before = int(max(len(positions) - 1, 0) ** 0.5)
    if positions.ndim != 2 or not before or before**2 != len(positions) - 1:
        return positions  # Of no square of patches: whoever compares shapes refuses them.
    weights = _bicubic(before, grid, antialias)
    table = positions[1:].astype(np.float64).reshape(before, before, -1)
    made = np.einsum("ia,jb,abd->ijd", weights, weights, table).reshape(grid * grid, -1)
    return np.concatenate([positions[:1], made.astype(np.float32)])


def _bicubic(before: int, after: int, antialias: bool) -> np.ndarray:
    """Weights [after, before] of Keys's cubic: a = -1/2 and widened with antialias, else a = -3/4."""
    a, scale = (-0.5, before / after) if antialias else (-0.75, before / after)
    width = max(scale, 1.0) if antialias else 1.0
    weights = np.zeros((after, before))
    for row in range(after):
        centre = (row + 0.5) * scale - 0.5
        first, last = int(np.floor(centre - 2 * width)), int(np.ceil(centre + 2 * width))
        for place in range(first, last + 1):
            distance = abs(place - centre) / width
            if antialias and not 0 <= place < before:
                continue
            # Without antialias what lies outside is the edge's.
            weights[row, min(max(place, 0), before - 1)] += _cubic(distance, a)
    return weights / weights.sum(axis=1, keepdims=True)


def _cubic(x: float, a: float) -> float:
    if x <= 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2 else 0.0
