"""Parameters of vision transformers and of CLIP's text half from Hugging Face folders."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta
from flax.traverse_util import flatten_dict, unflatten_dict

from imagen_jax.errors import UserError, listed
from imagen_jax.text.weights.checkpoint_arrays import SafetensorsArrays
from imagen_jax.text.weights.sources import Table, layer_rows, match, norm_rows, num_layers
from imagen_jax.text.weights.transformer_weights import CLIP_DENSE, CLIP_NORMS, CLIP_TABLE
from imagen_jax.typing import PyTree

_VISION, _DINO = r"vision_model\.", r"(?:dinov2(?:_with_registers)?\.)?"

CLIP_VISION: Table = (
    (_VISION + r"embeddings\.class_embedding", "class_embedding", False),
    (_VISION + r"embeddings\.patch_embedding\.weight", "patch_kernel", False),
    (_VISION + r"embeddings\.position_embedding\.weight", "position_embedding", False),
    *norm_rows(_VISION + "pre_layrnorm", "pre_layer_norm"),
    *layer_rows(_VISION + r"encoder\.layers\.(\d+)\.", CLIP_DENSE, CLIP_NORMS),
    *norm_rows(_VISION + "post_layernorm", "post_layer_norm"),
    (r"visual_projection\.weight", "projection", True),
)
CLIP_TEXT: Table = (
    *CLIP_TABLE,
    *norm_rows(r"text_model\.final_layer_norm", "final_layer_norm"),
    (r"text_projection\.weight", "projection", True),
)
DINOV2: Table = (
    (_DINO + r"embeddings\.cls_token", "class_embedding", False),
    (_DINO + r"embeddings\.register_tokens", "registers", False),
    (_DINO + r"embeddings\.patch_embeddings\.projection\.weight", "patch_kernel", False),
    (_DINO + r"embeddings\.patch_embeddings\.projection\.bias", "patch_bias", False),
    (_DINO + r"embeddings\.position_embeddings", "position_embedding", False),
    *layer_rows(
        _DINO + r"encoder\.layer\.(\d+)\.",
        {
            "attention.attention.query": "attention.query",
            "attention.attention.key": "attention.key",
            "attention.attention.value": "attention.value",
            "attention.output.dense": "attention.out",
            "mlp.fc1": "mlp.wi",
            "mlp.fc2": "mlp.wo",
        },
        {"norm1": "pre_attention_layer_norm", "norm2": "pre_mlp_layer_norm"},
    ),
    (_DINO + r"encoder\.layer\.(\d+)\.layer_scale1\.lambda1", "encoder.layers_{}.attention_scale", False),
    (_DINO + r"encoder\.layer\.(\d+)\.layer_scale2\.lambda1", "encoder.layers_{}.mlp_scale", False),
    *norm_rows(_DINO + "layernorm", "post_layer_norm"),
)


def load_params(
    arrays: SafetensorsArrays,
    table: Table,
    init: Callable[[], PyTree],
    layers: int,
    changed: Mapping[str, Callable[[np.ndarray], np.ndarray]] | None = None,
) -> PyTree:
    """Parameters of a network, float32.

    Args:
      arrays: the folder's.
      table: from its names to dotted paths.
      init: makes the parameters; is only asked for their shapes.
      layers: that the config states.
      changed: changes to single parameters, by dotted path.

    Raises:
      UserError: a parameter is missing or of another shape.
    """
    sources = match(arrays, table)
    # Every layer is traced, however many a damaged config states.
    if layers > num_layers(sources):
        raise UserError(
            f"{arrays.path} has arrays of {num_layers(sources)} layers, its config.json says {layers}; download it "
            "again"
        )
    shapes = flatten_dict(meta.unbox(jax.eval_shape(init)["params"]), sep=".")
    made: dict[str, Any] = {}
    for path, source in sources.items():
        if path not in shapes:
            continue
        value = source.read(arrays, (slice(None),) * len(arrays.shapes[source.name])).astype(np.float32)
        if path == "patch_kernel":
            value = value.reshape(len(value), -1).T
        elif value.ndim == 3:
            # A batch of one stands before DINOv2's tokens.
            value = value[0] if path != "class_embedding" else value[0, 0]
        made[path] = (changed or {}).get(path, lambda same: same)(value)
    wrong = [
        f"{path}: got {made[path].shape if path in made else 'nothing'}, expected {leaf.shape}"
        for path, leaf in shapes.items()
        if path not in made or made[path].shape != leaf.shape
    ]
    if wrong:
        raise UserError(
            f"{arrays.path} does not hold the network of its config.json, {len(wrong)} of {len(shapes)} parameters "
            f"differ: {listed(wrong[:3])}; download it again"
        )
    return unflatten_dict({path: jnp.asarray(value) for path, value in made.items()}, sep=".")
