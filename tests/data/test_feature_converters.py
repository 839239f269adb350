"""Converters pad, mask and refuse what does not fit."""

import numpy as np
import pytest
import tensorflow as tf

from imagen_jax.data.feature_converters import BaseFeatureConverter, SuperResolutionFeatureConverter

_LENGTHS = {"x0": 4, "text": 5}


def _example(num_tokens: int = 3, **changes) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "x0": rng.normal(size=(4, 4, 3)).astype(np.float32),
        "text": rng.normal(size=(num_tokens, 2)).astype(np.float32),
        "key": np.bytes_(b"k"),
        **changes,
    }


def _convert(example, converter=None, lengths=_LENGTHS):
    # Of the caption's length tf.data knows nothing beforehand.
    dataset = tf.data.Dataset.from_tensors(example).map(
        lambda one: {**one, "text": tf.numpy_function(lambda text: text, [one["text"]], one["text"].dtype)}
    )
    dataset = dataset.map(
        lambda one: {**one, "text": tf.ensure_shape(one["text"], (None, *np.shape(example["text"])[1:]))}
    )
    return next((converter or BaseFeatureConverter())(dataset, lengths).as_numpy_iterator())


@pytest.mark.parametrize("num_tokens", [1, 3, 5])
def test_text_is_padded_with_zeros_and_masked(num_tokens):
    example = _example(num_tokens)
    converted = _convert(example)
    assert set(converted) == {"x0", "text", "text_mask"}
    assert np.array_equal(converted["x0"], example["x0"])
    assert np.array_equal(converted["text"][:num_tokens], example["text"])
    assert converted["text"].shape == (5, 2) and not converted["text"][num_tokens:].any()
    assert converted["text_mask"].tolist() == [i < num_tokens for i in range(5)]
    assert converted["text_mask"].dtype == bool


def test_super_resolution_keeps_low_res():
    low_res = np.ones((2, 2, 3), np.float32)
    converted = _convert(_example(low_res=low_res), SuperResolutionFeatureConverter(), {**_LENGTHS, "low_res": 2})
    assert set(converted) == {"x0", "text", "text_mask", "low_res"}
    assert np.array_equal(converted["low_res"], low_res)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"text": np.zeros((3, 2), np.float64)},
            "incorrect type for feature 'text' .* Got float64, expected float32",
        ),
        ({"text": np.zeros(3, np.float32)}, "incorrect rank for feature 'text' .*: Got 1, expected 2"),
        ({"x0": np.zeros((4, 4), np.float32)}, "incorrect rank for feature 'x0' .*: Got 2, expected 3"),
        ({"x0": np.zeros((4, 4, 3), np.uint8)}, "incorrect type for feature 'x0' .* Got uint8"),
    ],
)
def test_wrong_dtype_and_rank_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        _convert(_example(**changes))


def test_a_missing_feature_is_named():
    with pytest.raises(ValueError, match="missing an expected feature .*'low_res'"):
        _convert(_example(), SuperResolutionFeatureConverter(), {**_LENGTHS, "low_res": 2})


@pytest.mark.parametrize("changes", [{"text": np.zeros((6, 2), np.float32)}, {"x0": np.zeros((5, 4, 3), np.float32)}])
def test_features_that_are_too_long_are_refused(changes):
    (name,) = changes
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"{name}.* has length not less than or equal"):
        _convert(_example(**changes))
