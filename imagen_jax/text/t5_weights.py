"""T5 encoders from other programs' checkpoints: which array, turned how, is which parameter.

| here                                   | t5x                       | Hugging Face                                  |
|----------------------------------------|---------------------------|-----------------------------------------------|
| token_embedder/embedding               | same (vocab, embed)       | shared.weight or encoder.embed_tokens.weight  |
| encoder/relpos_bias/rel_embedding      | same (heads, buckets)     | block 0's relative_attention_bias, transposed |
| layers_i/relative_posemb/rel_embedding | same                      | each block's relative_attention_bias          |
| layers_i/attention/{query,key,…}       | same (in, out)            | layer.0.SelfAttention.{q,k,v,o} (out, in)     |
| layers_i/mlp/{wi or wi_0, wi_1; wo}    | same                      | layer.1.DenseReluDense                        |
| layers_i/pre_{attention,mlp}_layer_norm| same                      | layer.{0,1}.layer_norm                        |
| encoder/encoder_norm                   | same                      | encoder.final_layer_norm                      |

t5x may hold its layers stacked under encoder.layers, on axis 1 unless it was told otherwise; the sizes of the norms
tell. The decoder and the optimizer are passed over.
"""

import dataclasses
import json
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from imagen_jax.errors import UserError
from imagen_jax.text.checkpoint_arrays import CheckpointArrays, Index

_NO_ENCODER = (
    "holds no T5 encoder: expected {expected}, got {got}; give the checkpoint of an encoder or of a whole model"
)


@dataclasses.dataclass(frozen=True)
class Source:
    """One parameter's array in a checkpoint.

    Args:
      name: of the array.
      transposed: the array's two dimensions stand the other way round.
      layer: (axis, number) of the layer in an array of stacked layers.
    """

    name: str
    transposed: bool = False
    layer: tuple[int, int] | None = None

    def shape(self, arrays: CheckpointArrays) -> tuple[int, ...]:
        """Shape of the parameter."""
        shape = list(arrays.shapes[self.name])
        if self.layer is not None:
            del shape[self.layer[0]]
        return tuple(reversed(shape)) if self.transposed else tuple(shape)

    def read(self, arrays: CheckpointArrays, index: Index) -> np.ndarray:
        """One slice of the parameter."""
        if self.transposed:
            return arrays.read(self.name, tuple(reversed(index))).T
        if self.layer is None:
            return arrays.read(self.name, index)
        axis, number = self.layer
        whole = (*index[:axis], slice(number, number + 1), *index[axis:])
        return arrays.read(self.name, whole).squeeze(axis)


def t5x_sources(arrays: CheckpointArrays) -> dict[str, Source]:
    """Sources of the parameters, by dotted path with layers apart, in a t5x checkpoint.

    Raises:
      UserError: it has no encoder.
    """
    names = [name for name in arrays.shapes if name.startswith(("encoder.", "token_embedder."))]
    if "encoder.encoder_norm.scale" not in names or "token_embedder.embedding" not in names:
        raise UserError(
            f"the t5x checkpoint {arrays.path} "
            + _NO_ENCODER.format(
                expected="encoder.encoder_norm.scale and token_embedder.embedding", got=_some(arrays.shapes)
            )
        )
    stacked = [name for name in names if name.startswith("encoder.layers.")]
    sources = {name: Source(name) for name in names if name not in stacked}
    if stacked:
        axis, count = _layer_axis(arrays)
        for name in stacked:
            for number in range(count):
                sources[name.replace("encoder.layers.", f"encoder.layers_{number}.")] = Source(
                    name, False, (axis, number)
                )
    return sources


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "") or "no arrays"


def _layer_axis(arrays: CheckpointArrays) -> tuple[int, int]:
    """Axis and number of stacked layers; where both axes fit, t5x's own (1)."""
    (width,) = arrays.shapes["encoder.encoder_norm.scale"]
    shape = arrays.shapes["encoder.layers.pre_attention_layer_norm.scale"]
    axis = 1 if shape[0] == width else 0
    return axis, shape[axis]


_HUGGING_FACE = (
    (r"(?:shared|encoder\.embed_tokens)\.weight", "token_embedder.embedding", False),
    (r"encoder\.final_layer_norm\.weight", "encoder.encoder_norm.scale", False),
    (r"encoder\.block\.(\d+)\.layer\.0\.SelfAttention\.q\.weight", "encoder.layers_{}.attention.query.kernel", True),
    (r"encoder\.block\.(\d+)\.layer\.0\.SelfAttention\.k\.weight", "encoder.layers_{}.attention.key.kernel", True),
    (r"encoder\.block\.(\d+)\.layer\.0\.SelfAttention\.v\.weight", "encoder.layers_{}.attention.value.kernel", True),
    (r"encoder\.block\.(\d+)\.layer\.0\.SelfAttention\.o\.weight", "encoder.layers_{}.attention.out.kernel", True),
    (
        r"encoder\.block\.(\d+)\.layer\.0\.SelfAttention\.relative_attention_bias\.weight",
        "encoder.layers_{}.relative_posemb.rel_embedding",
        True,
    ),
    (r"encoder\.block\.(\d+)\.layer\.0\.layer_norm\.weight", "encoder.layers_{}.pre_attention_layer_norm.scale", False),
    (r"encoder\.block\.(\d+)\.layer\.1\.layer_norm\.weight", "encoder.layers_{}.pre_mlp_layer_norm.scale", False),
    (
        r"encoder\.block\.(\d+)\.layer\.1\.DenseReluDense\.(wi|wi_0|wi_1|wo)\.weight",
        "encoder.layers_{}.mlp.{}.kernel",
        True,
    ),
)


def hugging_face_sources(arrays: CheckpointArrays) -> dict[str, Source]:
    """Sources of the parameters, by dotted path with layers apart, in a Hugging Face folder.

    Raises:
      UserError: it has no encoder.
    """
    sources = {}
    for name in sorted(arrays.shapes):
        for pattern, path, transposed in _HUGGING_FACE:
            if match := re.fullmatch(pattern, name):
                sources[path.format(*match.groups())] = Source(name, transposed)
    if "encoder.encoder_norm.scale" not in sources or "token_embedder.embedding" not in sources:
        raise UserError(
            f"the folder {arrays.path} "
            + _NO_ENCODER.format(expected="encoder.final_layer_norm.weight and shared.weight", got=_some(arrays.shapes))
        )
    biases = [path for path in sources if path.endswith("relative_posemb.rel_embedding")]
    if biases == ["encoder.layers_0.relative_posemb.rel_embedding"]:
        sources["encoder.relpos_bias.rel_embedding"] = sources.pop(biases[0])
    return sources


def infer_config(arrays: CheckpointArrays, sources: Mapping[str, Source]) -> dict[str, Any]:
    """What the shapes tell of a T5Config: its sizes, gating, and whose the position bias is."""

    def shape(path: str) -> tuple[int, ...]:
        if path not in sources:
            raise UserError(f"the checkpoint {arrays.path} lacks {path}; copy or download it again")
        return sources[path].shape(arrays)

    vocab_size, embed_dim = shape("token_embedder.embedding")
    per_layer = "encoder.relpos_bias.rel_embedding" not in sources
    bias = "encoder.layers_0.relative_posemb.rel_embedding" if per_layer else "encoder.relpos_bias.rel_embedding"
    num_heads, num_buckets = shape(bias)
    gated = "encoder.layers_0.mlp.wi_0.kernel" in sources
    layers = {int(match[1]) for path in sources if (match := re.match(r"encoder\.layers_(\d+)\.", path))}
    return {
        "vocab_size": vocab_size,
        "embed_dim": embed_dim,
        "num_heads": num_heads,
        "head_dim": shape("encoder.layers_0.attention.query.kernel")[1] // num_heads,
        "num_layers": max(layers) + 1,
        "mlp_dim": shape("encoder.layers_0.mlp.wo.kernel")[0],
        "activations": ("gelu", "linear") if gated else ("relu",),
        "num_relative_buckets": num_buckets,
        "relpos_per_layer": per_layer,
    }


_GATED = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu": "gelu_exact", "relu": "relu", "silu": "silu"}


def read_hugging_face_config(path: str) -> dict[str, Any]:
    """What the config.json of a Hugging Face T5 folder says of a T5Config.

    Raises:
      UserError: the file is missing or damaged, or is of another architecture.
    """
    file = os.path.join(path, "config.json")
    try:
        with open(file, encoding="utf-8") as stream:
            content = json.load(stream)
        gated, _, activation = content["feed_forward_proj"].rpartition("-")
        # transformers means the tanh GELU by "gated-gelu", and the exact one by "gelu" alone.
        activation = "gelu_new" if (gated, activation) == ("gated", "gelu") else activation
        return {
            "vocab_size": content["vocab_size"],
            "embed_dim": content["d_model"],
            "num_heads": content["num_heads"],
            "head_dim": content["d_kv"],
            "num_layers": content["num_layers"],
            "mlp_dim": content["d_ff"],
            "activations": (_GATED[activation], "linear") if gated else (_GATED[activation],),
            "num_relative_buckets": content.get("relative_attention_num_buckets", 32),
            "relative_max_distance": content.get("relative_attention_max_distance", 128),
            "norm_epsilon": float(content.get("layer_norm_epsilon", 1e-6)),
        }
    except FileNotFoundError as error:
        raise UserError(f"{path} lacks config.json; download it beside the weights") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file} is not the config of a T5 encoder ({type(error).__name__}: {error}); expected one of "
            "transformers' T5, mT5, umT5 or ByT5 models"
        ) from error
