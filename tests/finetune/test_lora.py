"""LoRA's algebra on whole networks, against layers that compute x W + scale (x A) B with A and B apart."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.checkpoints.trees import named_leaves
from imagen_jax.errors import UserError
from imagen_jax.finetune import lora
from imagen_jax.finetune.lora import A, B, Layout, LoraConfig
from imagen_jax.models.denoiser import Conditioning
from imagen_jax.models.efficient_unet import EfficientUNet
from imagen_jax.sharding import rules
from imagen_jax.sharding.mesh import MeshConfig
from imagen_jax.stage.spec import Stage
from imagen_jax.train.lora import LoraObjective
from imagen_jax.train.state import abstract_params
from tests import tiny

ALL = LoraConfig(rank=2, alpha=3.0, targets=(".*",))


def abstract(stage: Stage) -> Any:
    return jax.eval_shape(stage.init, jax.random.key(0))


def noisy(tree: Any, seed: int) -> Any:
    """A tree of the same shapes with nothing zero in it."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape, np.float32)), tree)


def factors_of(stage: Stage, config: LoraConfig, seed: int = 1) -> Any:
    return noisy(rules.unbox(jax.eval_shape(lambda: lora.init(config, abstract(stage), jax.random.key(0)))), seed)


def inputs(stage: Stage) -> tuple[Any, ...]:
    made = tiny.batch(stage, 2)
    low_res = None if stage.low_res_size is None else stage.upsample_low_res(made["low_res"])
    level = None if low_res is None else jnp.full((2,), 0.2)
    cond = Conditioning(text=made["text"], text_mask=made["text_mask"], low_res=low_res, aug_level=level)
    return made["x0"], jnp.array([0.5, -1.0]), cond


def call_unmerged(stage: Stage, params: Any, factors: Any, scale: float) -> jax.Array:
    """The network where each dense layer and convolution has a branch of its own for A and B."""
    leaves = named_leaves(factors)

    def layer(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        out = call(*args, **kwargs)
        module, name = context.module, ".".join(context.module.path) + ".kernel"
        if context.method_name != "__call__" or f"{name}.{A}" not in leaves:
            return out
        (x,), a, b = args, leaves[f"{name}.{A}"], leaves[f"{name}.{B}"]
        if isinstance(module, nn.Dense):
            return out + scale * (x @ a) @ b
        pad = module.padding
        low = jax.lax.conv_general_dilated(
            x, a, module.strides, [(pad, pad)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return out + scale * low @ b

    with nn.intercept_methods(layer):
        return stage.model.apply({"params": params}, *inputs(stage))


@pytest.mark.parametrize("stage", [tiny.BASE, tiny.SR], ids=["base", "sr"])
def test_merged_is_unmerged_and_without_factors_exactly_the_base(stage):
    params = noisy(rules.unbox(abstract(stage)), 0)
    run = jax.jit(lambda params: stage.model.apply({"params": params}, *inputs(stage)))
    base, factors = np.asarray(run(params)), factors_of(stage, ALL)
    unmerged = np.asarray(jax.jit(lambda: call_unmerged(stage, params, factors, ALL.scale))())
    together = np.asarray(run(jax.jit(lora.merged, static_argnums=2)(params, factors, ALL.scale)))
    assert np.abs(together - base).max() > 0.05
    np.testing.assert_allclose(together, unmerged, atol=1e-5 * max(1.0, np.abs(base).max()))
    fresh = rules.unbox(jax.jit(lambda: lora.init(ALL, abstract(stage), jax.random.key(0)))())
    assert any(np.any(leaf) for leaf in jax.tree.leaves(fresh))
    none = lora.init(LoraConfig(rank=0), abstract(stage), jax.random.key(0))
    assert none == {}
    host = jax.tree.map(np.asarray, params)
    for same in (fresh, none):
        made = lora.merged(host, jax.tree.map(np.asarray, same), 1.5)
        for one, other in zip(*map(jax.tree.leaves, (made, host)), strict=True):
            assert np.array_equal(one, other)


def test_numpy_merges_as_jax_does_and_keeps_dtypes():
    params, factors = noisy(rules.unbox(abstract(tiny.BASE)), 0), factors_of(tiny.BASE, ALL)
    host = lora.merged(jax.tree.map(np.asarray, params), jax.tree.map(np.asarray, factors), 0.7)
    traced = jax.jit(lora.merged, static_argnums=2)(params, factors, 0.7)
    for one, other in zip(*map(jax.tree.leaves, (host, traced)), strict=True):
        assert isinstance(one, np.ndarray) and one.dtype == np.float32
        np.testing.assert_allclose(one, other, atol=1e-6)
    half = lora.merged(jnp.ones((3, 2), jnp.bfloat16), {A: np.ones((3, 1)), B: np.ones((1, 2))}, 1.0)
    assert half.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("names", "shape", "a", "b"),
    [
        (("embed", "mlp"), (5, 7), (5, 2), (2, 7)),
        (("conv_h", "conv_w", "conv_in", "conv_out"), (3, 3, 5, 7), (3, 3, 5, 2), (2, 7)),
        (("layers", "embed", "heads"), (4, 5, 7), (4, 5, 2), (4, 2, 7)),
        (("embed", None, "heads", "head_dim"), (5, 3, 2, 4), (5, 2), (2, 3, 2, 4)),
        (("heads", "head_dim", "embed"), (2, 4, 5), (2, 4, 2), (2, 5)),
    ],
)
def test_axes_are_read_from_their_names(names, shape, a, b):
    layout = Layout.of(nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, jnp.float32), names))
    assert layout is not None
    found = layout.factors(2)
    assert (found[A][0], found[B][0]) == (a, b)
    assert sorted(map(str, (*found[A][1], *found[B][1]))) == sorted(
        map(str, (*names, None, None, *(["layers"] if "layers" in names else [])))
    )
    left, right = (np.random.default_rng(n).normal(size=s).astype(np.float32) for n, s in enumerate((a, b)))
    kernel = lora.merged(np.zeros(shape, np.float32), {A: left, B: right}, 2.0)
    wanted = np.stack([x @ y for x, y in zip(left, right, strict=True)]) if names[0] == "layers" else None
    np.testing.assert_allclose(kernel, 2 * (np.tensordot(left, right, 1) if wanted is None else wanted), rtol=1e-5)


def test_vectors_are_left_out_and_a_scan_is_stacked():
    stacked = EfficientUNet(
        dims=(8,), num_res_blocks=(2,), attention=("joint",), head_dim=8, emb_dim=16, text_dim=8, scan_blocks=True
    )
    stage = Stage(name="x", model=stacked, image_size=8, text_embed_dim=12, max_text_length=6)
    found = lora.layouts(ALL, abstract(stage))
    deep = {name: layout for name, layout in found.items() if layout.num_stacked}
    assert deep and all(name.endswith("kernel") for name in found)
    assert all(layout.shape[0] == 2 and layout.parts[0] == (2,) for layout in deep.values())
    attention = lora.layouts(LoraConfig(), abstract(stage))
    assert {name.split(".")[-2] for name in attention} == {"qkv", "text_kv", "out", "query", "key_value"}


def test_factors_are_split_where_their_kernels_are_and_give_the_loss_of_one_device():
    mesh = MeshConfig(data=1, fsdp=2).build(jax.devices()[:2])
    objective = LoraObjective(stage=tiny.BASE, lora=LoraConfig(rank=2))
    params = named_leaves(objective.network_spec(mesh))
    split = 0
    for name, leaf in named_leaves(abstract_params(objective.init, mesh)).items():
        kernel, _, factor = name.rpartition(".")
        axes = (*params[kernel].sharding.spec, None, None)[:2]
        own = (*leaf.sharding.spec, None, None)[:2]
        at = 0 if factor == A else 1
        assert own[1 - at] is None and (own[at] == axes[at] or axes[at] is None)
        split += own != (None, None)
    assert split > 3
    base, factors = noisy(rules.unbox(abstract(tiny.BASE)), 0), factors_of(tiny.BASE, objective.lora)
    batch, rng = tiny.batch(tiny.BASE, 4), jax.random.key(3)

    def value(mesh: Any) -> Any:
        loss = lambda factors: objective.loss(factors, base, batch, rng, mesh)[0]  # noqa: E731
        return jax.jit(jax.value_and_grad(loss))(factors)

    alone, spread = value(None), value(mesh)
    for one, other in zip(*map(jax.tree.leaves, (alone, spread)), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": -1}, "LoraConfig.rank"),
        ({"alpha": 0.0}, "above 0"),
        ({"targets": "a"}, "list of regular expressions"),
        ({"targets": ("(",)}, "no regular expression"),
    ],
)
def test_settings_are_checked(changes, message):
    with pytest.raises(UserError, match=message):
        LoraConfig(**changes)


def test_a_target_without_a_kernel_and_factors_of_another_network_are_told():
    with pytest.raises(UserError, match=r"'nothing' matches no kernel of the network; its kernels are .*kernel"):
        lora.layouts(LoraConfig(targets=("nothing", ".*")), abstract(tiny.BASE))
    factors = factors_of(tiny.BASE, LoraConfig(rank=2))
    lora.check_factors(factors, abstract(tiny.BASE), "it")
    with pytest.raises(UserError, match="it is of another network: .*; .*use it with the stage"):
        lora.check_factors(factors, abstract(tiny.SR), "it")
