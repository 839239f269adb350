"""A transformer on patches of pixels: the third backbone, as networks of 2025 are built.

    patches → linear → [text tokens, image tokens] → blocks → image tokens: norm, modulation → linear → patches

    block:  h += gate ⊙ attention(norm(h) (1 + scale) + shift)
            h += gate ⊙ SwiGLU(norm(h) (1 + scale) + shift)

- Text tokens stand beside the patches in one sequence ("in-context"), and one attention is over both; padding is
  masked.
- Time, aug_level, framing and pooled text make the embedding of the U-Nets (`embeddings.Embedder`); each block reads
  its shifts, scales and gates from it. Gates and output begin at zero (adaLN-zero, arXiv 2212.09748, section 3.2).
- RMSNorm (arXiv 1910.07467) stands before each layer, and on queries and keys head by head ("QK-norm", arXiv
  2302.05442, section 2).
- Queries and keys of patches are rotated by row and column (RoPE, arXiv 2104.09864, section 3.2; in two dimensions,
  arXiv 2403.13298, section 3.2), so their logits depend on how far apart patches lie, at any size. Text is not rotated:
  its encoder has told it its order, and it stands at the corner, from where patches know their place.
- SwiGLU (arXiv 2002.05202): W_out(swish(W_gate h) ⊙ W_up h).

Patches of pixels without an autoencoder want x-prediction: what is predicted then lies near few dimensions, which noise
does not (JiT, arXiv 2511.13720, section 4). The network itself predicts whatever its `Stage` says.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from imagen_jax.errors import UserError
from imagen_jax.models.attention import fused_attention, real_first, softmax_attention
from imagen_jax.models.backbone import CONDITIONS
from imagen_jax.models.denoiser import Conditioning, check_size
from imagen_jax.models.embeddings import Embedder, TextSpec
from imagen_jax.models.layers import (
    MAX_BLOCKS,
    Dtype,
    check_dtype,
    check_remat,
    check_sizes,
    dense,
    depth_to_space,
    rematerialised,
    rms_norm,
    space_to_depth,
)
from imagen_jax.typing import Array, Bool, Float

# The slowest of the frequencies has nearly this period, in patches over 2 pi.
ROPE_BASE = 10_000.0


def rope_angles(rows: int, columns: int, head_dim: int) -> Float[Array, "s e2"]:
    """Angles by which the pairs of a head are rotated: those of the first half by row, of the second by column.

    Args:
      rows, columns: of patches; s = rows * columns, row by row.
      head_dim: width of a head, a multiple of 4; it has head_dim / 2 pairs.
    """
    frequencies = ROPE_BASE ** (-jnp.arange(head_dim // 4) / (head_dim // 4))
    row, column = jnp.meshgrid(jnp.arange(rows), jnp.arange(columns), indexing="ij")
    angles = (place.reshape(-1, 1) * frequencies for place in (row, column))  # 2 of [s, e/4]
    return jnp.concatenate(list(angles), axis=-1)  # -> [s, e/2]


def rotate(x: Float[Array, "b s k e"], angles: Float[Array, "s e2"]) -> Float[Array, "b s k e"]:
    """Rotates the pairs (x_i, x_{i + e/2}) of every head by the angles of their position, in float32."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]  # [s, 1, e/2]
    return jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1).astype(x.dtype)


class TransformerBlock(nn.Module):
    """Joint attention and SwiGLU, each modulated and gated by the embedding.

    Attributes:
      head_dim: width of a head; must divide the width of the tokens.
      mlp_dim: inner width of the SwiGLU.
      fused: attention by `attention.fused_attention`; image tokens are then first.
      dtype: compute type.
    """

    head_dim: int
    mlp_dim: int
    fused: bool
    dtype: Dtype

    @nn.compact
    def __call__(
        self, h: Float[Array, "b n d"], emb: Float[Array, "b c"], mask: Bool[Array, "b n"], angles: Float[Array, "n e2"]
    ) -> tuple[Float[Array, "b n d"], None]:
        """The tokens after the block, and nothing, as a scan wants.

        Args:
          h: tokens, b rows of n.
          emb: embedding of time and pooled text.
          mask: True at tokens that are attended to.
          angles: of each token, from `rope_angles`; zero where nothing is rotated.
        """
        width = h.shape[-1]
        modulation = dense(6 * width, zero=True, dtype=self.dtype, name="modulation")(
            jax.nn.swish(emb).astype(self.dtype)
        )
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = jnp.split(modulation[:, None], 6, axis=-1)
        x = modulated(rms_norm(name="attention_norm")(h), shift_a, scale_a, self.dtype)
        h = h + gate_a * self._attention(x, mask, angles)
        x = modulated(rms_norm(name="mlp_norm")(h), shift_m, scale_m, self.dtype)
        gate = dense(self.mlp_dim, use_bias=False, dtype=self.dtype, name="mlp_gate")(x)
        up = dense(self.mlp_dim, use_bias=False, dtype=self.dtype, name="mlp_up")(x)
        out = dense(width, axes=("mlp", "embed"), use_bias=False, dtype=self.dtype, name="mlp_out")
        return h + gate_m * out(jax.nn.swish(gate) * up), None

    def _attention(self, x: Array, mask: Array, angles: Array) -> Array:
        b, n, width = x.shape

        def heads(name: str) -> Array:
            made = dense(width, axes=("embed", "heads"), use_bias=False, dtype=self.dtype, name=name)(x)
            return made.reshape(b, n, width // self.head_dim, self.head_dim)  # [b, n, d] -> [b, n, k, e]

        query, key = (
            rotate(rms_norm(name=f"{name}_norm")(heads(name)), angles).astype(self.dtype) for name in ("query", "key")
        )
        value = heads("value")
        if self.fused:
            out = fused_attention(query, key, value, mask.sum(axis=1))
        else:
            out = softmax_attention(query, key, value, mask, self.dtype)
        out = out.reshape(b, n, width)  # [b, n, k, e] -> [b, n, d]
        return dense(width, axes=("heads", "embed"), use_bias=False, dtype=self.dtype, name="out")(out)


def modulated(
    h: Float[Array, "b n d"], shift: Float[Array, "b 1 d"], scale: Float[Array, "b 1 d"], dtype: Dtype
) -> Float[Array, "b n d"]:
    """h (1 + scale) + shift, in the compute type."""
    return (h * (1.0 + scale) + shift).astype(dtype)


class PixelTransformer(nn.Module):
    """Transformer on patches of pixels and text tokens.

    Attributes:
      dim: width of the tokens.
      depth: blocks.
      patch: side of a patch, in pixels; image sizes must be its multiples.
      head_dim: width of an attention head: a multiple of 4 that divides dim.
      mlp_dim: inner width of the SwiGLU; 0 means 8/3 dim, rounded up to a multiple of 8.
      emb_dim: width of the embedding of log-SNR and pooled text; 0 means dim.
      text_pooling: how the text enters the embedding: "attention" or "mean".
      text_norm: LayerNorm on the text where it enters.
      fused_attention: attention by cuDNN's kernel (NVIDIA GPUs, bfloat16) in place of this library's own.
      remat: what the backward pass computes again: one of `layers.REMATS`.
      scan_blocks: the blocks are one compiled block run many times, their parameters stacked on a first axis.
      learned_variance: the output has a variance for each value besides (`Stage.vlb_weight`), in as many channels more.
      dtype: compute type, "float32" or "bfloat16".
    """

    dim: int
    depth: int
    patch: int = 4
    head_dim: int = 64
    mlp_dim: int = 0
    emb_dim: int = 0
    text_pooling: str = "attention"
    text_norm: bool = True
    fused_attention: bool = False
    remat: str = "none"
    scan_blocks: bool = False
    learned_variance: bool = False
    dtype: Dtype = jnp.float32

    @property
    def size_factor(self) -> int:
        """Height and width must be multiples of this."""
        return self.patch

    @property
    def conditions(self) -> tuple[str, ...]:
        """Conditioning that the network reads: all of it."""
        return CONDITIONS

    @nn.compact
    def __call__(
        self, z_t: Float[Array, "b h w c"], log_snr: Float[Array, " b"], cond: Conditioning
    ) -> Float[Array, "b h w c2"]:
        self._check(z_t.shape[1], z_t.shape[2])
        text_spec = TextSpec(dim=self.dim, pooling=self.text_pooling, norm=self.text_norm)
        emb_dim = self.emb_dim or self.dim
        emb, text = Embedder(emb_dim, text_spec, self.head_dim, self.dtype, name="embedder")(log_snr, cond)
        text, text_mask = (text.astype(self.dtype), cond.text_mask)

        x = jnp.concatenate([z_t, *cond.images()], axis=-1)  # [b, h, w, c] -> [b, h, w, c times the images]
        x = space_to_depth(x.astype(self.dtype), self.patch)  # [b, h, w, c] -> [b, h/p, w/p, p p c]
        b, rows, columns, _ = x.shape
        x = dense(self.dim, dtype=self.dtype, name="patch_in")(x).reshape(b, rows * columns, self.dim)
        angles = rope_angles(rows, columns, self.head_dim)
        seen = jnp.ones(x.shape[:2], bool)
        parts = [(text, text_mask, jnp.zeros((text.shape[1], angles.shape[1]))), (x, seen, angles)]
        if self.fused_attention:
            # cuDNN takes the first keys of each row: the image before the text, whose padding is then at the end.
            parts = [parts[1], (*real_first(text, text_mask), parts[0][2])]
        h, mask, angles = (
            jnp.concatenate(list(part), axis=axis)
            for part, axis in zip(zip(*parts, strict=True), (1, 1, 0), strict=True)
        )
        h = self._blocks(h, emb, mask, angles)
        # [b, n + s, d] -> [b, s, d]
        h = h[:, : rows * columns] if self.fused_attention else h[:, text.shape[1] :]

        modulation = dense(2 * self.dim, zero=True, dtype=self.dtype, name="modulation_out")(
            jax.nn.swish(emb).astype(self.dtype)
        )
        shift, scale = jnp.split(modulation[:, None], 2, axis=-1)
        h = modulated(rms_norm(name="norm_out")(h), shift, scale, self.dtype).reshape(b, rows, columns, self.dim)
        # [b, h/p, w/p, d] -> [b, h, w, c], or 2 c with a learned variance
        channels = (1 + self.learned_variance) * z_t.shape[-1] * self.patch**2
        return depth_to_space(dense(channels, zero=True, dtype=jnp.float32, name="patch_out")(h), self.patch)

    def _blocks(self, h: Array, emb: Array, mask: Array, angles: Array) -> Array:
        settings = (self.head_dim, self._mlp_dim, self.fused_attention, self.dtype)
        block = rematerialised(TransformerBlock, self.remat, in_scan=self.scan_blocks)
        if self.scan_blocks:
            scanned = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(nn.broadcast, nn.broadcast, nn.broadcast),
                length=self.depth,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            return scanned(*settings, name="block")(h, emb, mask, angles)[0]
        for i in range(self.depth):
            h, _ = block(*settings, name=f"block_{i}")(h, emb, mask, angles)
        return h

    @property
    def _mlp_dim(self) -> int:
        return self.mlp_dim or -(-self.dim // 3) * 8

    def _check(self, height: int, width: int) -> None:
        check_sizes(self, "dim", "patch", "head_dim")
        check_sizes(self, "depth", most=MAX_BLOCKS)
        check_sizes(self, "mlp_dim", "emb_dim", least=0)
        check_size(height, width, self.size_factor)
        check_remat(self.remat)
        check_dtype(self.dtype)
        if self.dim % self.head_dim or self.head_dim % 4:
            raise UserError(
                f"head_dim ({self.head_dim}) must be a multiple of 4, for rotations by row and column, and divide dim "
                f"({self.dim}); 64 is usual"
            )
