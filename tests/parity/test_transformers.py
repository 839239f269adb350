"""Encoders saved by transformers, loaded here, against transformers' own outputs."""

from pathlib import Path

import numpy as np
import pytest

from imagen_jax.text import load_encoder

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = {"d_model": 48, "d_kv": 16, "d_ff": 80, "num_layers": 3, "num_heads": 2, "vocab_size": 200}
MODELS = {
    "T5 v1.0": ("T5EncoderModel", "T5Config", {"feed_forward_proj": "relu"}),
    "T5 v1.1": ("T5EncoderModel", "T5Config", {"feed_forward_proj": "gated-gelu"}),
    "gated SiLU, other buckets": (
        "T5EncoderModel",
        "T5Config",
        {
            "feed_forward_proj": "gated-silu",
            "relative_attention_num_buckets": 16,
            "relative_attention_max_distance": 40,
            "layer_norm_epsilon": 1e-5,
        },
    ),
    "exact GELU": ("T5EncoderModel", "T5Config", {"feed_forward_proj": "gelu"}),
    "mT5": ("MT5EncoderModel", "MT5Config", {}),
    "umT5": ("UMT5EncoderModel", "UMT5Config", {}),
    "whole model": ("T5ForConditionalGeneration", "T5Config", {"feed_forward_proj": "gated-gelu"}),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("max_shard_size", ["10GB", "20KB"])
def test_embeddings_equal_those_of_transformers(tmp_path: Path, name: str, max_shard_size: str) -> None:
    model_class, config_class, extra = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, config_class)(**SIZES, **extra, dropout_rate=0.0)
    model = getattr(transformers, model_class)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Fresh norms are all ones and fresh biases near zero, which would hide a mistake. Twice as much makes
            # T5's unscaled attention so sharp that transformers' own float32 is 1e-4 off its float64.
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    rng = np.random.default_rng(1)
    tokens = rng.integers(3, 200, (3, 70))
    mask = np.arange(70) < np.asarray([[70], [9], [1]])
    tokens = np.where(mask, tokens, 0)
    with torch.no_grad():
        model = model.double()
        encoder = model.get_encoder() if "Conditional" in model_class else model
        expected = encoder(torch.tensor(tokens), attention_mask=torch.tensor(mask)).last_hidden_state.numpy()
    got = np.asarray(load_encoder(tmp_path).encode(tokens, mask))
    assert np.abs(got - expected)[mask].max() <= 5e-5
