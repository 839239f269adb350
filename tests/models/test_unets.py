"""The networks: sizes, what they may and may not look at, and the parts against float64 arithmetic."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.cost.flops import count_flops
from imagen_jax.errors import UserError
from imagen_jax.models.attention import Attention, AttentionSpec
from imagen_jax.models.denoiser import Conditioning, drop_text
from imagen_jax.models.efficient_unet import EfficientUNet
from imagen_jax.models.embeddings import AttentionPool, sinusoid
from imagen_jax.models.layers import ResBlock, depth_to_space, downsample, space_to_depth, upsample
from imagen_jax.models.transformer import PixelTransformer
from imagen_jax.models.unet import UNet

BASE = UNet(
    dim=8,
    dim_mults=(1, 2),
    num_res_blocks=1,
    attention=("none", "joint"),
    head_dim=4,
    emb_dim=16,
    text_dim=8,
)
SR = EfficientUNet(
    dims=(8, 16),
    num_res_blocks=(1, 1),
    attention=("none", "joint"),
    head_dim=4,
    emb_dim=16,
    text_dim=8,
)

TRANSFORMER = PixelTransformer(dim=16, depth=2, patch=2, head_dim=8)


def _cond(batch: int, height: int, width: int, low_res: bool, seed: int = 0) -> Conditioning:
    text_rng, low_rng = jax.random.split(jax.random.key(seed))
    cond = Conditioning(
        text=jax.random.normal(text_rng, (batch, 5, 12)),
        text_mask=jnp.arange(5)[None] < jnp.array([[3]] * batch),
    )
    if low_res:
        cond = cond.replace(
            low_res=jax.random.normal(low_rng, (batch, height, width, 3)), aug_level=jnp.full((batch,), 0.2)
        )
    return cond


def _randomised(model: nn.Module, cond: Conditioning, z_t: jax.Array):
    """Parameters without the zeros of the initialisation, which would hide what the output depends on."""
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), z_t, jnp.zeros(z_t.shape[0]), cond)["params"])
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [leaf + 0.1 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, noisy)


@pytest.fixture(scope="module", params=["base", "sr", "base in patches", "sr in patches", "transformer"])
def network(request):
    low_res = request.param.startswith(("sr", "transformer"))
    model, cond = (SR if low_res else BASE), _cond(2, 8, 12, low_res)
    if request.param.endswith("patches"):
        # One level less, so that the same sizes can be drawn.
        model = (
            SR.copy(dims=(8,), num_res_blocks=(1,), attention=("joint",), patch=2) if low_res else BASE.copy(patch=2)
        )
    elif request.param == "transformer":
        model = TRANSFORMER
    z_t = jax.random.normal(jax.random.key(5), (2, 8, 12, 3))
    params = _randomised(model, cond, z_t)
    apply = jax.jit(lambda z, log_snr, c: model.apply({"params": params}, z, log_snr, c))
    return model, apply, z_t, jnp.array([0.3, -2.0]), cond


def test_output_has_the_shape_of_the_input_also_when_not_square(network) -> None:
    _, apply, z_t, log_snr, cond = network
    output = apply(z_t, log_snr, cond)
    assert output.shape == z_t.shape and output.dtype == jnp.float32
    assert np.isfinite(output).all()


def test_output_follows_text_noise_level_and_low_res(network) -> None:
    _, apply, z_t, log_snr, cond = network
    output = apply(z_t, log_snr, cond)
    other = _cond(2, 8, 12, cond.low_res is not None, seed=9)
    changed = [cond.replace(text=other.text)]
    if cond.low_res is not None:
        changed += [cond.replace(low_res=other.low_res), cond.replace(aug_level=jnp.full((2,), 0.7))]
    for c in changed:
        assert np.abs(apply(z_t, log_snr, c) - output).max() > 1e-3
    assert np.abs(apply(z_t, log_snr + 1.0, cond) - output).max() > 1e-3


def test_padding_and_null_text_are_invisible(network) -> None:
    _, apply, z_t, log_snr, cond = network
    padded = cond.replace(text=jnp.where(cond.text_mask[..., None], cond.text, 77.0))
    np.testing.assert_allclose(apply(z_t, log_snr, padded), apply(z_t, log_snr, cond), atol=1e-5)
    dropped = drop_text(cond, jnp.array([False, True]))
    unrelated = cond.replace(text=cond.text[::-1] * 3, text_mask=dropped.text_mask)
    np.testing.assert_allclose(apply(z_t, log_snr, dropped)[0], apply(z_t, log_snr, unrelated)[0], atol=1e-5)
    np.testing.assert_allclose(apply(z_t, log_snr, dropped)[1], apply(z_t, log_snr, cond)[1], atol=1e-5)


def test_rows_do_not_see_each_other(network) -> None:
    _, apply, z_t, log_snr, cond = network
    one = jax.tree.map(lambda a: jnp.repeat(a[:1], 2, axis=0), (z_t, log_snr, cond))
    np.testing.assert_allclose(apply(*one)[0], apply(z_t, log_snr, cond)[0], atol=1e-5)


def test_a_fresh_network_predicts_zero(network) -> None:
    model, _, z_t, log_snr, cond = network
    variables = nn.unbox(jax.jit(model.init)(jax.random.key(3), z_t, log_snr, cond))
    np.testing.assert_array_equal(jax.jit(model.apply)(variables, z_t, log_snr, cond), 0.0)


def test_sizes_that_cannot_be_halved_are_refused(network) -> None:
    model, _, _, _, cond = network
    with pytest.raises(UserError, match=r"image_size \(width\) \(13\) must be divisible by .*choose 12 or"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((2, 8, 13, 3)), jnp.zeros(2), cond)


@pytest.mark.parametrize("side", [1, 2, 3])
def test_patches_are_gathered_pixel_by_pixel(side: int) -> None:
    x = np.random.default_rng(0).normal(size=(2, 6, 12, 3)).astype(np.float32)
    gathered = np.asarray(space_to_depth(jnp.asarray(x), side))
    assert gathered.shape == (2, 6 // side, 12 // side, 3 * side**2)
    for i, j in np.ndindex(*gathered.shape[1:3]):
        square = x[:, side * i : side * (i + 1), side * j : side * (j + 1)]
        np.testing.assert_array_equal(gathered[:, i, j], square.reshape(2, -1))
    np.testing.assert_array_equal(depth_to_space(jnp.asarray(gathered), side), x)


def test_settings_of_unequal_length_are_refused() -> None:
    cond, z_t = _cond(2, 8, 8, False), jnp.zeros((2, 8, 8, 3))
    for model, message in (
        (BASE.copy(attention=("joint",)), "one entry for each of the 2 levels"),
        (BASE.copy(attention=("none", "text")), "each one of none, joint, cross, self, self_cross"),
        (SR.copy(num_res_blocks=(1,)), "one entry a block"),
        (SR.copy(skips="all"), "skips .'all'. must be one of block, res_block"),
        (BASE.copy(remat="dots"), "remat .'dots'. must be one of none, block, matmuls, kernels, offload"),
        (BASE.copy(dtype="float16"), "dtype .'float16'. must be one of float32, bfloat16"),
        (SR.copy(dtype=jnp.int32), "dtype .*int32.* must be one of float32, bfloat16"),
        (BASE.copy(dtype="single-precision"), "dtype .'single-precision'. must be one of"),
        (BASE.copy(text_pooling="max"), "text_pooling .'max'. must be one of attention, mean"),
        (BASE.copy(head_dim=5, text_dim=10), r"head_dim \(5\) must divide the channels"),
        (BASE.copy(head_dim=5), r"head_dim \(5\) must divide text_dim"),
    ):
        with pytest.raises(UserError, match=message):
            jax.eval_shape(model.init, jax.random.key(0), z_t, jnp.zeros(2), cond)


@pytest.mark.parametrize(("model", "message"), [
    (BASE.copy(dim=0), r"UNet.dim \(0\) must be an integer >= 1"),
    (BASE.copy(dim=-8), r"UNet.dim \(-8\) must be an integer >= 1"),
    (BASE.copy(dim=10**9), r"UNet.dim \(1000000000\) must be at most 65536"),
    (BASE.copy(dim_mults=(1, -2)), r"UNet.dim_mults \(-2\) must be an integer >= 1"),
    (BASE.copy(num_res_blocks=-1), r"UNet.num_res_blocks \(-1\) must be an integer >= 0"),
    (BASE.copy(num_res_blocks=10**9), r"UNet.num_res_blocks \(1000000000\) must be at most 1024"),
    (BASE.copy(emb_dim=-(2**31)), r"UNet.emb_dim \(-2147483648\) must be an integer >= 0"),
    (BASE.copy(head_dim=0), r"UNet.head_dim \(0\) must be an integer >= 1"),
    (BASE.copy(text_dim=-1), r"UNet.text_dim \(-1\) must be an integer >= 1"),
    (SR.copy(dims=(8, 0)), r"EfficientUNet.dims \(0\) must be an integer >= 1"),
    (SR.copy(num_res_blocks=(1, -1)), r"EfficientUNet.num_res_blocks \(-1\) must be an integer >= 0"),
    (TRANSFORMER.copy(depth=0), r"PixelTransformer.depth \(0\) must be an integer >= 1"),
    (TRANSFORMER.copy(mlp_dim=-1), r"PixelTransformer.mlp_dim \(-1\) must be an integer >= 0"),
    (TRANSFORMER.copy(head_dim=6), r"head_dim \(6\) must be a multiple of 4, .*divide dim \(16\); 64 is usual"),
    (SR.copy(emb_dim=10**9), r"EfficientUNet.emb_dim \(1000000000\) must be at most 65536"),
])  # fmt: skip
def test_sizes_that_no_array_has_are_refused(model: nn.Module, message: str) -> None:
    cond, z_t = _cond(2, 8, 8, model.__class__ is EfficientUNet), jnp.zeros((2, 8, 8, 3))
    with pytest.raises(UserError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), z_t, jnp.zeros(2), cond)


VARIANTS = [
    BASE.copy(attention=("none", "self"), text_pooling="mean"),
    BASE.copy(attention=("none", "self_cross"), text_norm=False),
    SR.copy(attention=("none", "cross"), num_res_blocks=(1, 2), skips="res_block"),
]


def _gradient_of(model: nn.Module, params, z_t: jax.Array, cond: Conditioning):
    def loss(params):
        return jnp.square(model.apply({"params": params}, z_t, jnp.array([0.3, -2.0]), cond)).mean()

    return jax.value_and_grad(loss), loss


@pytest.mark.slow
@pytest.mark.parametrize("model", VARIANTS, ids=["pooling alone", "cross-attention", "1024 stage"])
def test_rematerialised_and_scanned_networks_compute_the_same(model: nn.Module) -> None:
    z_t = jax.random.normal(jax.random.key(5), (2, 8, 8, 3))
    cond = _cond(2, 8, 8, isinstance(model, EfficientUNet))
    params = _randomised(model, cond, z_t)
    plain, loss = _gradient_of(model, params, z_t, cond)
    expected, forward, work = jax.jit(plain)(params), count_flops(loss, params), count_flops(plain, params)
    for remat, least, most in (("block", 0.25, 1.0), ("kernels", 0.0, 0.05), ("offload", 0.0, 0.1)):
        again, _ = _gradient_of(model.copy(remat=remat), params, z_t, cond)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), jax.jit(again)(params), expected)
        # What the backward pass computes again, in forward passes.
        assert least < (count_flops(again, params) - work) / forward + 1e-9 <= most
    if isinstance(model, EfficientUNet):
        scanned = model.copy(scan_blocks=True, remat="matmuls")
        stacked = _stack_blocks(params)
        again, _ = _gradient_of(scanned, stacked, z_t, cond)
        value, gradient = jax.jit(again)(stacked)
        np.testing.assert_allclose(value, expected[0], rtol=1e-5)
        expected_gradient = _stack_blocks(expected[1])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradient, expected_gradient)


def _stack_blocks(params):
    """The tree of a network with scan_blocks: res_0, res_1, … as one res/block."""
    made = {}
    for name, block in params.items():
        names = sorted(part for part in block if part.startswith("res_")) if name.startswith(("down", "up")) else []
        if names:
            rest = {part: value for part, value in block.items() if part not in names}
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(block[part] for part in names))
            block = {**rest, "res": {"block": stacked}}
        made[name] = block
    return made


def test_pooling_alone_sees_no_order_and_cross_attention_sees_each_token() -> None:
    z_t = jax.random.normal(jax.random.key(5), (2, 8, 8, 3))
    cond = _cond(2, 8, 8, False).replace(text_mask=jnp.ones((2, 5), bool))
    # Same mean, other tokens.
    moved = cond.replace(text=cond.text + jnp.array([1.0, -1, 1, -1, 0])[None, :, None])
    for model, sees in ((VARIANTS[0].copy(text_norm=False), False), (VARIANTS[1], True)):
        params = _randomised(model, cond, z_t)
        apply = jax.jit(lambda c, model=model, params=params: model.apply({"params": params}, z_t, jnp.zeros(2), c))
        np.testing.assert_allclose(apply(cond.replace(text=cond.text[:, ::-1])), apply(cond), atol=1e-5)
        assert (np.abs(apply(moved) - apply(cond)).max() > 1e-3) == sees
        assert ("text_norm" in params["embedder"]) == model.text_norm


def test_cross_attention_without_text_leaves_rows_as_they_are() -> None:
    x = jax.random.normal(jax.random.key(0), (2, 2, 2, 8))
    text, mask = jax.random.normal(jax.random.key(1), (2, 3, 6)), jnp.array([[True, False, True], [False] * 3])
    layer = Attention(AttentionSpec(head_dim=4), over_image=False, over_text=True)
    params = nn.unbox(layer.init(jax.random.key(2), x, text, mask)["params"])
    params = jax.tree.map(lambda p: p + 0.3, params)
    out = layer.apply({"params": params}, x, text, mask)
    np.testing.assert_array_equal(out[1], x[1])
    assert np.abs(out[0] - x[0]).min() > 0


def test_bfloat16_compute_stays_near_float32_and_keeps_float32_parameters() -> None:
    cond, z_t = _cond(2, 8, 8, True), jax.random.normal(jax.random.key(5), (2, 8, 8, 3))
    params = _randomised(SR, cond, z_t)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    full = jax.jit(SR.apply)({"params": params}, z_t, jnp.zeros(2), cond)
    half = jax.jit(SR.copy(dtype=jnp.bfloat16).apply)({"params": params}, z_t, jnp.zeros(2), cond)
    assert half.dtype == jnp.float32
    assert 0 < float(jnp.abs(half - full).max()) < 0.05 * float(jnp.abs(full).max()) + 0.05


def test_attention_is_softmax_over_text_then_positions() -> None:
    """The layer against the textbook formula in float64."""
    x = jax.random.normal(jax.random.key(0), (1, 2, 2, 8))
    text, mask = jax.random.normal(jax.random.key(1), (1, 3, 6)), jnp.array([[True, True, False]])
    layer = Attention(AttentionSpec(head_dim=4), over_image=True, over_text=True)
    params = nn.unbox(layer.init(jax.random.key(2), x, text, mask)["params"])
    params["out"]["kernel"] = jax.random.normal(jax.random.key(3), (8, 8))
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    flat, tokens = np.asarray(x, np.float64).reshape(4, 8), np.asarray(text, np.float64)[0, :2]
    groups = flat.reshape(4, 2, 4)  # GroupNorm: 2 groups of 4 channels, over positions and channels of a group.
    normed = (groups - groups.mean((0, 2), keepdims=True)) / np.sqrt(groups.var((0, 2), keepdims=True) + 1e-6)
    q, k, v = np.split(normed.reshape(4, 8) @ p["qkv"]["kernel"], 3, axis=1)
    tokens = (tokens - tokens.mean(1, keepdims=True)) / np.sqrt(tokens.var(1, keepdims=True) + 1e-6)
    text_k, text_v = np.split(tokens @ p["text_kv"]["kernel"], 2, axis=1)
    keys, values = np.concatenate([text_k, k]), np.concatenate([text_v, v])
    heads = []
    for head in (slice(0, 4), slice(4, 8)):
        logits = q[:, head] @ keys[:, head].T / 2.0
        weights = np.exp(logits - logits.max(1, keepdims=True))
        heads.append(weights / weights.sum(1, keepdims=True) @ values[:, head])
    expected = flat + np.concatenate(heads, 1) @ p["out"]["kernel"] + p["out"]["bias"]
    got = layer.apply({"params": params}, x, text, mask)
    np.testing.assert_allclose(got.reshape(4, 8), expected, atol=1e-4)


def test_attention_pool_of_one_token_is_its_value_plus_itself() -> None:
    tokens = jax.random.normal(jax.random.key(0), (1, 3, 8))
    pool = AttentionPool(head_dim=4)
    mask = jnp.array([[False, True, False]])
    variables = nn.unbox(pool.init(jax.random.key(1), tokens, mask))
    kernel = np.asarray(variables["params"]["key_value"]["kernel"])
    value = np.asarray(tokens)[0, 1] @ kernel[:, 8:]
    np.testing.assert_allclose(pool.apply(variables, tokens, mask)[0], value + np.asarray(tokens)[0, 1], atol=1e-5)


def test_sinusoid_has_the_stated_frequencies() -> None:
    x = np.array([0.7, -3.0])
    freqs = 10000.0 ** (-np.arange(4) / 4)
    expected = np.concatenate([np.cos(x[:, None] * freqs), np.sin(x[:, None] * freqs)], 1)
    np.testing.assert_allclose(sinusoid(jnp.asarray(x, jnp.float32), 8), expected, atol=1e-6)


def test_resampling_blocks_halve_and_double() -> None:
    x, emb = jax.random.normal(jax.random.key(0), (1, 4, 6, 8)), jnp.ones((1, 4))
    for resample, shape in ((downsample, (1, 2, 3, 16)), (upsample, (1, 8, 12, 16))):
        block = ResBlock(16, resample)
        variables = nn.unbox(block.init(jax.random.key(1), x, emb))
        assert block.apply(variables, x, emb).shape == shape
    np.testing.assert_allclose(downsample(upsample(x)), x, atol=1e-6)
