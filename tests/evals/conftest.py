"""Inception with the golden random weights: built and compiled once for all tests that take it."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from imagen_jax.evals import load_extractor
from imagen_jax.evals.features.inception import InceptionExtractor

GOLDEN = Path(__file__).parents[1] / "golden"
# One size of batch is one program.
BATCH = 4


@pytest.fixture(scope="session")
def inception_arrays() -> dict[str, np.ndarray]:
    """The golden weights, rebuilt from their seed."""
    folder = GOLDEN / "d_fid"
    spec = importlib.util.spec_from_file_location("inception_random_weights", folder / "inception_random_weights.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    meta = json.loads((folder / "meta.json").read_text())
    made = module.weights(meta["seed"], meta["shapes"], np.load(folder / "bn_stats.npz"))
    for name, (total, squares) in meta["sums"].items():
        exact = made[name].astype(np.float64)
        assert np.allclose([exact.sum(), (exact**2).sum()], [total, squares]), name
    return made


@pytest.fixture(scope="session")
def inception_file(inception_arrays: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The golden weights as .npz."""
    path = tmp_path_factory.mktemp("inception") / "inception.npz"
    np.savez(path, **inception_arrays)
    return str(path)


@pytest.fixture(scope="session")
def inception(inception_file: str) -> InceptionExtractor:
    """The extractor of the golden weights."""
    return load_extractor(inception_file, batch_size=BATCH)
