"""DeepFloyd IF's U-Net, in the shape that diffusers writes it: module names are those of its state dict.

Facts about the network come from diffusers' UNet2DConditionModel (Apache 2.0) and its unet/config.json.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from imagen_jax.models.layers import Layer, conv, dense
from imagen_jax.typing import Array, Float

# diffusers fixes these two whatever the config says (models/attention_processor.py).
_TEXT_GROUPS, _ATTENTION_EPS = 32, 1e-5
_FLOAT = jnp.float32
_INTO_HEADS = ("embed", "heads")


@dataclasses.dataclass(frozen=True, kw_only=True)
class IFUNetConfig:
    """Sizes of one IF network; tuples have one entry a level, from the finest.

    Args:
      in_channels, out_channels: of the images; in_channels 6 is super-resolution.
      widths: channels of a level.
      layers: residual blocks of a level on the way down; one more on the way up.
      down_attends, up_attends: levels with attention; `up_attends` from the coarsest.
      head_dims: width of an attention head.
      only_cross: levels whose image positions see the text alone.
      mid_only_cross: the middle block's.
      text_dim, cross_dim: width of the text outside and inside the network.
      text_norm: the text goes through a GroupNorm of 32 groups before keys and values.
      pool_heads: heads of the attention pooling.
      time_dim: width of the summed embedding.
      embed_act: the summed embedding is activated once.
      skip_time_act: blocks do not activate it again.
      noise_level: the integer noise level is embedded as the time is.
      groups, eps: of every GroupNorm over image channels.
      out_scale, mid_scale: residual sums are divided by these.
      cos_first: cosines stand before sines.
      freq_shift: taken from the number of frequencies.
      kernel_in, kernel_out: sizes of the first and last convolution.
      scale_shift: the embedding scales and shifts; otherwise it is added.
    """

    in_channels: int
    out_channels: int
    widths: tuple[int, ...]
    layers: tuple[int, ...]
    down_attends: tuple[bool, ...]
    up_attends: tuple[bool, ...]
    head_dims: tuple[int, ...]
    only_cross: tuple[bool, ...]
    mid_only_cross: bool
    text_dim: int
    cross_dim: int
    text_norm: bool
    pool_heads: int
    time_dim: int
    embed_act: bool
    skip_time_act: bool
    noise_level: bool
    groups: int
    eps: float
    out_scale: float
    mid_scale: float
    cos_first: bool
    freq_shift: float
    kernel_in: int
    kernel_out: int
    scale_shift: bool


def _gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return jax.nn.gelu(x, approximate=False)


def _conv(channels: int, size: int, name: str) -> Layer:
    return conv(channels, size, dtype=_FLOAT, name=name)


def _dense(width: int, name: str, axes: tuple[str, str] = ("embed", "mlp")) -> Layer:
    return dense(width, axes=axes, dtype=_FLOAT, name=name)


class _Embedding(nn.Module):
    """Sinusoids of an integer, then two dense layers."""

    config: IFUNetConfig

    @nn.compact
    def __call__(self, t: Float[Array, " b"]) -> Float[Array, "b e"]:
        c = self.config
        half = c.widths[0] // 2
        rates = jnp.exp(-math.log(10000.0) * jnp.arange(half, dtype=_FLOAT) / (half - c.freq_shift))
        angles = t.astype(_FLOAT)[:, None] * rates
        waves = [jnp.cos(angles), jnp.sin(angles)] if c.cos_first else [jnp.sin(angles), jnp.cos(angles)]
        hidden = _gelu(_dense(c.time_dim, "linear_1")(jnp.concatenate(waves, -1)))
        return _dense(c.time_dim, "linear_2")(hidden)


class _Pool(nn.Module):
    """Attention pooling of the text: the mean token asks, the mean and all tokens answer."""

    heads: int

    @nn.compact
    def __call__(self, text: Float[Array, "b n d"]) -> Float[Array, "b d"]:
        dim = text.shape[-1]
        place = self.param("positional_embedding", nn.initializers.normal(dim**-0.5), (1, dim))
        token = text.mean(1, keepdims=True) + place
        whole = jnp.concatenate([token, text], 1)
        query, key, value = (
            _dense(dim, name)(x).reshape(x.shape[0], x.shape[1], self.heads, -1)
            for name, x in (("q_proj", token), ("k_proj", whole), ("v_proj", whole))
        )
        weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", query, key) * query.shape[-1] ** -0.5, -1)
        return jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(text.shape[0], dim)


class _TextEmbedding(nn.Module):
    """The text's part of the summed embedding."""

    config: IFUNetConfig

    @nn.compact
    def __call__(self, text: Float[Array, "b n d"]) -> Float[Array, "b e"]:
        pooled = _Pool(self.config.pool_heads, name="pool")(
            nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name="norm1")(text)
        )
        return nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name="norm2")(
            _dense(self.config.time_dim, "proj")(pooled)
        )


class _Resnet(nn.Module):
    """One residual block; `resample` "down" averages 2x2 pixels, "up" doubles them."""

    config: IFUNetConfig
    channels: int
    scale: float
    resample: str = ""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], emb: Float[Array, "b e"]) -> Float[Array, "b H W C"]:
        c = self.config
        hidden = _gelu(nn.GroupNorm(c.groups, epsilon=c.eps, use_fast_variance=False, name="norm1")(x))
        if self.resample == "down":
            x, hidden = (nn.avg_pool(y, (2, 2), (2, 2)) for y in (x, hidden))
        elif self.resample == "up":
            x, hidden = (y.repeat(2, 1).repeat(2, 2) for y in (x, hidden))
        hidden = _conv(self.channels, 3, "conv1")(hidden)
        emb = emb if c.skip_time_act else _gelu(emb)
        emb = _dense(self.channels * (2 if c.scale_shift else 1), "time_emb_proj")(emb)[:, None, None]
        norm = nn.GroupNorm(c.groups, epsilon=c.eps, use_fast_variance=False, name="norm2")
        if c.scale_shift:
            scale, shift = jnp.split(emb, 2, -1)
            hidden = norm(hidden) * (1 + scale) + shift
        else:
            hidden = norm(hidden + emb)
        hidden = _conv(self.channels, 3, "conv2")(_gelu(hidden))
        if x.shape[-1] != self.channels:
            x = _conv(self.channels, 1, "conv_shortcut")(x)
        return (x + hidden) / self.scale


class _Attention(nn.Module):
    """Image positions attend to the text's keys, followed by the image's own."""

    config: IFUNetConfig
    head_dim: int
    only_cross: bool

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], text: Float[Array, "b n d"]) -> Float[Array, "b h w c"]:
        c, width = self.config, x.shape[-1]
        flat = x.reshape(x.shape[0], -1, width)
        image = nn.GroupNorm(c.groups, epsilon=_ATTENTION_EPS, use_fast_variance=False, name="group_norm")(flat)
        if c.text_norm:  # Over the padded sequence: padding takes part.
            text = nn.GroupNorm(_TEXT_GROUPS, epsilon=_ATTENTION_EPS, use_fast_variance=False, name="norm_cross")(text)
        query = _dense(width, "to_q", _INTO_HEADS)(image)
        key, value = (_dense(width, name, ("text", "heads"))(text) for name in ("add_k_proj", "add_v_proj"))
        if not self.only_cross:
            key = jnp.concatenate([key, _dense(width, "to_k", _INTO_HEADS)(image)], 1)
            value = jnp.concatenate([value, _dense(width, "to_v", _INTO_HEADS)(image)], 1)
        query, key, value = (y.reshape(*y.shape[:2], -1, self.head_dim) for y in (query, key, value))
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key).astype(_FLOAT) * self.head_dim**-0.5
        out = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores, -1).astype(value.dtype), value)
        return x + _dense(width, "to_out_0", ("heads", "embed"))(out.reshape(flat.shape)).reshape(x.shape)


class _Level(nn.Module):
    """The blocks of one level, down or up."""

    config: IFUNetConfig
    level: int
    num: int
    attends: bool
    resample: str

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        emb: Float[Array, "b e"],
        text: Float[Array, "b n d"],
        skips: list[Array],
        up: bool,
    ) -> Float[Array, "b h2 w2 c2"]:
        """Down, appends to `skips`; up, takes from its end."""
        c, width = self.config, self.config.widths[self.level]
        for i in range(self.num):
            x = jnp.concatenate([x, skips.pop()], -1) if up else x
            x = _Resnet(c, width, c.out_scale, name=f"resnets_{i}")(x, emb)
            if self.attends:
                attention = _Attention(c, c.head_dims[self.level], c.only_cross[self.level], name=f"attentions_{i}")
                x = attention(x, text)
            if not up:
                skips.append(x)
        if self.resample:
            x = _Resnet(c, width, c.out_scale, self.resample, name=f"{self.resample}samplers_0")(x, emb)
            if not up:
                skips.append(x)
        return x


class _Middle(nn.Module):
    """Residual block, attention, residual block."""

    config: IFUNetConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], emb: Float[Array, "b e"], text: Float[Array, "b n d"]) -> Array:
        c = self.config
        x = _Resnet(c, c.widths[-1], c.mid_scale, name="resnets_0")(x, emb)
        x = _Attention(c, c.head_dims[-1], c.mid_only_cross, name="attentions_0")(x, text)
        return _Resnet(c, c.widths[-1], c.mid_scale, name="resnets_1")(x, emb)


class IFUNet(nn.Module):
    """IF's U-Net.

    Args:
      config: its sizes.
    """

    config: IFUNetConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        timestep: Float[Array, " b"],
        text: Float[Array, "b n d"],
        noise_level: Float[Array, " b"] | None = None,
    ) -> Float[Array, "b h w o"]:
        """Estimates eps and, in further channels, the variance; `text` is padded and has no mask."""
        c = self.config
        emb = _Embedding(c, name="time_embedding")(timestep)
        if c.noise_level:
            assert noise_level is not None
            emb = emb + _Embedding(c, name="class_embedding")(noise_level)
        emb = emb + _TextEmbedding(c, name="add_embedding")(text)
        emb = _gelu(emb) if c.embed_act else emb
        text = _dense(c.cross_dim, "encoder_hid_proj")(text)
        x = _conv(c.widths[0], c.kernel_in, "conv_in")(x)
        skips, last = [x], len(c.widths) - 1
        for i, attends in enumerate(c.down_attends):
            resample = "down" if i < last else ""
            x = _Level(c, i, c.layers[i], attends, resample, name=f"down_blocks_{i}")(x, emb, text, skips, False)
        x = _Middle(c, name="mid_block")(x, emb, text)
        for i, attends in enumerate(c.up_attends):
            level, resample = last - i, "up" if i < last else ""
            x = _Level(c, level, c.layers[level] + 1, attends, resample, name=f"up_blocks_{i}")(
                x, emb, text, skips, True
            )
        x = _gelu(nn.GroupNorm(c.groups, epsilon=c.eps, use_fast_variance=False, name="conv_norm_out")(x))
        return _conv(c.out_channels, c.kernel_out, "conv_out")(x)
