"""Distillation against closed forms: Gaussian data, where every step is affine."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.checkpoints import folders, plain_data
from imagen_jax.checkpoints.trained_stage import StageRecord
from imagen_jax.diffusion import losses, process
from imagen_jax.diffusion.guidance import OscillatingGuidance
from imagen_jax.diffusion.samplers import DDIMSampler, DDPMSampler
from imagen_jax.diffusion.schedules import CosineSchedule
from imagen_jax.diffusion.time_grids import RespacedGrid
from imagen_jax.errors import UserError
from imagen_jax.models.backbone import CONDITIONS
from imagen_jax.models.denoiser import Conditioning
from imagen_jax.sharding.mesh import MeshConfig
from imagen_jax.sharding.rules import batch_sharding
from imagen_jax.stage.sampling_config import SamplingConfig
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.train import distill, loop
from imagen_jax.train.config import DistillConfig, TrainConfig
from imagen_jax.train.distill import DistillObjective
from imagen_jax.train.setup import step_settings
from imagen_jax.train.stage_objective import StageObjective
from imagen_jax.train.state import abstract_state, init_state, shardings_of
from imagen_jax.train.step import jit_train_step
from tests.train import tiny_run

MEAN, STD, STEPS = 0.2, 0.15, 4


@plain_data.register
class GaussianOracle(nn.Module):
    """The exact x0_hat when every pixel of x0 is N(MEAN, STD²); with text, the mean is -MEAN."""

    size_factor = 1
    learned_variance = False
    conditions = CONDITIONS

    @nn.compact
    def __call__(self, z_t: jax.Array, log_snr: jax.Array, cond: Conditioning) -> jax.Array:
        alpha, sigma = process.alpha_sigma(log_snr, z_t.ndim)
        mean = jnp.where(cond.text_mask.any(1), -MEAN, MEAN)[:, None, None, None]
        return (alpha * STD**2 * z_t + sigma**2 * mean) / (alpha**2 * STD**2 + sigma**2)


@plain_data.register
class Affine(nn.Module):
    """x0_hat = slope z_t + shift, both parameters of the nearest of some log-SNRs."""

    log_snr: tuple[float, ...]
    size_factor = 1
    learned_variance = False
    conditions = CONDITIONS

    @nn.compact
    def __call__(self, z_t: jax.Array, log_snr: jax.Array, cond: Conditioning) -> jax.Array:
        slope, shift = (self.param(name, nn.initializers.zeros, (len(self.log_snr),)) for name in ("slope", "shift"))
        nearest = jnp.abs(log_snr[:, None] - jnp.asarray(self.log_snr)).argmin(1)
        return slope[nearest][:, None, None, None] * z_t + shift[nearest][:, None, None, None]


def times(steps: int) -> np.ndarray:
    """float64 log-SNRs of the cosine schedule, clipped at 20."""
    with np.errstate(divide="ignore"):
        return np.clip(-2 * np.log(np.tan(np.pi / 2 * np.linspace(1, 0, steps + 1))), -20, 20)


def ddim(x0_of: Any, z: np.ndarray, log_snrs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Plain DDIM steps; returns the last z and the last x0_hat."""
    for begin, end in zip(log_snrs[:-1], log_snrs[1:], strict=True):
        alpha, sigma = np.sqrt(1 / (1 + np.exp(-begin))), np.sqrt(1 / (1 + np.exp(begin)))
        x0 = x0_of(z, alpha, sigma)
        eps = (z - alpha * x0) / sigma
        z = np.sqrt(1 / (1 + np.exp(-end))) * x0 + np.sqrt(1 / (1 + np.exp(end))) * eps
    return z, x0


def lesson(monkeypatch: pytest.MonkeyPatch, teacher: TrainConfig, **changes: Any) -> DistillObjective:
    """What `student_of(teacher)` learns."""
    monkeypatch.setattr(distill, "read_record", lambda path: record_of(teacher))
    found = DistillObjective.build(student_of(teacher, **changes))
    assert found is not None
    return found


def record_of(config: TrainConfig) -> StageRecord:
    """What a run of `config` leaves beside its checkpoints."""
    return StageRecord.of_run(config.stage, config.sampling, TextEncoder(config.text), "")


def student_of(teacher: TrainConfig, **changes: Any) -> TrainConfig:
    settings = {"teacher_dir": str(teacher.model_dir), "teacher_steps": 3, **changes}
    return dataclasses.replace(
        teacher,
        model_dir=f"{teacher.model_dir}8",
        sampling=SamplingConfig(num_steps=STEPS),
        distill=DistillConfig(**settings),
    )


def teacher_config(tmp_path: Any, model: Any = None, **sampling: Any) -> TrainConfig:
    values = {"num_steps": 64, "guidance_weight": 2.0, "thresholding": "none", **sampling}
    stage = tiny_run.tiny_stage(model=model or tiny_run.TinyNet(), prediction="x0")
    return tiny_run.tiny_config(tmp_path / "teacher", stage=stage, sampling=SamplingConfig(**values))


@pytest.mark.parametrize("thresholding", ["none", "static"])
@pytest.mark.parametrize("teacher_steps", [1, 2, 3])
def test_one_step_to_the_target_ends_where_the_guided_teacher_does(tmp_path, monkeypatch, teacher_steps, thresholding):
    weight = 2.5
    config = teacher_config(tmp_path, GaussianOracle(), thresholding=thresholding)
    learned = lesson(monkeypatch, config, teacher_steps=teacher_steps, guidance_weight=weight)
    rng = np.random.default_rng(0)
    z_t = rng.normal(size=(2 * STEPS, 8, 8, 3))
    has_text = np.arange(2 * STEPS) >= STEPS
    index = np.tile(np.arange(STEPS), 2)
    text = jnp.zeros((2 * STEPS, tiny_run.TEXT_LENGTH, tiny_run.TEXT_DIM))
    cond = Conditioning(text=text, text_mask=jnp.tile(jnp.asarray(has_text)[:, None], (1, tiny_run.TEXT_LENGTH)))
    network = config.stage.network({})
    got = np.asarray(jax.jit(learned.target, static_argnums=0)(network, jnp.float32(z_t), jnp.asarray(index), cond))

    fine, coarse = times(STEPS * teacher_steps), times(STEPS)
    for row in range(2 * STEPS):
        # Guided on its text, and not at all on the null text.
        mean = -weight * MEAN + (1 - weight) * MEAN if has_text[row] else MEAN

        def x0_of(z, alpha, sigma, mean=mean):
            x0 = (alpha * STD**2 * z + sigma**2 * mean) / (alpha**2 * STD**2 + sigma**2)
            return np.clip(x0, -1, 1) if thresholding == "static" else x0

        step = index[row]
        path = fine[step * teacher_steps : (step + 1) * teacher_steps + 1]
        z_s, last = ddim(x0_of, z_t[row], path)
        once, _ = ddim(lambda z, alpha, sigma, x0=got[row]: x0, z_t[row], coarse[step : step + 2])
        np.testing.assert_allclose(once, z_s, atol=2e-4)
        if step == STEPS - 1:
            np.testing.assert_allclose(got[row], last, atol=1e-5)


def test_the_loss_of_the_exact_map_is_nothing(tmp_path, monkeypatch):
    fine = times(3 * STEPS)[:-1]
    config = teacher_config(tmp_path, Affine(tuple(fine.tolist())), guidance_weight=1.0)
    learned = lesson(monkeypatch, config)
    alpha, sigma = np.sqrt(1 / (1 + np.exp(-fine))), np.sqrt(1 / (1 + np.exp(fine)))
    spread = alpha**2 * STD**2 + sigma**2
    teacher = {"slope": alpha * STD**2 / spread, "shift": sigma**2 * MEAN / spread}
    student = {name: np.full_like(fine, np.nan) for name in teacher}
    for step in range(STEPS):
        # The x0_hat that leads from z to z_s in one step, at z = 0 and z = 1; both are affine in z.
        path = times(3 * STEPS)[3 * step : 3 * step + 4]
        ends = []
        for z in (0.0, 1.0):
            z_s, last = ddim(lambda z, a, s: (a * STD**2 * z + s**2 * MEAN) / (a**2 * STD**2 + s**2), z, path)
            a_t, a_s = (np.sqrt(1 / (1 + np.exp(-value))) for value in path[[0, -1]])
            s_t, s_s = (np.sqrt(1 / (1 + np.exp(value))) for value in path[[0, -1]])
            ends.append(last if step == STEPS - 1 else (z_s - s_s / s_t * z) / (a_s - s_s / s_t * a_t))
        student["shift"][3 * step], student["slope"][3 * step] = ends[0], ends[1] - ends[0]

    def loss(params):
        batch = tiny_run.tiny_batch(0, 0, 64)
        params, taught = (jax.tree.map(jnp.float32, tree) for tree in (params, teacher))
        value, aux = jax.jit(learned.diffusion_loss)(params, taught, batch, jax.random.key(0))
        np.testing.assert_allclose(np.unique(aux["log_snr"]), times(STEPS)[:-1], atol=1e-5)
        return float(value)

    assert loss(student) < 1e-10
    assert loss(teacher) > 1e-4


def started(config: TrainConfig, mesh: Any, learned: DistillObjective | None) -> tuple[Any, Any, Any]:
    """A fresh state, other parameters laid out alike, and the step."""
    optimizer = config.optimizer.build()
    objective = learned or StageObjective(stage=config.stage)
    abstract = abstract_state(objective, optimizer, mesh)
    state, other = (
        jax.jit(lambda seed=seed: init_state(objective, optimizer, seed), out_shardings=shardings_of(abstract))()
        for seed in (0, 1)
    )
    return state, other.params, jit_train_step(objective, step_settings(config), mesh, abstract)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh_config", "accumulate_steps"),
    [(MeshConfig(fsdp=4), 1), (MeshConfig(data=2, fsdp=2, tensor=2), 1), (MeshConfig(fsdp=8), 2)],
)
def test_eight_devices_distil_as_one(tmp_path, monkeypatch, mesh_config, accumulate_steps):
    config = dataclasses.replace(teacher_config(tmp_path), accumulate_steps=accumulate_steps)
    learned = lesson(monkeypatch, config)
    rows = []
    for mesh in (MeshConfig().build(jax.devices()[:1]), mesh_config.build()):
        state, teacher, step = started(config, mesh, learned)
        values = []
        for number in range(3):
            batch = jax.device_put(tiny_run.tiny_batch(0, number, 16), batch_sharding(mesh))
            state, metrics = step(state, batch, teacher)
            values.append(float(metrics["loss"]))
        rows.append(values)
        assert step._cache_size() == 1
        # The teacher is an argument: another one needs no other program, and gives another loss.
        _, metrics = step(state, batch, jax.tree.map(lambda leaf: 2 * leaf, teacher))
        assert step._cache_size() == 1 and float(metrics["loss"]) != values[-1]
    np.testing.assert_allclose(rows[1], rows[0], rtol=1e-5)


@pytest.mark.slow
def test_a_run_starts_from_its_teacher_and_approaches_it(tmp_path, monkeypatch):
    tiny_run.use_tiny_data(monkeypatch.setattr)
    config = teacher_config(tmp_path)
    taught = loop.train(config)
    student = dataclasses.replace(student_of(config), num_steps=60)
    program = loop.TrainSetup.build(student)
    state, position, origin = loop.start_state(student, program)
    assert position is None and "averaged parameters of" in origin and config.model_dir in origin
    assert tiny_run.leaves_equal(state.params, taught.ema_params)
    assert tiny_run.leaves_equal(program.load_frozen(), taught.ema_params)
    loop.train(student, stop_at=30)
    loop.train(student)
    lines = [line["loss"] for line in loss_lines(student.model_dir)]
    assert len(lines) == 30 and np.mean(lines[-5:]) < 0.7 * lines[0]
    assert folders.latest_step(student.model_dir) == 60


def loss_lines(model_dir: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(model_dir) / "metrics.jsonl").read_text().splitlines()]


def test_later_phases_call_their_teacher_unguided(tmp_path, monkeypatch):
    config = teacher_config(tmp_path, guidance_weight=1.0)
    assert lesson(monkeypatch, config).settings.guided == "never"
    assert lesson(monkeypatch, config, guidance_weight=3.0).settings.guided == "always"


def test_a_stage_may_weigh_the_text_in_its_own_way(tmp_path, monkeypatch):
    config = teacher_config(tmp_path)
    monkeypatch.setattr(distill, "read_record", lambda path: record_of(config))
    student = student_of(config)
    stage = dataclasses.replace(student.stage, cond_drop_rate=0.0)
    assert DistillObjective.build(dataclasses.replace(student, stage=stage)) is not None
    assert DistillObjective.build(config) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage": {"prediction": "eps"}}, "predicts 'eps' cannot be distilled"),
        ({"stage": {"self_cond_rate": 0.5}}, "self-conditioned"),
        ({"stage": {"model": tiny_run.TinyNet(dim=8)}}, "model: got TinyNet"),
        ({"stage": {"schedule": CosineSchedule(shift=1.0)}}, "schedule: got CosineSchedule"),
        ({"sampling": {"guidance_weight": 2.0}}, r"sampling.guidance_weight \(2.0\) of a distilled stage must be 1"),
        ({"sampling": {"sampler": DDPMSampler()}}, "must be DDIMSampler"),
        ({"sampling": {"sampler": DDIMSampler(eta=0.5)}}, "must be DDIMSampler"),
        ({"sampling": {"times": RespacedGrid(sections=(2, 2))}}, "UniformGrid"),
        ({"sampling": {"guidance_weight": 1.0, "guidance_schedule": OscillatingGuidance(low=2.0)}}, "at every step"),
    ],
)
def test_what_cannot_be_distilled_is_refused(tmp_path, monkeypatch, changes, message):
    config = teacher_config(tmp_path)
    monkeypatch.setattr(distill, "read_record", lambda path: record_of(config))
    student = student_of(config)
    parts = {name: dataclasses.replace(getattr(student, name), **values) for name, values in changes.items()}
    with pytest.raises(UserError, match=message):
        DistillObjective.build(dataclasses.replace(student, **parts))


def test_a_teacher_that_is_not_there_is_refused(tmp_path):
    student = student_of(teacher_config(tmp_path))
    with pytest.raises(UserError, match="no checkpoint under .*teacher.*train first"):
        loop.TrainSetup.build(student)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"teacher_dir": ""}, "distill.teacher_dir"),
        ({"teacher_steps": 0}, r"distill.teacher_steps \(0\) must be an integer >= 1"),
        ({"guidance_weight": -1.0}, "guidance_weight"),
    ],
)
def test_bad_values_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        DistillConfig(**{"teacher_dir": "x", **values})


def test_the_truncated_weight_is_the_larger_of_two():
    log_snr = jnp.asarray([-20.0, -1.0, 0.0, 2.0])
    expected = np.asarray([1.0, 1.0, 1.0, np.exp(2.0)])
    weighting = losses.TruncatedSNRWeighting()
    np.testing.assert_allclose(weighting.weight("x0", log_snr), expected, rtol=1e-6)
    scale = process.x0_error_scale("v", log_snr)
    np.testing.assert_allclose(weighting.weight("v", log_snr), expected * scale, rtol=1e-6)
