"""A program started where little is as usual."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagen_jax.data.records import Corpus

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("home", [None, "/proc"])
def test_ascii_locale_no_writable_home_odd_names_and_another_file_system(tmp_path, home):
    """Pictures lie on one file system, what is written on another: nothing is renamed between the two."""
    other = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else tmp_path
    out = other / f"o'u\"t = größe {os.getpid()}-{home is None}"
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
