"""StableHLO programs: they draw the cascade's images in a process that has jax and NumPy and nothing else of ours."""

import datetime
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from imagen_jax.errors import UserError
from imagen_jax.export import arrays
from imagen_jax.sampling import programs
from imagen_jax.sampling.cascade import Cascade
from tests.untrained import untrained_cascade

CAPTIONS = ["a red cube", "", "b"]
# Stands before the runner: imports of these fail.
BLOCK = """
import runpy, sys
for name in ("imagen_jax", "flax", "tensorflow", "seqio", "safetensors", "orbax"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def cascade() -> Cascade:
    return untrained_cascade()


@pytest.fixture(scope="module")
def made(cascade, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("programs") / "programs"
    cascade.export(str(path), format="stablehlo")
    return path


@pytest.mark.slow
def test_jax_alone_draws_the_same_images(cascade, made, tmp_path):
    (tmp_path / "ids.json").write_text(json.dumps(cascade.encoder.tokenize(CAPTIONS)))
    command = [sys.executable, "-c", BLOCK, str(made / "run.py"), "ids.json", "out.npy", "3"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *_, expected = cascade.sample(CAPTIONS, seed=3)
    drawn = np.load(tmp_path / "out.npy")
    assert drawn.dtype == np.uint8 and expected.std() > 0
    assert np.abs(drawn.astype(int) - expected).max() <= 1


@pytest.mark.slow
def test_the_header_tells_until_when_and_what_it_takes(made):
    header = json.loads((made / "programs.json").read_text())
    released = datetime.date.fromisoformat(programs.RELEASED[jax.__version__])
    assert (datetime.date.fromisoformat(header["loadable_until"]) - released).days == 180
    assert header["jax"] == jax.__version__
    assert set(header["programs"]) == {"sampler", "text_encoder", "step-0-base", "step-1-sr"}
    assert header["programs"]["step-1-sr"]["low_res"] == "float32[b, 16, 16, 3]"
    for name in header["programs"]:
        loaded = jax.export.deserialize(bytearray((made / f"{name}.stablehlo").read_bytes()))
        assert set(loaded.platforms) == {"cpu", "tpu", "cuda"}


def test_what_is_in_the_way_or_cannot_be_written_is_refused(cascade, tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="is there already"):
        cascade.export(str(tmp_path / "mine"), format="stablehlo", overwrite=True)
    with pytest.raises(UserError, match="in a bucket"):
        cascade.export("gs://bucket/programs", format="stablehlo")
    with pytest.raises(UserError, match="low-resolution images are needed"):
        cascade.above_base().export(str(tmp_path / "sr"), format="stablehlo")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.slow
def test_programs_that_give_something_else_never_have_the_name(cascade, tmp_path, monkeypatch):
    """A disk that returns other parameters than it was given."""
    write = arrays.write_arrays
    monkeypatch.setattr(
        arrays, "write_arrays", lambda folder, leaves, most: write(folder, {k: 2 * v for k, v in leaves.items()}, most)
    )
    with pytest.raises(UserError, match=r"something else than the cascade: sampler .*text_encoder, step-0-base"):
        cascade.only(last="base").export(str(tmp_path / "programs"), format="stablehlo")
    assert not list(tmp_path.iterdir())
