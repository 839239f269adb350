"""The pixel transformer: a block against float64 arithmetic, and what rotations, order and masks may change."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax import gin_config
from imagen_jax.models import transformer
from imagen_jax.models.attention import softmax_attention
from imagen_jax.models.denoiser import Conditioning
from imagen_jax.models.transformer import PixelTransformer, TransformerBlock, rope_angles, rotate
from imagen_jax.sharding import rules
from imagen_jax.sharding.mesh import MeshConfig
from imagen_jax.train.config import TrainConfig
from tests.tiny import TRANSFORMER, batch

MODEL = PixelTransformer(dim=16, depth=2, patch=2, head_dim=8)
BLOCK = TransformerBlock(head_dim=8, mlp_dim=24, fused=False, dtype=jnp.float32)


def _noisy(params, scale: float = 0.3):
    leaves, tree = jax.tree.flatten(nn.unbox(params))
    keys = jax.random.split(jax.random.key(9), len(leaves))
    noisy = [leaf + scale * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, noisy)


def _block_inputs():
    """Tokens of 3 words, the last of one row masked, and of 2 x 3 patches."""
    h, emb = jax.random.normal(jax.random.key(0), (2, 9, 16)), jax.random.normal(jax.random.key(1), (2, 12))
    mask = jnp.ones((2, 9), bool).at[1, 2].set(False)
    angles = jnp.concatenate([jnp.zeros((3, 4)), rope_angles(2, 3, 8)])
    params = _noisy(jax.jit(BLOCK.init)(jax.random.key(2), h, emb, mask, angles)["params"])
    apply = jax.jit(lambda h, mask, angles: BLOCK.apply({"params": params}, h, emb, mask, angles)[0])
    return params, apply, h, emb, mask, angles


def _cond(rows: int, height: int, width: int) -> Conditioning:
    text = jax.random.normal(jax.random.key(3), (rows, 5, 12))
    return Conditioning(
        text=text,
        text_mask=jnp.arange(5)[None] < jnp.array([[3]] * rows),
        low_res=jax.random.normal(jax.random.key(4), (rows, height, width, 3)),
        aug_level=jnp.full((rows,), 0.2),
        self_cond=jax.random.normal(jax.random.key(5), (rows, height, width, 3)),
        framing=jnp.tile(jnp.array([[20.0, 30, 0, 5, 20, 20]]), (rows, 1)),
    )


def test_a_block_is_the_textbooks() -> None:
    """Every formula of the module's docstring in float64, rotations as complex numbers, heads one by one."""
    params, apply, h, emb, mask, angles = _block_inputs()
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    turns = np.exp(1j * np.concatenate([np.zeros((3, 4)), _angles_by_hand(2, 3, 8)]))
    swish = lambda x: x / (1 + np.exp(-x))  # noqa: E731
    norm = lambda x, p: x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p["scale"]  # noqa: E731
    for row in range(2):
        x, keep = np.asarray(h, np.float64)[row], np.asarray(mask)[row]
        modulation = swish(np.asarray(emb, np.float64)[row]) @ p["modulation"]["kernel"] + p["modulation"]["bias"]
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = np.split(modulation, 6)
        inner = norm(x, p["attention_norm"]) * (1 + scale_a) + shift_a
        made = []
        for head in (slice(0, 8), slice(8, 16)):
            pairs = []
            for name in ("query", "key"):
                one = norm((inner @ p[name]["kernel"])[:, head], p[f"{name}_norm"])
                pairs.append((one[:, :4] + 1j * one[:, 4:]) * turns)
            # Re(q conj(k)) is the dot product of the rotated pairs.
            logits = (pairs[0] @ pairs[1].conj().T).real / np.sqrt(8)
            weights = np.exp(logits) * keep
            made.append(weights / weights.sum(1, keepdims=True) @ (inner @ p["value"]["kernel"])[:, head])
        x = x + gate_a * (np.concatenate(made, 1) @ p["out"]["kernel"])
        inner = norm(x, p["mlp_norm"]) * (1 + scale_m) + shift_m
        hidden = swish(inner @ p["mlp_gate"]["kernel"]) * (inner @ p["mlp_up"]["kernel"])
        expected = x + gate_m * (hidden @ p["mlp_out"]["kernel"])
        np.testing.assert_allclose(apply(h, mask, angles)[row], expected, rtol=2e-5, atol=2e-5)


def _angles_by_hand(rows: int, columns: int, head_dim: int) -> np.ndarray:
    return np.asarray(
        [
            [place / 10_000 ** (i / (head_dim // 4)) for place in (row, column) for i in range(head_dim // 4)]
            for row in range(rows)
            for column in range(columns)
        ]
    )


def test_rotated_logits_depend_on_the_distance_of_two_patches_alone() -> None:
    query, key = (jax.random.normal(jax.random.key(seed), (1, 1, 2, 8)) for seed in (0, 1))
    angles = rope_angles(7, 9, 8).reshape(7, 9, -1)

    def logits(first: tuple[int, int], second: tuple[int, int]) -> np.ndarray:
        pair = (rotate(x, angles[at][None]) for x, at in ((query, first), (key, second)))
        return np.asarray(jnp.einsum("bske,bske->k", *pair))

    rng = np.random.default_rng(0)
    for _ in range(20):
        (row, column), (down, right) = rng.integers(0, (3, 4), (2, 2))
        move = rng.integers(0, (3, 4))
        here = logits((row, column), (down, right))
        np.testing.assert_allclose(logits((row + move[0], column + move[1]), (down + move[0], right + move[1])), here,
                                   rtol=1e-4, atol=1e-5)  # fmt: skip
        # A rotation keeps lengths, and the opposite one undoes it.
        turned = rotate(query, angles[row, column][None])
        np.testing.assert_allclose(jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(query, axis=-1), rtol=1e-5)
        np.testing.assert_allclose(rotate(turned, -angles[row, column][None]), query, rtol=1e-5, atol=1e-6)
    assert np.abs(logits((0, 0), (0, 1)) - logits((0, 0), (1, 0))).max() > 1e-3


def test_a_block_follows_its_tokens_in_any_order_and_sees_none_that_is_masked() -> None:
    _, apply, h, _, mask, angles = _block_inputs()
    out = apply(h, mask, angles)
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(9)
        np.testing.assert_allclose(apply(h[:, order], mask[:, order], angles[order]), out[:, order], atol=1e-5)
    masked = apply(h.at[1, 2].set(77.0), mask, angles)
    np.testing.assert_allclose(np.delete(masked[1], 2, 0), np.delete(out[1], 2, 0), atol=1e-5)
    # Without its rotation a patch is another one.
    assert np.abs(apply(h, mask, 0 * angles) - out).max() > 1e-3


def test_every_parameter_and_condition_has_a_gradient_and_the_order_of_words_none() -> None:
    z_t, cond = jax.random.normal(jax.random.key(6), (2, 4, 8, 3)), _cond(2, 4, 8)
    params = _noisy(jax.jit(MODEL.init)(jax.random.key(0), z_t, jnp.zeros(2), cond)["params"], 0.1)

    @jax.jit
    def loss(params, z_t, log_snr, given):
        output = MODEL.apply({"params": params}, z_t, log_snr, cond.replace(**given))
        return jnp.square(output).mean()

    given = {field: getattr(cond, field) for field in ("text", "low_res", "aug_level", "self_cond", "framing")}
    gradient = jax.grad(loss, argnums=(0, 1, 2, 3))(params, z_t, jnp.array([0.3, -2.0]), given)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert float(jnp.abs(leaf).max()) > 1e-9, jax.tree_util.keystr(path)
    order = jnp.array([2, 4, 0, 1, 3])
    mixed = {"text": cond.text[:, order], "text_mask": cond.text_mask[:, order]}
    log_snr = jnp.zeros(2)
    assert loss(params, z_t, log_snr, mixed) == pytest.approx(float(loss(params, z_t, log_snr, {})), rel=1e-5)


def test_scanned_rematerialised_and_fused_networks_compute_the_same(monkeypatch) -> None:
    z_t, cond = jax.random.normal(jax.random.key(6), (2, 4, 4, 3)), _cond(2, 4, 4)
    params = _noisy(jax.jit(MODEL.init)(jax.random.key(0), z_t, jnp.zeros(2), cond)["params"], 0.1)

    def found(model: PixelTransformer, params):
        def loss(params):
            return jnp.square(model.apply({"params": params}, z_t, jnp.array([0.3, -2.0]), cond)).mean()

        return jax.jit(jax.value_and_grad(loss))(params)

    def stacked(params):
        rest = {name: value for name, value in params.items() if not name.startswith("block_")}
        return {**rest, "block": jax.tree.map(lambda *leaves: jnp.stack(leaves), params["block_0"], params["block_1"])}

    # cuDNN's kernel takes the first keys of each row, here by the same maths.
    def first_keys(query, key, value, number):
        mask = jnp.arange(key.shape[1])[None] < number[:, None]
        return softmax_attention(query, key, value, mask, jnp.float32)

    monkeypatch.setattr(transformer, "fused_attention", first_keys)
    value, gradient = found(MODEL, params)
    for model, change in (
        (MODEL.copy(scan_blocks=True, remat="matmuls"), stacked),
        (MODEL.copy(fused_attention=True), lambda tree: tree),
    ):
        again, again_gradient = found(model, change(params))
        np.testing.assert_allclose(again, value, rtol=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), again_gradient, change(gradient))


def test_loss_and_gradients_on_a_mesh_of_rows_and_kernels_are_those_of_one_device() -> None:
    mesh = MeshConfig(data=2, fsdp=2).build(jax.devices()[:4])
    boxed = jax.jit(TRANSFORMER.init)(jax.random.key(0))
    params, rows = _noisy(boxed, 0.1), batch(TRANSFORMER, 4)

    def loss(params, rows, mesh=None):
        return TRANSFORMER.loss(params, rows, jax.random.key(3), mesh=mesh)[0]

    want, want_gradient = jax.jit(jax.value_and_grad(loss))(params, rows)
    placed = (
        jax.device_put(params, rules.param_shardings(boxed, mesh)),
        jax.device_put(rows, rules.batch_sharding(mesh)),
    )
    got, gradient = jax.jit(jax.value_and_grad(lambda params, rows: loss(params, rows, mesh)))(*placed)
    assert float(got) == pytest.approx(float(want), rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), gradient, want_gradient)
    # Nothing but vectors is whole on every device.
    whole = [leaf.shape for leaf in jax.tree.leaves(placed[0]) if leaf.sharding.is_fully_replicated and leaf.ndim > 1]
    assert whole == []


def test_bfloat16_stays_near_float32() -> None:
    z_t, cond = jax.random.normal(jax.random.key(6), (2, 4, 4, 3)), _cond(2, 4, 4)
    params = _noisy(jax.jit(MODEL.init)(jax.random.key(0), z_t, jnp.zeros(2), cond)["params"], 0.1)
    full, half = (
        jax.jit(model.apply)({"params": params}, z_t, jnp.zeros(2), cond)
        for model in (MODEL, MODEL.copy(dtype=jnp.bfloat16))
    )
    assert full.dtype == half.dtype == jnp.float32
    assert 0 < float(jnp.abs(half - full).max()) < 0.05 * float(jnp.abs(full).max()) + 0.02


@pytest.mark.parametrize(("name", "millions"), [("demo_transformer", 0.9), ("transformer_64_300m", 320.1)])
def test_configs_have_the_parameters_of_the_formula(name: str, millions: float) -> None:
    """d² (18 + 3 f / d) a block and its norms, the embedder's ten matrices, patches in and out."""
    nowhere = ("CORPUS_DIR", "STORE_DIR", "MODEL_DIR", "VOCABULARY_PATH")
    experiment = "demo_base" if name.startswith("demo") else "imagen_base_300m"
    paths = [f"{one}='nowhere'" for one in (*nowhere, *(("T5_PATH",) if experiment != "demo_base" else ()))]
    files = [f"configs/experiments/{experiment}.gin", f"configs/models/{name}.gin"]
    stage = gin_config.load(TrainConfig, files, paths).stage
    shapes = rules.unbox(jax.eval_shape(stage.init, jax.random.key(0)))
    count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))
    model, text = stage.model, stage.text_embed_dim
    d, e = model.dim, model.head_dim
    f, pixels = model.mlp_dim or (d + 2) // 3 * 8, 3 * model.patch**2
    block = 4 * d * d + 3 * d * f + 6 * d * (d + 1) + 2 * d + 2 * e
    mlps = 4 * d * (d + 1)  # Of log-SNR and of the pooled text, two layers each.
    embedder = mlps + 2 * text + d * (text + 1) + 3 * d * (d + 1) + 2 * d
    ends = d * (pixels + 1) + pixels * (d + 1) + 2 * d * (d + 1) + d
    assert count == model.depth * block + embedder + ends
    assert count / 1e6 == pytest.approx(millions, abs=0.05)
