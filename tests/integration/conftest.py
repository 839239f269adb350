"""The trained cascade that these tests share."""

import fcntl
import os
from pathlib import Path

import jax
import pytest

from imagen_jax.data.corpora import build_shapes
from imagen_jax.main import main
from tests.integration.running import flags_of, train_stage


@pytest.fixture(autouse=True)
def one_drawing_device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing on the eight devices of the tests takes eight times as long; a test that is about them asks for it."""
    if "eight_devices" not in request.keywords:
        monkeypatch.setattr("imagen_jax.sampling.cascade.drawing_devices", lambda: jax.local_devices()[:1])


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained two-stage cascade with its corpus and store; processes that test side by side share it."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    root, made = folder / "cascade", folder / "cascade_is_made"
    with (folder / "cascade_lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            build_shapes(root / "corpus", {"train": 48, "val": 4}, seed=0, vocab_size=200)
            assert main(["cache_text", "--gin_file=tests/integration/tiny_base.gin", *flags_of(root)]) == 0
            assert train_stage(root, "base") == 0
            assert train_stage(root, "sr") == 0
            made.touch()
    return root
