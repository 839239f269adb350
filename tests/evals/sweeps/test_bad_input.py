"""Input that a sweep refuses, repairs or counts, as docs/input_evaluation.md says."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import pytest

from imagen_jax.errors import UserError
from imagen_jax.evals.sweeps.measures import Measures
from imagen_jax.evals.sweeps.plan import StageGrid
from imagen_jax.evals.sweeps.prompts import CocoPrompts, FilePrompts, ShapesPrompts
from imagen_jax.evals.sweeps.sweep import SweepConfig, run_sweep
from imagen_jax.report.sweep import write_sweep_page
from imagen_jax.sampling.cascade import Cascade
from tests.evals.sweeps.tiny_coco import write_coco
from tests.untrained import untrained_cascade

GRIDS = (StageGrid(stage="base", guidance_weight=(2.0,)),)


@pytest.fixture(scope="module")
def cascade() -> Cascade:
    return untrained_cascade()


@pytest.fixture(scope="module")
def base(cascade: Cascade) -> Cascade:
    return cascade.only("base", "base")


@pytest.fixture(autouse=True)
def one_device_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagen_jax.sampling.cascade.drawing_devices", lambda: jax.local_devices()[:1])


def _config(folder: Path, **changes: Any) -> SweepConfig:
    prompts = ShapesPrompts(num_single=3, num_two=0, num_count=0, num_heldout=0)
    places = {"run_dir": "unused", "output_dir": str(folder / "sweep")}
    return SweepConfig(**{**places, "prompts": prompts, "grids": GRIDS, "batch_size": 2, **changes})


def _refused(config: SweepConfig, cascade: Cascade) -> str:
    with pytest.raises(UserError) as error:
        run_sweep(config, cascade=cascade)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("stage", "values", "said"),
    [
        ("base", {"guidance_weight": (float("nan"),)}, "guidance_weight"),
        ("base", {"num_steps": (0,)}, "num_steps"),
        ("base", {"sampler": ("eulr",)}, "eulr"),
        ("base", {"thresholding": ("hard",)}, "hard"),
        ("sr", {"aug_level": (1.5,)}, "aug_level"),
        ("sr1024", {"num_steps": (2,)}, "a grid names stage 'sr1024', which the cascade has not: base, sr"),
    ],
)
def test_a_grid_that_does_not_fit(cascade: Cascade, tmp_path: Path, stage: str, values: Any, said: str) -> None:
    assert said in _refused(_config(tmp_path, grids=(StageGrid(stage=stage, **values),)), cascade)
    assert not (tmp_path / "sweep").exists()


def test_prompts_that_are_missing_or_damaged(cascade: Cascade, tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    prompts = FilePrompts(path=str(path))
    assert f"FilePrompts.path={path} cannot be read" in _refused(_config(tmp_path, prompts=prompts), cascade)
    path.write_bytes(b"a\n\xff\xfe\n")
    assert "give a UTF-8 file" in _refused(_config(tmp_path, prompts=prompts), cascade)
    path.write_text("\n \n")
    assert "holds no caption" in _refused(_config(tmp_path, prompts=prompts), cascade)
    coco = CocoPrompts(folder=str(tmp_path / "coco"), num_images=99)
    assert "no annotations" in _refused(_config(tmp_path, prompts=coco), cascade)
    write_coco(tmp_path / "coco", 3)
    assert "draws 99 captions, and there are 4" in _refused(_config(tmp_path, prompts=coco), cascade)
    missing = Measures(metrics=("clip_score",), clip_path=str(tmp_path / "none"))
    assert f"no weights at {tmp_path / 'none'}" in _refused(_config(tmp_path, measures=missing), cascade)
    assert not (tmp_path / "sweep").exists()


def test_files_of_a_sweep_that_are_damaged(base: Cascade, tmp_path: Path) -> None:
    """Each is named with what to do, and doing it ends in the same table."""
    config, folder = _config(tmp_path), tmp_path / "sweep"
    first = run_sweep(config, cascade=base)
    key = first["points"][0]["key"]
    table = (folder / "sweep.csv").read_bytes()
    (scores,) = (folder / "scores" / key).iterdir()
    image, unit = (folder / "images" / key / "00000" / name for name in ("000001.png", "unit.json"))
    pixels = image.read_bytes()
    image.write_bytes(pixels[:40])
    scores.unlink()
    assert f"{image} is no image that can be read" in _refused(config, base)
    image.unlink()
    assert run_sweep(config, cascade=base) == first and image.read_bytes() == pixels
    for path, contents in ((unit, ("{", "[]", '{"images": -1}')), (scores, ("", "{}", '{"scores": {"a": "b"}}'))):
        for content in contents:
            path.write_text(content)
            told = _refused(config, base)
            assert str(path) in told and "remove it" in told
        path.unlink()
        assert run_sweep(config, cascade=base) == first
    assert (folder / "sweep.csv").read_bytes() == table
    record = folder / "sweep_folder.json"
    record.write_text("{")
    assert "sweep_folder.json is damaged" in _refused(config, base)
    (folder / "sweep.json").write_text("{}")
    with pytest.raises(UserError, match="malformed"):
        write_sweep_page(str(folder))


def test_another_sweep_in_the_folder(base: Cascade, tmp_path: Path) -> None:
    run_sweep(_config(tmp_path), cascade=base)
    assert "its batch_size differ" in _refused(_config(tmp_path, batch_size=3), base)
    other = dataclasses.replace(base, stages=(dataclasses.replace(base.stages[0], checkpoint="checkpoint_9"),))
    assert "its checkpoints differ" in _refused(_config(tmp_path), other)
