"""Studies of small pictures."""

from pathlib import Path

import pytest

from imagen_jax.ratings.build import build_study
from tests.ratings.studies import draw


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """Pictures of two models."""
    place = tmp_path_factory.mktemp("models")
    return draw(place / "imagen", 0), draw(place / "other", 1)


@pytest.fixture
def study(folders, tmp_path) -> Path:
    """A study of two models, 6 pairs of 2 samples a side."""
    build_study(folders, tmp_path / "study", seed=3)
    return tmp_path / "study"
