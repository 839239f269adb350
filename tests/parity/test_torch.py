"""Network parts and optimizer against PyTorch's own, on the same numbers. Needs the `parity` extra."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from imagen_jax.models.attention import Attention, AttentionSpec
from imagen_jax.models.layers import ResBlock, conv, downsample, upsample
from imagen_jax.train.optimizer import OptimizerConfig


def _torch(array) -> torch.Tensor:
    return torch.tensor(np.asarray(array))


def _nchw(array) -> torch.Tensor:
    return _torch(array).permute(0, 3, 1, 2)


def _noisy(params):
    leaves, tree = jax.tree.flatten(nn.unbox(params))
    keys = jax.random.split(jax.random.key(9), len(leaves))
    noisy = [leaf + 0.2 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, noisy)


def _conv2d(x: torch.Tensor, p, stride: int = 1) -> torch.Tensor:
    weight = _torch(p["kernel"]).permute(3, 2, 0, 1)
    return torch.nn.functional.conv2d(x, weight, _torch(p["bias"]), stride, weight.shape[-1] // 2)


def _group_norm(x: torch.Tensor, p, groups: int) -> torch.Tensor:
    return torch.nn.functional.group_norm(x, groups, _torch(p["scale"]), _torch(p["bias"]), 1e-6)


class _Convolution(nn.Module):
    stride: int

    @nn.compact
    def __call__(self, x):
        return conv(5, strides=self.stride, dtype=jnp.float32, name="c")(x)


@pytest.mark.parametrize("stride", [1, 2])
def test_convolution(stride: int) -> None:
    x = jax.random.normal(jax.random.key(0), (2, 8, 6, 4))
    layer = _Convolution(stride)
    params = _noisy(layer.init(jax.random.key(1), x)["params"])
    expected = _conv2d(_nchw(x), params["c"], stride).permute(0, 2, 3, 1)
    np.testing.assert_allclose(layer.apply({"params": params}, x), expected, atol=1e-5)


@pytest.mark.parametrize("resample", [None, downsample, upsample])
def test_residual_block(resample) -> None:
    x, emb = jax.random.normal(jax.random.key(0), (2, 8, 6, 8)), jax.random.normal(jax.random.key(1), (2, 12))
    block = ResBlock(16, resample)
    p = _noisy(jax.jit(block.init)(jax.random.key(2), x, emb)["params"])
    swish, h, skip = torch.nn.functional.silu, _nchw(x), _nchw(x)
    h = swish(_group_norm(h, p["norm_in"], 2))
    change = {
        None: lambda t: t,
        downsample: lambda t: torch.nn.functional.avg_pool2d(t, 2),
        upsample: lambda t: torch.nn.functional.interpolate(t, scale_factor=2, mode="nearest"),
    }[resample]
    h, skip = change(h), change(skip)
    h = _group_norm(_conv2d(h, p["conv_in"]), p["norm_out"], 4)
    both = swish(_torch(emb)) @ _torch(p["scale_shift"]["kernel"]) + _torch(p["scale_shift"]["bias"])
    scale, shift = both[:, :, None, None].chunk(2, dim=1)
    h = _conv2d(swish(h * (1 + scale) + shift), p["conv_out"]) + _conv2d(skip, p["conv_residual"])
    np.testing.assert_allclose(block.apply({"params": p}, x, emb), h.permute(0, 2, 3, 1), atol=5e-5)


def test_attention_over_text_and_positions() -> None:
    x, text = (
        jax.random.normal(jax.random.key(0), (2, 4, 4, 16)),
        jax.random.normal(jax.random.key(1), (2, 5, 6)),
    )
    mask = jnp.arange(5)[None] < jnp.array([[3], [0]])
    layer = Attention(AttentionSpec(head_dim=8), over_image=True, over_text=True)
    p = _noisy(jax.jit(layer.init)(jax.random.key(2), x, text, mask)["params"])
    flat = _group_norm(_nchw(x), p["norm"], 4).flatten(2).transpose(1, 2)
    tokens = torch.nn.functional.layer_norm(
        _torch(text), (6,), _torch(p["text_norm"]["scale"]), _torch(p["text_norm"]["bias"]), 1e-6
    )

    def heads(t: torch.Tensor) -> torch.Tensor:
        return t.unflatten(2, (2, 8)).transpose(1, 2)

    q, k, v = (heads(t) for t in (flat @ _torch(p["qkv"]["kernel"])).chunk(3, dim=2))
    text_k, text_v = (heads(t) for t in (tokens @ _torch(p["text_kv"]["kernel"])).chunk(2, dim=2))
    seen = torch.cat([_torch(mask), torch.ones(2, 16, dtype=torch.bool)], 1)[:, None, None]
    out = torch.nn.functional.scaled_dot_product_attention(
        q, torch.cat([text_k, k], 2), torch.cat([text_v, v], 2), attn_mask=seen
    )
    out = out.transpose(1, 2).flatten(2) @ _torch(p["out"]["kernel"]) + _torch(p["out"]["bias"])
    expected = _torch(x) + out.unflatten(1, (4, 4))
    np.testing.assert_allclose(layer.apply({"params": p}, x, text, mask), expected, atol=2e-5)


def test_adamw_with_clipping_takes_torchs_steps() -> None:
    """Kernels decay and biases do not, as with PyTorch's usual two groups of parameters."""
    rng = np.random.default_rng(0)
    start = {"kernel": rng.normal(size=(6, 5)).astype(np.float32), "bias": rng.normal(size=5).astype(np.float32)}
    config = OptimizerConfig(name="adamw", learning_rate=0.01, warmup_steps=0, weight_decay=0.1, grad_clip_norm=1.0)
    ours, optimizer = {name: jnp.asarray(value) for name, value in start.items()}, config.build()
    state = optimizer.init(ours)
    theirs = {name: torch.tensor(value, requires_grad=True) for name, value in start.items()}
    groups = [{"params": [theirs["kernel"]], "weight_decay": 0.1}, {"params": [theirs["bias"]], "weight_decay": 0.0}]
    peer = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.999), eps=1e-8)
    for step in range(6):
        rng = np.random.default_rng(step + 1)
        grads = {name: rng.normal(size=value.shape).astype(np.float32) for name, value in start.items()}
        updates, state = optimizer.update({name: jnp.asarray(grad) for name, grad in grads.items()}, state, ours)
        ours = optax.apply_updates(ours, updates)
        for name, parameter in theirs.items():
            parameter.grad = torch.tensor(grads[name])
        torch.nn.utils.clip_grad_norm_(list(theirs.values()), 1.0)
        peer.step()
        for name, parameter in theirs.items():
            np.testing.assert_allclose(ours[name], parameter.detach(), atol=2e-6)
