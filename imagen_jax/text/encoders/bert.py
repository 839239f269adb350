"""The BERT encoder in Flax Linen: one of the encoders that Imagen compares (section 2.1, appendix D.1).

The output is the token sequence of the last layer; there is no pooler and no head. A layer computes
(arXiv 1810.04805, section 3, after arXiv 1706.03762)

    x <- LayerNorm(x + attention(x))
    x <- LayerNorm(x + wo(gelu(wi(x))))

on the norm of the sum of token, position and token-type embeddings. A caption is one sentence: its types are all 0.

Parameters: token_embedder/embedding, position_embedder/embedding, type_embedder/embedding, embedding_layer_norm, and
the layers of `transformer` with post_attention_layer_norm and post_mlp_layer_norm.
"""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn

from imagen_jax.text.encoders.config import check_positive
from imagen_jax.text.encoders.transformer import Attention, Embedder, LayerNorm, Mlp, Stack, TransformerConfig
from imagen_jax.typing import Array, Bool, Float, Int


@dataclasses.dataclass(frozen=True, kw_only=True)
class BertConfig(TransformerConfig):
    """Sizes of a BERT encoder; see TransformerConfig for the other fields.

    Args:
      num_token_types: rows of the token-type embedding; the first is used.
    """

    architecture: ClassVar[str] = "bert"

    max_positions: int = 512
    num_token_types: int = 2
    activation: str = "gelu_exact"
    norm_epsilon: float = 1e-12

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "num_token_types")

    def network(self, param_dtype: Any = jnp.float32) -> nn.Module:
        """See EncoderConfig."""
        return BertEncoder(self, param_dtype)


class BertLayer(nn.Module):
    """Attention and feed-forward block, each added to the residual stream, which is normed after."""

    config: TransformerConfig
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], mask: Bool[Array, "b 1 _q n"]) -> tuple[Float[Array, "b n d"], None]:
        """The stream after this layer, and nothing (what `nn.scan` collects)."""
        sizes = (self.config, self.param_dtype)
        x = LayerNorm(*sizes, name="post_attention_layer_norm")(x + Attention(*sizes, name="attention")(x, mask))
        return LayerNorm(*sizes, name="post_mlp_layer_norm")(x + Mlp(*sizes, name="mlp")(x)), None


class BertEncoder(nn.Module):
    """Token ids to the token outputs of the last layer.

    Args:
      config: sizes.
      param_dtype: dtype of the parameters that `init` draws.
    """

    config: BertConfig
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: Int[Array, "b n"], mask: Bool[Array, "b n"]) -> Float[Array, "b n d"]:
        """Encodes; `mask` is True at unpadded tokens; the outputs elsewhere carry no meaning. n <= max_positions."""
        c = self.config
        tables = {
            "token": (c.vocab_size, "vocab", tokens),
            "position": (c.max_positions, "positions", jnp.arange(tokens.shape[1])),
            "type": (c.num_token_types, "types", jnp.zeros(tokens.shape[1], jnp.int32)),
        }
        token, position, kind = (
            Embedder(rows, axis, c, self.param_dtype, name=f"{name}_embedder")(indices)
            for name, (rows, axis, indices) in tables.items()
        )
        x = LayerNorm(c, self.param_dtype, name="embedding_layer_norm")(token + kind + position)
        x = Stack(c, BertLayer, c.num_layers, self.param_dtype, name="encoder")(x, mask[:, None, None, :])
        return x.astype(jnp.float32)
