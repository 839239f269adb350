"""The sweeps over samplers and thresholding on a tiny cascade, and the config that runs them on the demo's."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagen_jax import gin_config
from imagen_jax.diffusion.samplers import DDIMSampler, DPMSolverSampler, HeunSampler
from imagen_jax.diffusion.schedules import EDMSchedule
from imagen_jax.diffusion.time_grids import UniformGrid
from imagen_jax.errors import UserError
from imagen_jax.evals.evaluator import EvalConfig
from imagen_jax.evals.sampler_study import Candidate, Prompts, SamplerSweep, ThresholdSweep
from imagen_jax.report.page import write_report
from imagen_jax.sampling.cascade import Cascade
from imagen_jax.sampling.images import from_uint8

FEW = Prompts(num_single=2, num_two=2, num_heldout=2)


@pytest.mark.slow
def test_sweeps_write_what_the_report_shows(root: Path, tmp_path: Path) -> None:
    cascade = Cascade.load(str(root))
    candidates = (
        Candidate(name="2M", sampler=DPMSolverSampler(), num_steps=(1, 3)),
        Candidate(name="Heun", sampler=HeunSampler(), schedule=EDMSchedule(), num_steps=(2,)),
    )
    SamplerSweep(candidates=candidates, prompts=FEW).evaluate(cascade, str(tmp_path))
    found = json.loads((tmp_path / "samplers.json").read_text())["samplers"]
    assert found["2M"]["calls"] == [1, 3] and found["Heun"]["calls"] == [3]
    # The first sampler's most steps are what the others are compared with.
    assert found["2M"]["image_error"][1] == 0.0 and found["2M"]["image_error"][0] > 0
    assert all(0 <= score <= 1 for rows in found.values() for score in rows["alignment"])
    ThresholdSweep(guidance_weights=(1.0, 6.0), prompts=FEW).evaluate(cascade, str(tmp_path))
    rules = json.loads((tmp_path / "thresholds.json").read_text())["rules"]
    assert list(rules) == ["dynamic", "static", "none"] and len(rules["none"]["saturated"]) == 2
    with Image.open(tmp_path / "eval" / "thresholds.png") as picture:
        # Two columns, and for each of two captions three rows, of 64 pixels and gaps of 2.
        assert picture.size == (2 * 66 + 2, 6 * 66 + 2)
    (tmp_path / "samples.png").write_bytes((tmp_path / "eval" / "thresholds.png").read_bytes())
    page = Path(write_report(str(tmp_path))).read_text()
    assert 'id="samplers"' in page and 'id="thresholding"' in page


@pytest.mark.slow
def test_thresholding_of_a_stage_above_the_first(root: Path, tmp_path: Path) -> None:
    cascade = Cascade.load(str(root))
    sweep = ThresholdSweep(stage="sr", guidance_weights=(1.0, 6.0), prompts=FEW)
    sweep.evaluate(cascade, str(tmp_path))
    assert json.loads((tmp_path / "thresholds_sr.json").read_text())["stage"] == "sr"
    with Image.open(tmp_path / "eval" / "thresholds_sr.png") as picture:
        # Second row and column: the first caption, static, w = 6.
        tile = np.asarray(picture).astype(int)[68:132, 68:132]
    captions, _ = FEW.captions_and_scenes()
    (base,) = cascade.only(last="base").sample(captions, seed=FEW.seed)
    strong = cascade.only(first="sr").configure(
        lambda _, sampling: dataclasses.replace(sampling, guidance_weight=6.0, thresholding="static")
    )
    (drawn,) = strong.sample(captions, seed=FEW.seed, low_res=from_uint8(base))
    assert abs(drawn[0] - tile).max() <= 1
    with pytest.raises(UserError, match="no stage 'top'"):
        dataclasses.replace(sweep, stage="top").evaluate(cascade, str(tmp_path))


def test_a_candidates_own_schedule_is_not_cut_by_the_stages_grid(root: Path) -> None:
    cascade = Cascade.load(str(root))
    base, sr = (loaded.sampling for loaded in cascade.stages)
    cut = dataclasses.replace(base, times=UniformGrid(t_last=0.9))
    late = cascade.configure(lambda stage, _: cut if stage.low_res_size is None else sr)
    for schedule, alike in ((EDMSchedule(), True), (None, False)):
        times = Candidate(name="DDIM", sampler=DDIMSampler(), schedule=schedule).times()
        settings = {"sampler": DDIMSampler(), "num_steps": 2, **times}
        drawn = [FEW.draw_and_judge(one, "DDIM", 8, **settings)[1] for one in (cascade, late)]
        assert np.array_equal(*drawn) == alike


def test_the_demo_config_names_its_samplers() -> None:
    config = gin_config.load(EvalConfig, ["configs/experiments/demo_samplers.gin"], ["RUN_DIR = 'x'"])
    sweep, rules, rules_above = config.evaluators
    assert isinstance(sweep, SamplerSweep) and isinstance(rules, ThresholdSweep)
    assert isinstance(rules_above, ThresholdSweep) and (rules.stage, rules_above.stage) == (None, "sr")
    assert [type(one.sampler).__name__ for one in sweep.candidates] == [
        "DPMSolverSampler",
        "DDIMSampler",
        "DDPMSampler",
        "DDPMSampler",
        "DPMSolverSampler",
        "HeunSampler",
    ]
    assert [getattr(one.sampler, "eta", None) for one in sweep.candidates] == [0.0, 0.0, None, None, 1.0, None]
    assert sweep.prompts == rules.prompts == rules_above.prompts == Prompts(seed=2)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Candidate(name="x", sampler=DPMSolverSampler(), num_steps=(8, 4)), "rising"),
        (lambda: Prompts(num_two=0), "num_two"),
        (lambda: SamplerSweep(candidates=()), "candidates"),
        (lambda: ThresholdSweep(guidance_weights=()), "empty"),
        (lambda: ThresholdSweep(guidance_weights=(-1.0,)), "guidance_weight"),
    ],
)
def test_impossible_sweeps_are_refused(build, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build()
