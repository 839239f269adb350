"""Vision transformers: CLIP's image half (arXiv 2103.00020) and DINOv2 (arXiv 2304.07193), with or without registers.

Patches of p x p pixels, times a matrix, are the tokens; a class token stands before them and learnt positions are
added. The layers are those of CLIP's text encoder without its causal mask; DINOv2 scales what each block adds, and has
registers between the class token and the patches. The class token, normed, is the image's feature.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from imagen_jax.checks import check_count
from imagen_jax.errors import UserError
from imagen_jax.text.encoders.clip import CLIPConfig, CLIPLayer
from imagen_jax.text.encoders.config import MAX_SIZE, check_positive
from imagen_jax.text.encoders.transformer import (
    Attention,
    Embedder,
    LayerNorm,
    Mlp,
    Stack,
    TransformerConfig,
)
from imagen_jax.typing import Array, Bool, Float, Int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTConfig(TransformerConfig):
    """Sizes of a vision transformer; see TransformerConfig for the other fields.

    Args:
      image_size: side of the images that go in, in pixels; patch_size divides it.
      patch_size: side of a patch.
      num_registers: register tokens; 0 for CLIP.
      vocab_size, max_positions: not used: there are no token ids, and one position a patch and the class token.
    """

    architecture: ClassVar[str] = "vit"

    image_size: int
    patch_size: int
    num_registers: int = 0
    vocab_size: int = 1
    max_positions: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "image_size", "patch_size")
        check_count("ViTConfig.num_registers", self.num_registers, 0, most=MAX_SIZE)
        if self.image_size % self.patch_size:
            raise UserError(
                f"ViTConfig.image_size ({self.image_size}) must be divisible by patch_size ({self.patch_size})"
            )

    @property
    def grid(self) -> int:
        """Patches on a side."""
        return self.image_size // self.patch_size

    def network(self, param_dtype: Any = jnp.float32) -> nn.Module:
        """See EncoderConfig; CLIP's."""
        return ViT(self, "clip", 1)


class ScaledLayer(nn.Module):
    """A layer of DINOv2: each block's output times a learnt scale."""

    config: TransformerConfig
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], mask: Bool[Array, "b 1 _q n"]) -> tuple[Float[Array, "b n d"], None]:
        """The stream after this layer, and nothing (what `nn.scan` collects)."""
        sizes = (self.config, self.param_dtype)

        def scaled(name: str, y: Array) -> Array:
            return y * self.param(name, nn.initializers.ones, (x.shape[-1],), self.param_dtype)

        y = Attention(*sizes, name="attention")(LayerNorm(*sizes, name="pre_attention_layer_norm")(x), mask)
        x = x + scaled("attention_scale", y)
        return x + scaled("mlp_scale", Mlp(*sizes, name="mlp")(LayerNorm(*sizes, name="pre_mlp_layer_norm")(x))), None


class ViT(nn.Module):
    """Pixels to the class token's feature.

    Args:
      config: sizes.
      kind: "clip", with a projection, or "dinov2".
      projection_dim: width of CLIP's joint space; not used by DINOv2.
    """

    config: ViTConfig
    kind: str
    projection_dim: int

    @nn.compact
    def __call__(self, pixels: Float[Array, "b h w 3"]) -> Float[Array, "b _d"]:
        c, clip = self.config, self.kind == "clip"
        b, d, p, init = pixels.shape[0], c.embed_dim, c.patch_size, nn.initializers.normal(0.02)
        patches = pixels.reshape(b, c.grid, p, c.grid, p, 3).transpose(0, 1, 3, 5, 2, 4)
        kernel = self.param("patch_kernel", init, (3 * p * p, d))
        x = jnp.dot(patches.reshape(b, c.grid**2, 3 * p * p), kernel, precision=jax.lax.Precision.HIGHEST)
        if not clip:
            x = x + self.param("patch_bias", nn.initializers.zeros, (d,))
        first = jnp.broadcast_to(self.param("class_embedding", init, (d,)), (b, 1, d))
        x = jnp.concatenate([first, x], 1) + self.param("position_embedding", init, (c.grid**2 + 1, d))
        if c.num_registers:
            registers = jnp.broadcast_to(self.param("registers", init, (c.num_registers, d)), (b, c.num_registers, d))
            x = jnp.concatenate([x[:, :1], registers, x[:, 1:]], 1)
        if clip:
            x = LayerNorm(c, jnp.float32, name="pre_layer_norm")(x)
        layer: Callable[..., Any] = CLIPLayer if clip else ScaledLayer
        seen = jnp.ones((b, 1, 1, x.shape[1]), bool)
        x = Stack(c, layer, c.num_layers, jnp.float32, name="encoder")(x, seen)[:, :1]
        pooled = LayerNorm(c, jnp.float32, name="post_layer_norm")(x)[:, 0]
        return _projected(self, pooled, self.projection_dim) if clip else pooled


class CLIPText(nn.Module):
    """Token ids to CLIP's joint space: all layers, the final norm, the outputs at the captions' ends.

    Args:
      config: sizes.
      projection_dim: width of the joint space.
    """

    config: CLIPConfig
    projection_dim: int

    @nn.compact
    def __call__(self, tokens: Int[Array, "b n"], ends: Int[Array, "b"]) -> Float[Array, "b _d"]:
        c, n = self.config, tokens.shape[1]
        x = Embedder(c.vocab_size, "vocab", c, jnp.float32, name="token_embedder")(tokens)
        x = x + Embedder(c.max_positions, "positions", c, jnp.float32, name="position_embedder")(jnp.arange(n))
        # What stands after a caption's end is not seen from there.
        seen = jnp.broadcast_to(jnp.tril(jnp.ones((n, n), bool)), (tokens.shape[0], 1, n, n))
        x = Stack(c, CLIPLayer, c.num_layers, jnp.float32, name="encoder")(x, seen)
        x = jnp.take_along_axis(x, ends[:, None, None], axis=1)
        return _projected(self, LayerNorm(c, jnp.float32, name="final_layer_norm")(x)[:, 0], self.projection_dim)


def _projected(module: nn.Module, x: Array, width: int) -> Array:
    kernel = module.param("projection", nn.initializers.lecun_normal(), (x.shape[-1], width))
    return jnp.dot(x, kernel, precision=jax.lax.Precision.HIGHEST)
