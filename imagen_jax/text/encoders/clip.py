"""CLIP's text transformer in Flax Linen: one of the encoders that Imagen compares (section 2.1).

"For CLIP, we use the penultimate layer of the text encoder to get contextual embeddings" (appendix D.1 of Imagen, for
ViT-L/14): the output is the token sequence that enters the last layer, without the final norm, which transformers
calls hidden_states[-2]. The paper does not say whether a norm follows; there is none here. The last layer and the final
norm are therefore left in the checkpoint; one that was saved without its last layer, as Stable Diffusion 2's is, loses
another. A layer computes (arXiv 2103.00020, section 2.4, after GPT-2)

    x <- x + attention(LayerNorm(x))      a token sees itself and those before it
    x <- x + wo(quick_gelu(wi(LayerNorm(x))))

on the sum of token and position embeddings.

Parameters: token_embedder/embedding, position_embedder/embedding, and the layers of `transformer` with
pre_attention_layer_norm and pre_mlp_layer_norm.
"""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn

from imagen_jax.errors import UserError
from imagen_jax.text.encoders.transformer import Attention, Embedder, LayerNorm, Mlp, Stack, TransformerConfig
from imagen_jax.typing import Array, Bool, Float, Int


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPConfig(TransformerConfig):
    """Sizes of a CLIP text encoder; see TransformerConfig for the fields. num_layers >= 2: the last is not run."""

    architecture: ClassVar[str] = "clip"

    max_positions: int = 77
    activation: str = "quick_gelu"
    norm_epsilon: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_layers < 2:
            raise UserError(
                f"CLIPConfig.num_layers must be at least 2; got {self.num_layers}: the embeddings are the penultimate "
                "layer's; give the layers of the whole text encoder"
            )

    def network(self, param_dtype: Any = jnp.float32) -> nn.Module:
        """See EncoderConfig."""
        return CLIPTextEncoder(self, param_dtype)


class CLIPLayer(nn.Module):
    """Attention and feed-forward block, each normed before and added to the residual stream."""

    config: TransformerConfig
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], mask: Bool[Array, "b 1 _q n"]) -> tuple[Float[Array, "b n d"], None]:
        """The stream after this layer, and nothing (what `nn.scan` collects)."""
        sizes = (self.config, self.param_dtype)
        x = x + Attention(*sizes, name="attention")(LayerNorm(*sizes, name="pre_attention_layer_norm")(x), mask)
        return x + Mlp(*sizes, name="mlp")(LayerNorm(*sizes, name="pre_mlp_layer_norm")(x)), None


class CLIPTextEncoder(nn.Module):
    """Token ids to the token outputs of the penultimate layer.

    Args:
      config: sizes.
      param_dtype: dtype of the parameters that `init` draws.
    """

    config: CLIPConfig
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: Int[Array, "b n"], mask: Bool[Array, "b n"]) -> Float[Array, "b n d"]:
        """Encodes; `mask` is True at unpadded tokens; the outputs elsewhere carry no meaning. n <= max_positions."""
        c, n = self.config, tokens.shape[1]
        x = Embedder(c.vocab_size, "vocab", c, self.param_dtype, name="token_embedder")(tokens)
        positions = Embedder(c.max_positions, "positions", c, self.param_dtype, name="position_embedder")
        x = x + positions(jnp.arange(n))
        seen = mask[:, None, None, :] & jnp.tril(jnp.ones((n, n), bool))
        x = Stack(c, CLIPLayer, c.num_layers - 1, self.param_dtype, name="encoder")(x, seen)
        return x.astype(jnp.float32)
