"""Damaged inputs of the report: metrics.jsonl of the stages, scores and studies, photographs, commands."""

import json
import random
from typing import Any

import numpy as np
import pytest

from imagen_jax.errors import UserError
from imagen_jax.report.page import write_report
from imagen_jax.sampling.images import write_png
from imagen_jax.train.metrics import MetricWriter
from tests.fuzz.mutate import changed, damaged, json_file
from tests.fuzz.running import fuzz

_LINES = [
    {"step": step, "loss": 1 / step, "grad_norm": 1.0, "learning_rate": 1e-4, "images_per_s": 9.5, "data_s": 0.1,
     "compute_s": 0.2, "loss_by_log_snr": {"-inf..-6": 0.5, "6..inf": 0.25}}
    for step in (2, 4, 6)
]  # fmt: skip
_SCORES = {"single_both": 0.9, "heldout_both": 0.5}
_FILES: dict[str, Any] = {
    "eval.json": {
        "alignment": {"1.0": _SCORES, "3.0": _SCORES},
        "best_guidance_weight": 3.0, "unconditional_both": 0.1, "chance_both": 0.02, "num_prompts": 32,
    },
    "samplers.json": {
        "samplers": {"ddim": {"calls": [4, 8], "alignment": [0.5, 0.75], "image_error": [3.5, None]}},
        "guidance_weight": 3.0, "num_prompts": 8,
    },
    "thresholds.json": {
        "guidance_weights": [1.0, 8.0], "stage": "base", "num_prompts": 8,
        "rules": {"none": {"alignment": [0.5, 0.25], "saturated": [0.0, 0.5]}},
    },
    "photos.json": [
        {"caption": "a cat", "psnr_db": 20.5, "colour_drift": 1.0, "original": "samples.png", "drawn": "samples.png"}
    ],
    "commands.json": [{"phase": "train", "command": "imagen_jax train"}],
    "metrics.json": {"wall_s": {"train": 100.0}, "params": 1000},
    "base/versions.json": {"python": "3.11", "jax": "0.10"},
}  # fmt: skip


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    (folder / "base").mkdir(parents=True)
    for name, content in _FILES.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "base/metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in _LINES))
    write_png(str(folder / "samples.png"), np.zeros((8, 8, 3), np.uint8), {"prompts": ["a cat"], "seed": 0})
    return folder


def test_every_file_of_a_report(pytestconfig, run):
    last = "commands.json"

    def make(chance: random.Random) -> tuple[str, bytes]:
        nonlocal last
        (run / last).write_text(json.dumps(_FILES[last]))
        last = chance.choice(list(_FILES))
        (run / last).write_bytes(content := json_file(chance, _FILES[last]))
        return last, content

    def attempt(case: tuple[str, bytes]) -> None:
        page = open(write_report(str(run)), encoding="utf-8").read()
        assert page.endswith("</html>\n") and "<script" not in page

    fuzz(pytestconfig, "report", make, attempt, writes=run)


def _metrics(chance: random.Random) -> bytes:
    lines = [json.dumps(line).encode() for line in _LINES]
    at = chance.randrange(len(lines))
    lines[at] = json.dumps(changed(chance, _LINES[at])).encode() if chance.random() < 0.7 else json_file(chance, _LINES)
    content = b"\n".join(lines) + b"\n" * chance.randrange(3)
    return damaged(chance, content) if chance.random() < 0.3 else content


def test_metrics_of_a_stage(pytestconfig, run):
    path = run / "base/metrics.jsonl"

    def make(chance: random.Random) -> bytes:
        path.write_bytes(content := _metrics(chance))
        return content

    fuzz(pytestconfig, "metrics.jsonl", make, lambda content: write_report(str(run)), writes=run)


def test_metrics_of_a_run_that_goes_on(pytestconfig, run):
    """Lines up to the step stay as they are; what cannot be read is refused, or was the last line, cut short."""
    path = run / "base/metrics.jsonl"

    def make(chance: random.Random) -> bytes:
        path.write_bytes(content := _metrics(chance))
        return content

    def attempt(content: bytes) -> None:
        try:
            MetricWriter(run / "base", 4).close()
        except UserError:
            assert path.read_bytes() == content
            raise
        assert set(path.read_bytes().splitlines()) <= set(content.splitlines())

    fuzz(pytestconfig, "going on", make, attempt, writes=path.parent)
