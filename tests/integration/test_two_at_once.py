"""Two programs at once in one working directory, where names are relative and compiled programs shared."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from imagen_jax.checkpoints import checkpoints
from imagen_jax.commands.parts.sample_run import LOCK
from imagen_jax.files import alone_in
from imagen_jax.main import main
from tests.integration.running import REPOSITORY, flags_of, one_error
from tests.train.tiny_run import leaves_equal


@pytest.mark.slow
def test_two_equal_runs_end_in_equal_bits(root: Path, tmp_path: Path) -> None:
    gin_file = f"--gin_file={REPOSITORY}/tests/integration/tiny_base.gin"
    runs = [
        subprocess.Popen(
            [sys.executable, "-m", "imagen_jax.main", "train", gin_file, *flags_of(root, MODEL_DIR=f"runs/{name}")],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "two")
    ]
    told = [run.communicate(timeout=300)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], told
    one, two = (checkpoints.load_params(tmp_path / "runs" / name) for name in ("one", "two"))
    assert leaves_equal(one, two)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.name.endswith((".lock", ".partial"))) == []
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("*/*")) == ["runs/one", "runs/two"]


def test_a_folder_that_another_process_draws_into_is_left_alone(root: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    draw = ["sample", "--checkpoint", str(root), "--output", str(out), "--num_steps=1", "--stage=base", "a red cube"]
    with alone_in(out, LOCK, "out", "drawn into"):
        for words in ((), ("--overwrite",)):
            assert main([*draw, *words]) == 2
            assert "out is being drawn into by process" in one_error(capsys)
        assert [path.name for path in tmp_path.rglob("*")] == ["out", LOCK]
    assert main(draw) == 0
    assert [path.name for path in out.iterdir()] == ["00000.png"]
