"""CLIP text and BERT encoders from Hugging Face folders: which array, turned how, is which parameter.

| here                             | CLIP, after text_model.               | BERT, after bert.                         |
|----------------------------------|---------------------------------------|-------------------------------------------|
| token_embedder/embedding         | embeddings.token_embedding            | embeddings.word_embeddings                |
| position_embedder/embedding      | embeddings.position_embedding         | embeddings.position_embeddings            |
| type_embedder/embedding          |                                       | embeddings.token_type_embeddings          |
| embedding_layer_norm             |                                       | embeddings.LayerNorm                      |
| layers_i/attention/{query,…,out} | encoder.layers.i.self_attn.{q,…}_proj | encoder.layer.i.attention.{self.…,output} |
| layers_i/mlp/{wi,wo}             | encoder.layers.i.mlp.{fc1,fc2}        | encoder.layer.i.{intermediate,output}     |
| layers_i/{pre,post}_…_layer_norm | encoder.layers.i.layer_norm{1,2}      | …{attention.output,output}.LayerNorm      |

The prefix may be absent; kernels stand transposed, (out, in), there. CLIP's last layer and final norm, its vision half
and projections, and BERT's pooler and heads are passed over.
"""

from collections.abc import Mapping
from typing import Any

from imagen_jax.errors import UserError
from imagen_jax.text.weights.checkpoint_arrays import CheckpointArrays
from imagen_jax.text.weights.sources import Source, Table, layer_rows, match, norm_rows, num_layers, refuse_without

_CLIP, _BERT = r"(?:text_model\.)?", r"(?:bert\.)?"

# Names in a layer of either half of CLIP: there → here.
CLIP_DENSE = {
    "self_attn.q_proj": "attention.query",
    "self_attn.k_proj": "attention.key",
    "self_attn.v_proj": "attention.value",
    "self_attn.out_proj": "attention.out",
    "mlp.fc1": "mlp.wi",
    "mlp.fc2": "mlp.wo",
}
CLIP_NORMS = {"layer_norm1": "pre_attention_layer_norm", "layer_norm2": "pre_mlp_layer_norm"}
CLIP_TABLE: Table = (
    (_CLIP + r"embeddings\.token_embedding\.weight", "token_embedder.embedding", False),
    (_CLIP + r"embeddings\.position_embedding\.weight", "position_embedder.embedding", False),
    *layer_rows(_CLIP + r"encoder\.layers\.(\d+)\.", CLIP_DENSE, CLIP_NORMS),
)
_BERT_TABLE: Table = (
    (_BERT + r"embeddings\.word_embeddings\.weight", "token_embedder.embedding", False),
    (_BERT + r"embeddings\.position_embeddings\.weight", "position_embedder.embedding", False),
    (_BERT + r"embeddings\.token_type_embeddings\.weight", "type_embedder.embedding", False),
    *norm_rows(_BERT + r"embeddings\.LayerNorm", "embedding_layer_norm"),
    *layer_rows(
        _BERT + r"encoder\.layer\.(\d+)\.",
        {
            "attention.self.query": "attention.query",
            "attention.self.key": "attention.key",
            "attention.self.value": "attention.value",
            "attention.output.dense": "attention.out",
            "intermediate.dense": "mlp.wi",
            "output.dense": "mlp.wo",
        },
        {"attention.output.LayerNorm": "post_attention_layer_norm", "output.LayerNorm": "post_mlp_layer_norm"},
    ),
)
_FIRST = "encoder.layers_0.mlp.wi.kernel"


def clip_sources(arrays: CheckpointArrays) -> dict[str, Source]:
    """Sources of the parameters, by dotted path with layers apart; the last layer is not run and left out.

    Raises:
      UserError: it has no CLIP text encoder.
    """
    sources = match(arrays, CLIP_TABLE)
    names = {
        "token_embedder.embedding": "text_model.embeddings.token_embedding.weight",
        "position_embedder.embedding": "text_model.embeddings.position_embedding.weight",
        _FIRST: "text_model.encoder.layers.0.mlp.fc1.weight",
    }
    refuse_without(arrays, sources, "CLIP text", names)
    last = f"encoder.layers_{num_layers(sources) - 1}."
    return {path: source for path, source in sources.items() if not path.startswith(last)}


def bert_sources(arrays: CheckpointArrays) -> dict[str, Source]:
    """Sources of the parameters, by dotted path with layers apart.

    Raises:
      UserError: it has no BERT encoder.
    """
    sources = match(arrays, _BERT_TABLE)
    names = {
        "token_embedder.embedding": "bert.embeddings.word_embeddings.weight",
        "position_embedder.embedding": "bert.embeddings.position_embeddings.weight",
        "type_embedder.embedding": "bert.embeddings.token_type_embeddings.weight",
        _FIRST: "bert.encoder.layer.0.intermediate.dense.weight",
    }
    refuse_without(arrays, sources, "BERT", names)
    return sources


def clip_infer(arrays: CheckpointArrays, sources: Mapping[str, Source]) -> dict[str, Any]:
    """Infers fields of a CLIPConfig from shapes."""
    return _infer(arrays, sources) | {"num_layers": num_layers(sources) + 1}


def bert_infer(arrays: CheckpointArrays, sources: Mapping[str, Source]) -> dict[str, Any]:
    """Infers fields of a BertConfig from shapes."""
    types, _ = sources["type_embedder.embedding"].shape(arrays)
    return _infer(arrays, sources) | {"num_token_types": types}


def _infer(arrays: CheckpointArrays, sources: Mapping[str, Source]) -> dict[str, Any]:
    vocab_size, embed_dim = sources["token_embedder.embedding"].shape(arrays)
    # A text encoder of one layer has none left: the checks of its config say so.
    mlp_dim = sources[_FIRST].shape(arrays)[1] if _FIRST in sources else 1
    return {
        "vocab_size": vocab_size,
        "embed_dim": embed_dim,
        "num_layers": num_layers(sources),
        "mlp_dim": mlp_dim,
        "max_positions": sources["position_embedder.embedding"].shape(arrays)[0],
    }


# What transformers calls an activation: what it is called here.
ACTIVATION_NAMES = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu_exact",
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


def clip_stated(content: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a CLIPConfig that a CLIP folder's config.json states; of a whole model, its text half.

    Raises:
      KeyError, TypeError: it is of another network.
    """
    if content["model_type"] == "clip":
        # Old files say the same twice; transformers takes the second.
        content = {**(content.get("text_config") or {}), **(content.get("text_config_dict") or {})}
    # transformers leaves out what equals its defaults, which are those of ViT-B/32.
    return _stated({"num_attention_heads": 8, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, **content})


def bert_stated(content: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a BertConfig that the config.json of a BERT folder states.

    Raises:
      KeyError, TypeError: it is of another network.
      UserError: it is a variant that computes something else.
    """
    for name, usual in (("is_decoder", False), ("position_embedding_type", "absolute")):
        if content.get(name, usual) != usual:
            raise UserError(
                f"a BERT whose config.json has {name} {content[name]!r} is not supported; expected {usual!r}: give "
                "an encoder such as bert-large-uncased"
            )
    return _stated({"num_attention_heads": 12, "hidden_act": "gelu", "layer_norm_eps": 1e-12, **content})


def _stated(content: Mapping[str, Any]) -> dict[str, Any]:
    sizes = {
        "vocab_size": "vocab_size",
        "embed_dim": "hidden_size",
        "num_layers": "num_hidden_layers",
        "mlp_dim": "intermediate_size",
        "max_positions": "max_position_embeddings",
    }
    return {
        "num_heads": content["num_attention_heads"],
        "activation": ACTIVATION_NAMES[content["hidden_act"]],
        "norm_epsilon": float(content["layer_norm_eps"]),
        **{ours: content[theirs] for ours, theirs in sizes.items() if theirs in content},
    }
