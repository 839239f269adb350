"""Encoders saved by transformers, loaded here, and their vocabularies, against transformers' own outputs."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imagen_jax.text import load_encoder
from imagen_jax.text.tokenizer import Tokenizer

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


HIDDEN = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 200,
    "max_position_embeddings": 70,
}
VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
TRANSFORMERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "CLIP text": ("CLIPTextModel", "CLIPTextConfig", HIDDEN),
    "CLIP text, exact GELU": ("CLIPTextModel", "CLIPTextConfig", HIDDEN | {"hidden_act": "gelu"}),
    "CLIP text and projection": ("CLIPTextModelWithProjection", "CLIPTextConfig", HIDDEN | {"layer_norm_eps": 1e-3}),
    "CLIP": ("CLIPModel", "CLIPConfig", {"text_config": HIDDEN, "vision_config": VISION | {"patch_size": 112}}),
    "BERT": ("BertModel", "BertConfig", HIDDEN),
    "BERT, tanh GELU": ("BertModel", "BertConfig", HIDDEN | {"hidden_act": "gelu_new", "type_vocab_size": 1}),
    "masked BERT": ("BertForMaskedLM", "BertConfig", HIDDEN | {"layer_norm_eps": 1e-3}),
    "BERT of two heads": ("BertForPreTraining", "BertConfig", HIDDEN),
}


@pytest.mark.parametrize("name", TRANSFORMERS)
@pytest.mark.parametrize("max_shard_size", ["10GB", "20KB"])
def test_clip_and_bert_equal_those_of_transformers(tmp_path: Path, name: str, max_shard_size: str) -> None:
    model_class, config_class, extra = TRANSFORMERS[name]
    torch.manual_seed(0)
    model = getattr(transformers, model_class)(getattr(transformers, config_class)(**extra)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    mask = np.arange(70) < np.asarray([[70], [9], [1]])
    tokens = np.where(mask, np.random.default_rng(1).integers(3, 200, mask.shape), 0)
    model = model.double()
    encoder = getattr(model, "bert", getattr(model, "text_model", model))
    with torch.no_grad():
        made = encoder(torch.tensor(tokens), attention_mask=torch.tensor(mask), output_hidden_states=True)
    expected = made.hidden_states[-2] if "CLIP" in name else made.last_hidden_state
    got = np.asarray(load_encoder(tmp_path).encode(tokens, mask))
    assert np.abs(got - expected.numpy())[mask].max() <= 5e-5


GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize(
    ("folder", "made"),
    [
        ("clip_hf", lambda path: transformers.CLIPTokenizer(str(path / "vocab.json"), str(path / "merges.txt"))),
        ("bert_hf", lambda path: transformers.BertTokenizer(str(path / "vocab.txt"))),
    ],
    ids=["CLIP", "BERT"],
)
def test_ids_equal_those_of_transformers(tmp_path: Path, folder: str, made: Any) -> None:
    captions = [one["caption"] for one in json.loads((GOLDEN / folder / "captions.json").read_text())]
    rng = np.random.default_rng(0)
    # Letters of many scripts, marks that join what is before, spaces, symbols and emoji.
    ranges = [
        (32, 127),
        (160, 384),
        (0x300, 0x370),
        (0x5D0, 0x660),
        (0x3040, 0x30A0),
        (0x2000, 0x2100),
        (0x1F600, 0x1F640),
    ]
    for _ in range(300):
        letters = [chr(rng.integers(*ranges[rng.integers(len(ranges))])) for _ in range(rng.integers(1, 30))]
        captions.append("".join(letters))
    peer = made(GOLDEN / folder)
    theirs = [peer(caption)["input_ids"] for caption in captions]
    shutil.copytree(GOLDEN / folder, tmp_path / "parts", ignore=shutil.ignore_patterns("tokenizer.json"))
    for path in (GOLDEN / folder, tmp_path / "parts"):
        ours = Tokenizer(str(path))
        for caption, ids, wanted in zip(captions, ours.encode(captions), theirs, strict=True):
            assert [*ours.prefix, *ids, *ours.suffix] == wanted, repr(caption)
