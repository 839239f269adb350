"""Captions to embeddings: batching changes nothing, and the random encoder keeps what a caption says."""

import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from imagen_jax.errors import UserError
from imagen_jax.text.encoder import TextConfig, TextEncoder
from imagen_jax.text.encoders.t5 import T5Encoder
from imagen_jax.text.encoders.t5_params import params_sha256, random_params
from imagen_jax.text.tokenizer import load_vocabulary
from tests.text.conftest import COLOURS, SHAPES, two_objects

DATA = two_objects()


def test_encode_is_the_encoder_on_each_caption_alone(text_config: TextConfig, text_encoder: TextEncoder) -> None:
    captions = ["", "red", "a red circle", *(caption for caption, _ in DATA[::61])]
    text, mask = text_encoder.encode(captions)
    assert text.shape == (len(captions), 12, 128) and text.dtype == np.float32
    vocabulary = load_vocabulary(text_config.vocabulary_path)
    params = random_params(text_config.encoder, text_config.seed)
    apply = jax.jit(T5Encoder(text_config.encoder).apply)
    for i in (0, 2, len(captions) - 1):
        ids = jnp.array([[*vocabulary.encode(captions[i]), 1]])
        alone = apply({"params": params}, ids, ids > 0)
        n = ids.shape[1]
        assert mask[i].tolist() == [True] * n + [False] * (12 - n)
        np.testing.assert_allclose(text[i, :n], alone[0], atol=2e-5)
        assert not text[i, n:].any()


def test_batch_size_changes_rounding_at_most(text_encoder: TextEncoder) -> None:
    captions = [caption for caption, _ in DATA[::37]]
    for one, other in zip(
        text_encoder.encode_unpadded(captions, 256), text_encoder.encode_unpadded(captions, 3), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_long_captions_are_cut_counted_and_end_in_eos(text_encoder: TextEncoder) -> None:
    encoder, before = text_encoder, text_encoder.num_truncated
    exact, long = "red " * 11, "red " * 12
    assert encoder.count_tokens([exact, long, ""]) == [12, 13, 1]
    assert encoder.num_truncated == before
    ids = encoder.tokenize([exact, long, ""])
    assert [len(row) for row in ids] == [12, 12, 1] and all(row[-1] == 1 for row in ids)
    assert encoder.num_truncated == before + 1
    assert encoder.encode([long])[1].all()


def test_fingerprint_is_json_and_changes_with_each_part(text_config: TextConfig, text_encoder: TextEncoder) -> None:
    fingerprint = text_encoder.fingerprint("bfloat16")
    assert json.loads(json.dumps(fingerprint)) == fingerprint
    assert set(fingerprint) == {"encoder", "encoder_config", "vocabulary", "max_length", "clean", "dtype"}
    other = TextEncoder(dataclasses.replace(text_config, seed=1, max_length=9)).fingerprint()
    assert {part for part in other if other[part] != fingerprint[part]} == {"encoder", "max_length", "dtype"}


def test_digest_follows_names_shapes_and_values() -> None:
    params = {"a": np.arange(4.0), "b": {"c": np.ones(2)}}
    assert params_sha256(params) == params_sha256({"b": {"c": np.ones(2)}, "a": np.arange(4.0)})
    for changed in (
        {"a": np.arange(4.0), "b": {"d": np.ones(2)}},
        {"a": np.arange(4.0).reshape(2, 2), "b": {"c": np.ones(2)}},
        {"a": np.arange(4.0), "b": {"c": np.array([1, 1 + 1e-15])}},
    ):
        assert params_sha256(params) != params_sha256(changed)


def test_same_parameters_in_another_process(text_config: TextConfig, text_encoder: TextEncoder) -> None:
    script = (
        "from imagen_jax.text.encoders.t5 import T5Config\n"
        "from imagen_jax.text.encoders.t5_params import params_sha256, random_params\n"
        f"print(params_sha256(random_params({text_config.encoder!r}, 0)))"
    )
    got = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert got.strip() == text_encoder.fingerprint()["encoder"]


def decode(features: np.ndarray, labels: np.ndarray, num_classes: int) -> float:
    """Accuracy of a least-squares linear read-out, fitted on the first half and tried on the second."""
    features = np.concatenate([features, np.ones((len(features), 1))], axis=1)
    half = len(features) // 2
    gram = features[:half].T @ features[:half] + 1e-3 * np.eye(features.shape[1])
    weights = np.linalg.solve(gram, features[:half].T @ np.eye(num_classes)[labels[:half]])
    return float((np.argmax(features[half:] @ weights, axis=1) == labels[half:]).mean())


def test_noun_outputs_tell_colour_shape_and_order(text_encoder: TextEncoder) -> None:
    rng = np.random.default_rng(0)
    chosen = [DATA[i] for i in rng.permutation(len(DATA))[:1500]]
    captions = [caption for caption, _ in chosen]
    shape_ids = [text_encoder.tokenize([shape])[0][0] for shape in SHAPES]
    outputs, colours, shapes, order = [], [], [], []
    for ids, embedding, (_, (c0, s0, c1, s1)) in zip(
        text_encoder.tokenize(captions), text_encoder.encode_unpadded(captions), chosen, strict=True
    ):
        for place, (colour, shape) in enumerate(((c0, s0), (c1, s1))):
            outputs.append(embedding[ids.index(shape_ids[shape])])
            colours.append(colour)
            shapes.append(shape)
            order.append(place)
    features = np.stack(outputs).astype(np.float64)
    assert decode(features, np.array(colours), len(COLOURS)) >= 0.95
    assert decode(features, np.array(shapes), len(SHAPES)) >= 0.95
    assert decode(features, np.array(order), 2) >= 0.95


def test_vocabulary_larger_than_the_encoder_is_refused(text_config: TextConfig) -> None:
    small = dataclasses.replace(text_config, encoder=dataclasses.replace(text_config.encoder, vocab_size=20))
    pieces = load_vocabulary(text_config.vocabulary_path).vocab_size()
    with pytest.raises(UserError, match=f"has {pieces} pieces, but the encoder's vocab_size is 20"):
        TextEncoder(small)


def test_missing_vocabulary_is_refused(text_config: TextConfig) -> None:
    with pytest.raises(UserError, match="no vocabulary file at 'nowhere.model'"):
        TextEncoder(dataclasses.replace(text_config, vocabulary_path="nowhere.model"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_length": 1}, r"TextConfig.max_length \(1\) must be an integer >= 2"),
        ({"max_length": 12.0}, r"max_length \(12.0\) must be an integer >= 2"),
        ({"seed": -1}, r"seed \(-1\) must be an integer >= 0"),
        ({"vocabulary_path": ""}, r"vocabulary_path \(''\) must be the path of a file or folder"),
        ({"encoder": "xxl"}, "encoder must be a T5Config"),
    ],
)
def test_config_refuses(text_config: TextConfig, change: dict, message: str, monkeypatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as when gin fills the fields
    with pytest.raises(UserError, match=message):
        dataclasses.replace(text_config, **change)
