"""The T5 encoder against t5x's and Hugging Face's own outputs, and against closed forms."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from imagen_jax.errors import UserError
from imagen_jax.text.encoders.t5 import T5Config, T5Encoder, relative_position_buckets
from imagen_jax.text.encoders.t5_params import params_sha256, random_params

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"
TINY = T5Config(vocab_size=256, embed_dim=32, num_heads=4, head_dim=8, num_layers=2, mlp_dim=64)
PEER_TOLERANCE = 5e-5  # the peers themselves differ by 2.7e-5


def encode(config: T5Config, params: dict, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
    apply = jax.jit(T5Encoder(config).apply)
    return np.asarray(apply({"params": params}, jnp.asarray(tokens), jnp.asarray(mask)))


def test_buckets_are_exact_offsets_then_powers_of_two_to_the_half() -> None:
    got = relative_position_buckets(300, 32, 128)
    for query, key in [(q, k) for q in (0, 150, 299) for k in range(300)]:
        distance = abs(key - query)
        # 2 log2(distance / 8) rounded down, in integers: the largest j with distance² >= 64 * 2^j.
        steps = max((j for j in range(8) if distance**2 >= 64 * 2**j), default=0)
        expected = (distance if distance < 8 else min(8 + steps, 15)) + (16 if key > query else 0)
        assert got[query, key] == expected, (query, key)


def numpy_encoder(params: dict, tokens: np.ndarray, num_heads: int) -> np.ndarray:
    """T5 v1.0 in float64 for one caption without padding, one token at a time."""
    norm = lambda x, p: x / np.sqrt((x**2).mean() + 1e-6) * p["scale"]  # noqa: E731
    x = params["token_embedder"]["embedding"][tokens].astype(np.float64)
    n, encoder = len(tokens), params["encoder"]
    bias = encoder["relpos_bias"]["rel_embedding"][:, relative_position_buckets(n, 32, 128)]
    for i in range(sum(name.startswith("layers_") for name in encoder)):
        layer = encoder[f"layers_{i}"]
        y = np.stack([norm(row, layer["pre_attention_layer_norm"]) for row in x])
        q, k, v = (
            (y @ layer["attention"][name]["kernel"]).reshape(n, num_heads, -1) for name in ("query", "key", "value")
        )
        rows = []
        for a in range(n):
            heads = []
            for h in range(num_heads):
                weights = np.exp([q[a, h] @ k[b, h] + bias[h, a, b] for b in range(n)])
                heads.append(weights @ v[:, h] / weights.sum())
            rows.append(np.concatenate(heads) @ layer["attention"]["out"]["kernel"])
        x = x + np.stack(rows)
        y = np.stack([norm(row, layer["pre_mlp_layer_norm"]) for row in x])
        x = x + np.maximum(y @ layer["mlp"]["wi"]["kernel"], 0) @ layer["mlp"]["wo"]["kernel"]
    return np.stack([norm(row, encoder["encoder_norm"]) for row in x])


V1_0 = T5Config(vocab_size=40, embed_dim=16, num_heads=3, head_dim=8, num_layers=2, mlp_dim=24, activations=("relu",))


def test_v1_0_matches_float64_numpy_and_padding_changes_nothing() -> None:
    params = random_params(V1_0, seed=1)
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 40, (2, 12)).astype(np.int32)
    mask = np.arange(12) < np.array([[12], [7]])
    got = encode(V1_0, params, tokens, mask)
    for row, length in enumerate((12, 7)):
        expected = numpy_encoder(params, tokens[row, :length], num_heads=3)
        np.testing.assert_allclose(got[row, :length], expected, atol=2e-5)


def test_bfloat16_computes_near_float32() -> None:
    params = random_params(TINY, seed=0)
    tokens = np.random.default_rng(0).integers(1, 256, (4, 10)).astype(np.int32)
    low = dataclasses.replace(TINY, dtype="bfloat16")
    got, expected = (encode(config, params, tokens, tokens > 0) for config in (low, TINY))
    assert got.dtype == np.float32
    error = np.sqrt(((got - expected) ** 2).mean() / (expected**2).mean())
    assert 1e-4 < error < 0.05


def test_random_params_are_t5s_with_heads_at_near_offsets() -> None:
    config = T5Config(
        vocab_size=512,
        embed_dim=128,
        num_heads=8,
        head_dim=16,
        num_layers=2,
        mlp_dim=256,
        relpos_init_std=3.0,
    )
    params = random_params(config, seed=7)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    layer = params["encoder"]["layers_1"]
    expected_std = [
        (params["token_embedder"]["embedding"], 1.0),
        (layer["attention"]["query"]["kernel"], (128 * 16) ** -0.5),
        (layer["attention"]["key"]["kernel"], 128**-0.5),
        (layer["attention"]["out"]["kernel"], 128**-0.5),
        (layer["mlp"]["wi_0"]["kernel"], 128**-0.5),
        (layer["mlp"]["wo"]["kernel"], 256**-0.5),
    ]
    for values, std in expected_std:
        assert abs(values.std() / std - 1) < 0.03
    assert abs(params["encoder"]["relpos_bias"]["rel_embedding"].std() / 3.0 - 1) < 0.15
    largest = params["encoder"]["relpos_bias"]["rel_embedding"].argmax(axis=1)
    buckets = relative_position_buckets(9, 32, 128)[4]  # of the fifth of nine tokens
    assert largest.tolist() == [buckets[4 + offset] for offset in (-1, 1, -2, 2, -3, 3, -4, 4)]
    assert params_sha256(params) != params_sha256(random_params(config, seed=8))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embed_dim": 0}, r"T5Config.embed_dim \(0\) must be an integer >= 1"),
        ({"num_layers": 2.0}, r"num_layers \(2.0\) must be an integer >= 1"),
        ({"activations": ("swish",)}, "activations must be a tuple"),
        ({"activations": "gelu"}, "activations must be a tuple"),
        ({"dtype": "float16"}, "float16 overflows"),
        ({"relpos_init_std": -1.0}, "relpos_init_std"),
        ({"num_relative_buckets": 30}, "divisible by 4"),
        ({"relative_max_distance": 8}, "must exceed"),
    ],
)
def test_config_refuses(change: dict, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as when gin fills the fields
    with pytest.raises(UserError, match=message):
        dataclasses.replace(TINY, **change)


def test_config_hashes_when_gin_hands_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    as_list: Any = ["gelu", "linear"]
    assert hash(dataclasses.replace(TINY, activations=as_list)) == hash(TINY)
