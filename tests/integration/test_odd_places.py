"""A program started where little is as usual."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagen_jax.checkpoints import folders
from imagen_jax.data.records import Corpus
from imagen_jax.main import main
from tests.integration.running import REPOSITORY, train_stage

# Where what is written lies, on another file system than what is read: nothing is renamed between the two.
OTHER = Path("/dev/shm")


@pytest.mark.slow
@pytest.mark.parametrize("home", [None, "/proc"])
def test_ascii_locale_no_writable_home_odd_names_and_another_file_system(tmp_path, home):
    out = (OTHER if os.access(OTHER, os.W_OK) else tmp_path) / f"o'u\"t = größe {os.getpid()}-{home is None}"
    pictures = tmp_path / "my pictures"
    pictures.mkdir()
    Image.fromarray(np.full((20, 20, 3), 90, np.uint8)).save(pictures / "Würfel.png")
    (pictures / "Würfel.txt").write_text("ein grüner Würfel", encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if name not in ("HOME", "LANG", "PYTHONUTF8")}
    command = [sys.executable, "-m", "imagen_jax.main", "build_corpus", "--images", "my pictures"]
    try:
        done = subprocess.run(
            [*command, "--output", str(out), "--image_size", "16"],
            cwd=tmp_path,
            env={**kept, "LC_ALL": "C", "PYTHONPATH": str(REPOSITORY), **({"HOME": home} if home else {})},
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=False,
        )
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
        assert [caption for _, caption in Corpus(out).captions()] == ["ein grüner Würfel"]
        assert not [name for name in os.listdir(out) if name.startswith(".")]
    finally:
        shutil.rmtree(out, ignore_errors=True)


@pytest.mark.slow
def test_a_run_of_an_odd_name_goes_on_longer_and_is_drawn_from(root, tmp_path):
    run = (OTHER if os.access(OTHER, os.W_OK) else tmp_path) / f"r'u\"n = größe, 漢 {os.getpid()}"
    try:
        for num_steps in (2, 4):
            assert train_stage(root, "base", MODEL_DIR=run, NUM_STEPS=num_steps) == 0
            assert folders.saved_steps(run)[-1] == num_steps
        out = run / "o'u\"t = a, b"
        words = ["sample", "--checkpoint", str(run), "--output", str(out), "--num_steps=1", "a red cube"]
        assert main(words) == 0
        assert sorted(path.name for path in out.iterdir()) == ["00000.png"]
    finally:
        shutil.rmtree(run, ignore_errors=True)
