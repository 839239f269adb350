"""`imagen_jax eval` in two processes that share a folder's images."""

import json
import os
import socket
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagen_jax.errors import UserError
from imagen_jax.evals import evaluator
from imagen_jax.main import main
from tests.evals.features.dinov2_folder import write_dinov2

CLIP = Path(__file__).parents[2] / "golden" / "e_clip" / "clip"


def write_images(folder: Path, seed: int, number: int) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for i in range(number):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.mark.slow
def test_two_processes_score_as_one_does(tmp_path):
    """A metric that streams and one that keeps features; process 0 alone writes and tells."""
    (tmp_path / "dinov2").mkdir()
    write_dinov2(tmp_path / "dinov2", registers=False)
    words = [
        *("eval", "--gin_file=configs/runs/image_scores.gin", "--protocols=torch_fidelity,clean_fid_10k"),
        f"--gin.GENERATED_DIR={write_images(tmp_path / 'ours', 1, 5)}",
        f"--gin.REFERENCE_DIR={write_images(tmp_path / 'theirs', 2, 7)}",
        *(f"--gin.DINOV2_PATH={tmp_path / 'dinov2'}", f"--gin.CLIP_PATH={CLIP}", "--gin.METRICS=('fd_dinov2','cmmd')"),
    ]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    shared = [
        *(sys.executable, "-m", "imagen_jax.main", *words, f"--gin.RUN_DIR={tmp_path / 'two'}"),
        *(f"--coordinator_address=localhost:{port}", "--num_processes=2"),
    ]
    processes = [
        subprocess.Popen(
            [*shared, f"--process_id={rank}"],
            env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        assert main([*words, f"--gin.RUN_DIR={tmp_path / 'one'}"]) == 0
        told = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], told
    # Not all that is told: what joins the processes writes a line of its own.
    assert ["spread" in out for out, _ in told] == [True, False]
    one, two = (json.loads((tmp_path / name / "image_scores.json").read_text()) for name in ("one", "two"))
    for alone, both in zip(one["scores"], two["scores"], strict=True):
        assert (both["num_generated"], both["num_reference"]) == (5, 7)
        for name in ("fd_dinov2", "cmmd"):
            assert alone[name] > 0 and both[name] == pytest.approx(alone[name], rel=1e-5), name
        assert {**alone, "fd_dinov2": 0, "cmmd": 0} == {**both, "fd_dinov2": 0, "cmmd": 0}


def test_evaluators_that_share_nothing_are_refused(monkeypatch):
    monkeypatch.setattr(evaluator, "jax", types.SimpleNamespace(process_count=lambda: 2))
    alone = types.SimpleNamespace(evaluate=lambda cascade, run_dir: None)
    config = evaluator.EvalConfig(run_dir="x", evaluators=(alone,))
    with pytest.raises(UserError, match="runs in one process, and there are 2.*--num_processes=1"):
        evaluator.run(config)
