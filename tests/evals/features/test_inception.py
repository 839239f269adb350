"""Inception v3 against torch-fidelity's own features, on random weights."""

from pathlib import Path

import numpy as np
import pytest

from imagen_jax.errors import UserError
from imagen_jax.evals import load_extractor
from imagen_jax.evals.features.extractor import FeatureExtractor
from imagen_jax.evals.features.inception import LAYERS, params_of
from imagen_jax.evals.features.resize import tf1_bilinear
from imagen_jax.files import sha256_of_file

GOLDEN = np.load(Path(__file__).parents[2] / "golden" / "d_fid" / "inception.npz")
TOLERANCES = {"64": 2e-5, "192": 2e-5, "768": 2e-4, "2048": 1e-3, "logits_unbiased": 1e-3}


def images(name: str) -> np.ndarray:
    return GOLDEN[f"{name}/images_uint8"].transpose(0, 2, 3, 1)


@pytest.mark.parametrize("name", ["64", "299"])
def test_layers_equal_torch_fidelity(inception, name):
    got = inception.features(images(name), layers=tuple(TOLERANCES))
    for layer, tolerance in TOLERANCES.items():
        expected = GOLDEN[f"{name}/{layer}"]
        assert got[layer].dtype == np.float32 and got[layer].shape == expected.shape
        assert np.abs(got[layer] - expected).max() <= tolerance, layer


@pytest.mark.parametrize("name", ["64", "299"])
def test_the_resize_equals_tensorflow_1(name):
    got = np.asarray(tf1_bilinear(images(name)[:1], 299))[:, ::23, ::23].transpose(0, 3, 1, 2)
    np.testing.assert_allclose(got, GOLDEN[f"{name}/resized_sub"], atol=1e-4)


def test_a_batch_changes_nothing(inception):
    """Five images in batches of four, an image alone, and images that were resized before."""
    four = images("64")
    five = np.concatenate([four[2:], four[:3]])
    got = inception.features(five, layers=tuple(TOLERANCES))["2048"]
    np.testing.assert_allclose(got[2:], inception.features(four[:3], layers=tuple(TOLERANCES))["2048"], atol=1e-5)
    resized = inception.features_of_resized(np.asarray(tf1_bilinear(four, 299)), layers=tuple(TOLERANCES))["2048"]
    np.testing.assert_allclose(resized[:3], got[2:], atol=1e-5)


def test_an_extractor_says_what_it_is(inception, inception_file):
    assert isinstance(inception, FeatureExtractor)
    assert (inception.kind, inception.layers) == ("inception", LAYERS)
    assert inception.fingerprint == sha256_of_file(inception_file)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda x: x.features(np.zeros((1, 8, 8, 3), np.float32)), "uint8"),
        (lambda x: x.features(np.zeros((8, 8, 3), np.uint8)), "[b, h, w, 3]"),
        (lambda x: x.features(np.zeros((0, 8, 8, 3), np.uint8)), "no images"),
        (lambda x: x.features(np.zeros((1, 8, 8, 3), np.uint8), layers=("pool",)), "'pool' is unknown"),
        (lambda x: x.features(np.zeros((1, 8, 8, 3), np.uint8), layers=()), "tuple of names"),
    ],
)
def test_wrong_calls_are_refused(inception, call, said):
    with pytest.raises((UserError, TypeError), match="(?s).*") as error:
        call(inception)
    assert said in str(error.value) or not isinstance(error.value, UserError)


def test_weights_of_another_network_are_refused(inception_arrays, tmp_path):
    for change in (
        {"fc.weight": np.zeros((1000, 2048), np.float32)},
        {"Mixed_7c.branch_pool.conv.weight": None},
    ):
        wrong = {name: value for name, value in {**inception_arrays, **change}.items() if value is not None}
        with pytest.raises(UserError, match="torchvision") as error:
            params_of("file.pth", wrong)
        assert next(iter(change)) in str(error.value)


@pytest.mark.parametrize("name", ["", "weights.onnx", "absent.pth", "empty"])
def test_no_weights(tmp_path, name):
    (tmp_path / "weights.onnx").write_text("")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as error:
        load_extractor(str(tmp_path / name) if name else "")
    assert "weights-inception-2015-12-05-6726825d.pth" in str(error.value)
