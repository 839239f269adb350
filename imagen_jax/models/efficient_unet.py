"""The Efficient U-Net for super-resolution (paper section 2.5, appendix B.1, figures A.27 to A.30).

    DBlock  strided conv → combine embeddings → ResNetBlock x N → attention
    UBlock  input + skip / sqrt(2) → combine embeddings → ResNetBlock x N → attention → up-sampling conv

Down-sampling comes before and up-sampling after the convolutions of a block, and most blocks sit at low
resolution. The output, a dense layer, is modulated by the embedding as the blocks are, which the paper leaves open.
Paper's 64→256 model: dims (128, 256, 512, 1024), num_res_blocks (2, 4, 8, 8), joint attention in the last; the
256→1024 model has cross-attention there (configs/models/sr_256_600m.gin, sr_1024_400m.gin).
"""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from imagen_jax.errors import UserError
from imagen_jax.models.attention import AttentionSpec, attend, check_kinds
from imagen_jax.models.backbone import CONDITIONS
from imagen_jax.models.denoiser import Conditioning, check_size
from imagen_jax.models.embeddings import Embedder, TextSpec
from imagen_jax.models.layers import (
    MAX_BLOCKS,
    Dtype,
    ResBlock,
    check_dtype,
    check_remat,
    check_sizes,
    conv,
    depth_to_space,
    rematerialised,
    scale_shift,
    space_to_depth,
    upsample,
)
from imagen_jax.typing import Array, Bool, Float

SKIPS = ("block", "res_block")


class EfficientBlock(nn.Module):
    """Parts that DBlock and UBlock share: combine embeddings, residual blocks, optional attention.

    Attributes:
      features: channels.
      num_res_blocks: residual blocks.
      attention: what the attention that follows is over: one of `attention.KINDS`.
      spec: settings of that attention; its `remat` and `dtype` hold for the residual blocks too.
      scan_blocks: see EfficientUNet.
    """

    features: int
    num_res_blocks: int
    attention: str
    spec: AttentionSpec
    scan_blocks: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        emb: Float[Array, "b d"],
        text: Float[Array, "b n e"],
        text_mask: Bool[Array, "b n"],
        skips: Any = None,
    ) -> tuple[Float[Array, "b h w c"], Any]:
        """The block's output, and those of its residual blocks, which are the `skips` of the block upwards."""
        h = scale_shift(x, emb, self.spec.dtype).astype(self.spec.dtype)
        h, outputs = self._scanned(h, skips) if self.scan_blocks else self._unrolled(h, skips)
        return attend(self.attention, h, text, text_mask, self.spec, name="attention"), outputs

    def _unrolled(self, h: Float[Array, "b h w c"], skips: Any) -> tuple[Float[Array, "b h w c"], list[Array]]:
        res_block = rematerialised(ResBlock, self.spec.remat)
        outputs: list[Array] = []
        for i in range(self.num_res_blocks):
            if skips is not None:
                h = _with_skip(h, skips[-1 - i])
            h = res_block(self.features, None, self.spec.dtype, name=f"res_{i}")(h, None)
            outputs.append(h)
        return h, outputs

    def _scanned(
        self, h: Float[Array, "b h w c"], skips: Any
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "n b h w c"]]:
        scanned = nn.scan(
            rematerialised(_ScanBody, self.spec.remat, in_scan=True),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.num_res_blocks,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return scanned(self.features, self.spec.dtype, name="res")(h, None if skips is None else skips[::-1])


class _ScanBody(nn.Module):
    """One residual block as a step of a scan."""

    features: int
    dtype: Dtype

    @nn.compact
    def __call__(
        self, h: Float[Array, "b h w c"], skip: Float[Array, "b h w c"] | None
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w c"]]:
        h = h if skip is None else _with_skip(h, skip)
        h = ResBlock(self.features, None, self.dtype, name="block")(h, None).astype(self.dtype)
        return h, h


def _with_skip(h: Float[Array, "b h w c"], skip: Float[Array, "b h w c"]) -> Float[Array, "b h w c2"]:
    return jnp.concatenate([h, skip / math.sqrt(2)], axis=-1)  # [b, h, w, c] -> [b, h, w, c + c_skip]


class EfficientUNet(nn.Module):
    """Efficient U-Net.

    Attributes:
      dims: channels of each block; every block halves height and width.
      num_res_blocks: residual blocks of each block.
      attention: for each block, what the attention at its end is over: one of `attention.KINDS`.
      head_dim: width of an attention head.
      emb_dim: width of the embedding of log-SNR, aug_level and pooled text; 0 means 4 * dims[0].
      patch: side of the squares of pixels that enter as one position, as in `UNet`.
      text_dim: width that the text tokens are projected to.
      text_pooling: how the text enters the embedding: "attention" or "mean" (ablation of appendix D.3.1).
      text_norm: LayerNorm on the text wherever it enters.
      fused_attention: attention by cuDNN's kernel (NVIDIA GPUs, bfloat16) in place of this library's own.
      remat: what the backward pass computes again: one of `layers.REMATS`.
      skips: "block": what a block upwards adds to its input, as figure A.30 draws it; "res_block": besides, each of
        its residual blocks reads its counterpart's output, concatenated. The paper's 600M parameters want the latter.
      scan_blocks: the residual blocks of a block are one compiled block run many times, their parameters stacked on
        a first axis: large networks compile in a fraction of the time.
      learned_variance: the output has a variance for each value besides (`Stage.vlb_weight`), in as many channels more.
      dtype: compute type, "float32" or "bfloat16".
    """

    dims: tuple[int, ...]
    num_res_blocks: tuple[int, ...]
    attention: tuple[str, ...]
    head_dim: int = 64
    emb_dim: int = 0
    patch: int = 1
    text_dim: int = 512
    text_pooling: str = "attention"
    text_norm: bool = True
    fused_attention: bool = False
    skips: str = "block"
    remat: str = "none"
    scan_blocks: bool = False
    learned_variance: bool = False
    dtype: Dtype = jnp.float32

    @property
    def size_factor(self) -> int:
        """Height and width must be multiples of this."""
        return self.patch * 2 ** len(self.dims)

    @property
    def conditions(self) -> tuple[str, ...]:
        """Conditioning that the network reads: all of it."""
        return CONDITIONS

    @property
    def attention_spec(self) -> AttentionSpec:
        """Settings of every attention layer."""
        return AttentionSpec(
            head_dim=self.head_dim,
            text_norm=self.text_norm,
            fused=self.fused_attention,
            remat=self.remat,
            dtype=self.dtype,
        )

    @property
    def text_spec(self) -> TextSpec:
        """Settings of the text's entry."""
        return TextSpec(dim=self.text_dim, pooling=self.text_pooling, norm=self.text_norm)

    @nn.compact
    def __call__(
        self, z_t: Float[Array, "b h w c"], log_snr: Float[Array, " b"], cond: Conditioning
    ) -> Float[Array, "b h w c2"]:
        check_size(z_t.shape[1], z_t.shape[2], self.size_factor)
        if len(self.dims) != len(self.num_res_blocks):
            raise UserError(
                f"dims {self.dims} and num_res_blocks {self.num_res_blocks} must have one entry a block each"
            )
        if self.skips not in SKIPS:
            raise UserError(f"skips ({self.skips!r}) must be one of {', '.join(SKIPS)}")
        check_kinds(self.attention, len(self.dims))
        check_remat(self.remat)
        check_dtype(self.dtype)
        check_sizes(self, "dims", "head_dim", "patch", "text_dim")
        check_sizes(self, "emb_dim", least=0)
        check_sizes(self, "num_res_blocks", least=0, most=MAX_BLOCKS)
        spec, emb_dim = self.attention_spec, self.emb_dim or 4 * self.dims[0]
        emb, text = Embedder(emb_dim, self.text_spec, self.head_dim, self.dtype, name="embedder")(log_snr, cond)

        def block(h: Array, level: int, name: str, inner: Any = None) -> tuple[Array, Any]:
            return EfficientBlock(
                self.dims[level],
                self.num_res_blocks[level],
                self.attention[level],
                spec,
                self.scan_blocks,
                name=name,
            )(h, emb, text, cond.text_mask, inner)

        x = jnp.concatenate([z_t, *cond.images()], axis=-1)  # [b, h, w, c] -> [b, h, w, c times the images]
        x = space_to_depth(x.astype(self.dtype), self.patch)  # [b, h, w, c] -> [b, h/p, w/p, p p c]
        h = conv(self.dims[0], dtype=self.dtype, name="conv_in")(x)
        first, skips, inner = h, [], []
        for level, features in enumerate(self.dims):
            h = conv(features, strides=2, dtype=self.dtype, name=f"down_{level}_conv")(h)  # -> [b, h/2, w/2, features]
            h, outputs = block(h, level, f"down_{level}")
            skips.append(h)
            inner.append(outputs if self.skips == "res_block" else None)
        for level in reversed(range(len(self.dims))):
            h, _ = block(h + skips[level] / math.sqrt(2), level, f"up_{level}", inner[level])
            h = upsample(h)  # [b, h, w, c] -> [b, 2 h, 2 w, c]
            h = conv(self.dims[max(level - 1, 0)], dtype=self.dtype, name=f"up_{level}_conv")(h)
        # No norm here: it would take the picture's mean and contrast away, which x0 and v have to carry. The gain
        # on z_t that a prediction needs depends on the noise level alone, which is what the embedding tells.
        h = scale_shift(h + first / math.sqrt(2), emb, jnp.float32)
        # [b, h/p, w/p, dims[0]] -> [b, h, w, c], or 2 c with a learned variance
        channels = (1 + self.learned_variance) * z_t.shape[-1] * self.patch**2
        return depth_to_space(conv(channels, 1, zero=True, dtype=jnp.float32, name="conv_out")(h), self.patch)
