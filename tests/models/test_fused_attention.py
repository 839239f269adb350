"""cuDNN's attention, as far as a machine without its GPU can tell: same arithmetic, and a program that calls it."""

import dataclasses
import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.cost.flops import count_flops
from imagen_jax.errors import UserError
from imagen_jax.models.attention import fused_attention
from imagen_jax.models.denoiser import Conditioning
from imagen_jax.models.efficient_unet import EfficientUNet
from imagen_jax.models.unet import UNet

_WIDTHS = {"head_dim": 8, "emb_dim": 16, "text_dim": 8}
NETWORKS = {
    "joint": UNet(dim=8, dim_mults=(1, 2), num_res_blocks=1, attention=("none", "joint"), **_WIDTHS),
    "self and cross": UNet(dim=8, dim_mults=(1, 2), num_res_blocks=1, attention=("none", "self_cross"), **_WIDTHS),
    "cross": EfficientUNet(dims=(8, 16), num_res_blocks=(1, 1), attention=("none", "cross"), **_WIDTHS),
}
# Attention layers of each.
LAYERS = {"joint": 4, "self and cross": 8, "cross": 2}


@pytest.fixture(scope="module", params=list(NETWORKS))
def case(request):
    """A network, parameters without the zeros of the initialisation, inputs; one row's text has holes, one has none."""
    rngs = jax.random.split(jax.random.key(0), 3)
    mask = jnp.array([[True, False, True, False, True], [False] * 5, [True, True, False, False, False]])
    cond = Conditioning(text=jax.random.normal(rngs[0], (3, 5, 12)), text_mask=mask)
    inputs = (jax.random.normal(rngs[1], (3, 8, 12, 3)), jnp.array([0.3, -2.0, 4.0]), cond)
    params = nn.unbox(jax.jit(NETWORKS[request.param].init)(rngs[2], *inputs)["params"])
    leaves, tree = jax.tree.flatten(params)
    noise = [0.1 * jax.random.normal(jax.random.key(i), leaf.shape) for i, leaf in enumerate(leaves)]
    return request.param, jax.tree.unflatten(tree, [a + b for a, b in zip(leaves, noise, strict=True)]), inputs


def _loss(network, params, z_t, log_snr, cond):
    return jnp.square(network.apply({"params": params}, z_t, log_snr, cond) - 1).mean()


@pytest.fixture
def with_cudnn(monkeypatch):
    """Tracing asks for cuDNN's version, compiling would ask for cuDNN itself."""
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000)


@pytest.mark.slow
def test_it_is_the_attention_of_the_networks(case, monkeypatch):
    """With the library's own arithmetic in the place of its cuDNN kernel, whatever tokens are real."""
    name, params, inputs = case

    def value_and_gradient(fused):
        network = dataclasses.replace(NETWORKS[name], fused_attention=fused)
        return jax.jit(jax.value_and_grad(functools.partial(_loss, network)))(params, *inputs)

    expected = value_and_gradient(False)
    library = jax.nn.dot_product_attention

    def on_any_device(*args, implementation=None, **settings):
        return library(*args, **settings, implementation="xla")

    monkeypatch.setattr(jax.nn, "dot_product_attention", on_any_device)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-6), value_and_gradient(True), expected
    )


@pytest.mark.parametrize(("remat", "forwards"), [("none", 1), ("matmuls", 1), ("block", 2)])
def test_a_program_for_gpus_calls_cudnn_forwards_and_backwards(case, with_cudnn, remat, forwards):
    """Once a layer each; `matmuls` keeps what the kernel gave, `block` has it compute that again."""
    name, params, inputs = case
    network = dataclasses.replace(NETWORKS[name], fused_attention=True, dtype=jnp.bfloat16, remat=remat)
    step = jax.jit(jax.value_and_grad(lambda params: _loss(network, params, *inputs)))
    text = step.trace(params).lower(lowering_platforms=("cuda",)).as_text()
    calls = re.findall(r"@__cudnn\$(fmhaSoftmax\w*)\(", text)
    assert sorted(calls) == ["fmhaSoftmax"] * forwards * LAYERS[name] + ["fmhaSoftmaxBackward"] * LAYERS[name]


def test_its_work_is_counted(with_cudnn):
    query, key = jnp.zeros((2, 64, 3, 16), jnp.bfloat16), jnp.zeros((2, 72, 3, 16), jnp.bfloat16)

    def attend(query, key):
        return fused_attention(query, key, key, jnp.array([72, 70])).astype(jnp.float32).sum()

    product = 2 * 2 * 64 * 72 * 3 * 16
    assert count_flops(attend, query, key) == 2 * product
    # Forwards two; backwards the gradients of queries, keys, weights and values.
    assert count_flops(jax.grad(attend, argnums=(0, 1)), query, key) == 6 * product


def test_what_cudnn_has_no_kernel_for_is_named(with_cudnn, monkeypatch):
    query = jnp.zeros((1, 4, 1, 8), jnp.float32)
    with pytest.raises(UserError, match=r"dtype bfloat16 \(got float32\).*fused_attention = False"):
        fused_attention(query, query, query, jnp.array([4]))
    query = jnp.zeros((1, 4, 1, 12), jnp.bfloat16)
    with pytest.raises(UserError, match=r"head_dim \(12\) that is a multiple of 8"):
        fused_attention(query, query, query, jnp.array([4]))


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="there is cuDNN")
def test_without_cudnn_it_says_so():
    query = jnp.zeros((1, 4, 1, 8), jnp.bfloat16)
    with pytest.raises(UserError, match=r"cannot be had: cuDNN is not detected\. It wants an NVIDIA GPU"):
        fused_attention(query, query, query, jnp.array([4]))
