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

from collections.abc import Mapping
from typing import Any

from imagen_jax.errors import UserError
from imagen_jax.text.weights.checkpoint_arrays import CheckpointArrays
from imagen_jax.text.weights.sources import Source, Table, match, num_layers, refuse_without

_ALWAYS = ("token_embedder.embedding", "encoder.encoder_norm.scale")


def t5x_sources(arrays: CheckpointArrays) -> dict[str, Source]:
    """Sources of the parameters, by dotted path with layers apart, in a t5x checkpoint.

    Raises:
      UserError: it has no encoder.
    """
    names = [name for name in arrays.shapes if name.startswith(("encoder.", "token_embedder."))]
    sources = {name: Source(name) for name in names}
    refuse_without(arrays, sources, "T5", {name: name for name in _ALWAYS})
    stacked = [name for name in names if name.startswith("encoder.layers.")]
    if stacked:
        axis, count = _layer_axis(arrays)
        for name in stacked:
            del sources[name]
            for number in range(count):
                sources[name.replace("encoder.layers.", f"encoder.layers_{number}.")] = Source(
                    name, False, (axis, number)
                )
    return sources


def _layer_axis(arrays: CheckpointArrays) -> tuple[int, int]:
    """Axis and number of stacked layers; where both axes fit, t5x's own (1)."""
    (width,) = arrays.shapes["encoder.encoder_norm.scale"]
    shape = arrays.shapes["encoder.layers.pre_attention_layer_norm.scale"]
    axis = 1 if shape[0] == width else 0
    return axis, shape[axis]


_HUGGING_FACE: Table = (
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
    sources = match(arrays, _HUGGING_FACE)
    theirs = ("shared.weight", "encoder.final_layer_norm.weight")
    refuse_without(arrays, sources, "T5", dict(zip(_ALWAYS, theirs, strict=True)))
    biases = [path for path in sources if path.endswith("relative_posemb.rel_embedding")]
    if biases == ["encoder.layers_0.relative_posemb.rel_embedding"]:
        sources["encoder.relpos_bias.rel_embedding"] = sources.pop(biases[0])
    return sources


def infer_config(arrays: CheckpointArrays, sources: Mapping[str, Source]) -> dict[str, Any]:
    """Infers a T5Config from shapes: its sizes, gating, and whose the position bias is."""

    def shape(path: str) -> tuple[int, ...]:
        if path not in sources:
            raise UserError(f"the checkpoint {arrays.path} lacks {path}; copy or download it again")
        return sources[path].shape(arrays)

    vocab_size, embed_dim = shape("token_embedder.embedding")
    per_layer = "encoder.relpos_bias.rel_embedding" not in sources
    bias = "encoder.layers_0.relative_posemb.rel_embedding" if per_layer else "encoder.relpos_bias.rel_embedding"
    num_heads, num_buckets = shape(bias)
    gated = "encoder.layers_0.mlp.wi_0.kernel" in sources
    return {
        "vocab_size": vocab_size,
        "embed_dim": embed_dim,
        "num_heads": num_heads,
        "head_dim": shape("encoder.layers_0.attention.query.kernel")[1] // num_heads,
        "num_layers": num_layers(sources),
        "mlp_dim": shape("encoder.layers_0.mlp.wo.kernel")[0],
        "activations": ("gelu", "linear") if gated else ("relu",),
        "num_relative_buckets": num_buckets,
        "relpos_per_layer": per_layer,
    }


_GATED = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu": "gelu_exact", "relu": "relu", "silu": "silu"}


def stated_config(content: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a T5Config that the config.json of a Hugging Face T5 folder states.

    Raises:
      KeyError, TypeError, AttributeError: it is of another network.
    """
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
