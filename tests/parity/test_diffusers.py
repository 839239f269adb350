"""Sampling loops against diffusers' schedulers, and DeepFloyd IF's networks driven by our steps. Needs `parity`."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion import guidance, process, samplers, thresholding
from imagen_jax.diffusion.samplers import Estimate, Sampler, Step
from imagen_jax.diffusion.schedules import DiscreteSchedule
from imagen_jax.diffusion.time_grids import RespacedGrid
from imagen_jax.interop import load_if_stage, save_if_stage

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

GOLDEN = Path(__file__).parents[1] / "golden"
NUM, SHAPE = 20, (2, 3, 8, 8)


def net(x: np.ndarray, sigma: float) -> np.ndarray:
    """The one network of both sides: the exact denoiser of x0 + sigma noise, x0 from N(-0.6, 0.1²) or N(0.4, 0.25²)."""
    (low, low_density), (high, high_density) = (
        (
            mean + std**2 / (std**2 + sigma**2) * (x.astype(np.float64) - mean),
            np.log(weight) - 0.5 * np.log(std**2 + sigma**2) - 0.5 * (x - mean) ** 2 / (std**2 + sigma**2),
        )
        for weight, mean, std in ((0.3, -0.6, 0.1), (0.7, 0.4, 0.25))
    )
    share = 1 / (1 + np.exp(low_density - high_density))
    return ((1 - share) * low + share * high).astype(np.float32)


def predict(z: jax.Array, log_snr: jax.Array) -> Estimate:
    sigma = float(np.exp(-0.5 * float(log_snr[0])))
    x0 = net(np.asarray(z) * np.float32(np.hypot(1, sigma)), sigma)
    return samplers.estimate_from_x0(jnp.asarray(x0), z, log_snr)


def loop(
    step: Callable[[int, jax.Array, Step, jax.Array], tuple[jax.Array, jax.Array]], z: np.ndarray, log_snrs: np.ndarray
) -> Iterator[np.ndarray]:
    """z after every step but the one to the clean image: `step` gets the number, z, log-SNRs and x0_hat before."""
    rows = jnp.ones(len(z))
    state, x0_before = jnp.asarray(z), jnp.zeros(z.shape)
    for i, triple in enumerate(zip(log_snrs, log_snrs[1:], [-np.inf, *log_snrs], strict=False)):
        state, x0_before = step(i, state, Step(*(jnp.float32(value) * rows for value in triple)), x0_before)
        yield np.asarray(state)


def assert_close(got: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * max(1.0, np.abs(expected).max()))


DISCRETE = {"beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "leading"}
# name: (scheduler, its settings, settings of its step, our sampler)
LOOPS: dict[str, tuple[str, dict[str, Any], dict[str, Any], Sampler]] = {
    "DPM-Solver++ 2M": ("DPMSolverMultistep", DISCRETE, {}, samplers.DPMSolverSampler()),
    "DPM-Solver++ 2M, Karras": ("DPMSolverMultistep", {"use_karras_sigmas": True}, {}, samplers.DPMSolverSampler()),
    "SDE-DPM-Solver++ 2M": (
        "DPMSolverMultistep",
        {"algorithm_type": "sde-dpmsolver++", **DISCRETE},
        {},
        samplers.DPMSolverSampler(eta=1.0),
    ),
    "Euler": ("EulerDiscrete", {"use_karras_sigmas": True}, {}, samplers.DDIMSampler()),
    "Euler, discrete": ("EulerDiscrete", DISCRETE, {}, samplers.DDIMSampler()),
    "Heun": ("HeunDiscrete", {"use_karras_sigmas": True}, {}, samplers.HeunSampler()),
    "Heun, discrete": ("HeunDiscrete", DISCRETE, {}, samplers.HeunSampler()),
    "DDIM": ("DDIM", {"clip_sample": False, **DISCRETE}, {"eta": 0.0}, samplers.DDIMSampler()),
    "DDIM, eta 0.3": ("DDIM", {"clip_sample": False, **DISCRETE}, {"eta": 0.3}, samplers.DDIMSampler(eta=0.3)),
    "DDIM, eta 1": ("DDIM", {"clip_sample": False, **DISCRETE}, {"eta": 1.0}, samplers.DDIMSampler(eta=1.0)),
    "DDPM, small": ("DDPM", {"clip_sample": False, **DISCRETE}, {}, samplers.DDPMSampler()),
    "DDPM, large": (
        "DDPM",
        {"clip_sample": False, "variance_type": "fixed_large", **DISCRETE},
        {},
        samplers.DDPMSampler(gamma=1.0),
    ),
}


def theirs(
    name: str, start: np.ndarray, noise: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> tuple[np.ndarray, list[np.ndarray]]:
    """sigma / alpha of every network call but Heun's second ones, and z at each and at the end."""
    family, settings, step_settings, _ = LOOPS[name]
    scheduler = getattr(diffusers, f"{family}Scheduler")(**settings)
    scheduler.set_timesteps(NUM)
    number = 0

    def given_noise(*args: Any, **kwargs: Any) -> torch.Tensor:
        return torch.from_numpy(noise[number])

    module = __import__(type(scheduler).__module__, fromlist=["randn_tensor"])
    monkeypatch.setattr(module, "randn_tensor", given_noise, raising=False)
    # Karras' state is z / alpha; the rest have z.
    exploding = family in ("EulerDiscrete", "HeunDiscrete")
    sigmas, states = [], []
    x = torch.from_numpy(start)
    for call, t in enumerate(scheduler.timesteps):
        if hasattr(scheduler, "sigmas"):
            sigma = float(scheduler.sigmas[call])
        else:
            sigma = float(np.sqrt(1 / np.float64(scheduler.alphas_cumprod[t]) - 1))
        scale = 1.0 if exploding else float(np.hypot(1, sigma))
        if exploding and call == 0:
            x = x * np.float32(np.hypot(1, sigma))
        if family != "HeunDiscrete" or scheduler.state_in_first_order:
            sigmas.append(sigma)
            states.append(x.numpy() / np.float32(np.hypot(1, sigma) / scale))
            number = len(states) - 1
        scheduler.scale_model_input(x, t)
        x_explicit = x.numpy() * np.float32(scale)
        eps = (x_explicit - net(x_explicit, sigma)) / np.float32(sigma)
        x = scheduler.step(torch.from_numpy(eps), t, x, **step_settings).prev_sample
    return np.asarray(sigmas), [*states, x.numpy()]


@pytest.mark.parametrize("name", LOOPS)
def test_whole_loop(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    start, noise = rng.normal(size=SHAPE).astype(np.float32), rng.normal(size=(NUM, *SHAPE)).astype(np.float32)
    sigmas, expected = theirs(name, start, noise, monkeypatch)
    assert len(sigmas) == NUM and (np.diff(sigmas) < 0).all()
    sampler, log_snrs = LOOPS[name][3], -2 * np.log(sigmas)

    def step(i: int, z: jax.Array, ends: Step, x0_before: jax.Array) -> tuple[jax.Array, jax.Array]:
        return sampler.step(predict, z, ends, jnp.asarray(noise[i]), x0_before)

    states = [start, *loop(step, start, log_snrs)]
    final = np.asarray(predict(jnp.asarray(states[-1]), jnp.full(len(start), log_snrs[-1], jnp.float32)).x0)
    for got, want in zip([*states, final], expected, strict=True):
        assert_close(got, want, 1e-5)


class IFStage:
    """A recorded pipeline: its network in PyTorch, everything else here."""

    def __init__(self, number: int) -> None:
        self.number, folder = number, GOLDEN / f"c_if_stage{number}"
        self.net = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet", local_files_only=True).eval()
        self.net.set_attn_processor(diffusers.models.attention_processor.AttnAddedKVProcessor())
        self.config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
        self.given = np.load(folder / "trajectory.npz")
        self.forward = np.load(folder / "forward.npz")
        times = jnp.arange(1, self.config["num_train_timesteps"] + 1) / self.config["num_train_timesteps"]
        self.exact = np.asarray(DiscreteSchedule(betas="cosine").log_snr(times))
        alphas_cumprod = diffusers.DDPMScheduler.from_config(self.config).alphas_cumprod.double().numpy()
        self.rounded = np.log(alphas_cumprod / (1 - alphas_cumprod))

    def predict(self, z: jax.Array, log_snr: jax.Array) -> Estimate:
        timestep = int(np.argmin(np.abs(self.exact - float(log_snr[0]))))
        low_res = [self.given["upscaled_noised"]] if "upscaled_noised" in self.given else []
        level = {"class_labels": torch.full((4,), int(self.given["noise_level"]))} if low_res else {}
        text = np.concatenate([self.given["negative_prompt_embeds"], self.given["prompt_embeds"]])
        sample = np.tile(np.concatenate([np.asarray(z), *low_res], axis=1), (2, 1, 1, 1))
        with torch.no_grad():
            output = self.net(torch.from_numpy(sample), timestep, torch.from_numpy(text), **level).sample
        null, cond = jnp.split(jnp.asarray(output.numpy()), 2)
        eps = guidance.guide(cond[:, :3], null[:, :3], float(self.given["guidance_scale"]))
        x0, eps = process.to_x0_eps(
            {"epsilon": "eps", "v_prediction": "v"}[self.config["prediction_type"]], eps, z, log_snr
        )
        percentile = 100 * self.config["dynamic_thresholding_ratio"]
        x0 = thresholding.threshold(x0, "dynamic", percentile, self.config["sample_max_value"])
        return Estimate(x0, eps, (cond[:, 3:] + 1) / 2)

    def trajectory(self, table: np.ndarray, from_recorded: bool) -> list[np.ndarray]:
        """x after every step at log-SNRs of the table, each from the recorded x before it or from our own."""
        starts, log_snrs = [self.given["initial_noise"], *self.given["x"]], table[self.given["timesteps"]]

        def step(i: int, z: jax.Array, ends: Step, x0_before: jax.Array) -> tuple[jax.Array, jax.Array]:
            z = jnp.asarray(starts[i]) if from_recorded else z
            return samplers.DDPMSampler().step(self.predict, z, ends, jnp.asarray(self.given["step_noise"][i]), z)

        xs = list(loop(step, starts[0], log_snrs))
        last = jnp.asarray(starts[-2] if from_recorded else xs[-1])
        return [*xs, np.asarray(self.predict(last, jnp.full(len(last), log_snrs[-1], jnp.float32)).x0)]


@pytest.fixture(scope="module", params=[1, 2])
def stage(request: pytest.FixtureRequest) -> IFStage:
    return IFStage(request.param)


def test_the_network_is_the_recorded_one(stage: IFStage) -> None:
    level = {"class_labels": torch.from_numpy(stage.forward["noise_level"])} if "noise_level" in stage.forward else {}
    arrays = (torch.from_numpy(stage.forward[name]) for name in ("sample", "timestep", "encoder_hidden_states"))
    with torch.no_grad():
        assert_close(stage.net(*arrays, **level).sample.numpy(), stage.forward["output"], 2e-5)


def test_single_steps_of_deepfloyd_if(stage: IFStage) -> None:
    # Nearly all of it is the rounding of PyTorch's network: 5e-7 of the largest value on one CPU, 4e-6 on another.
    for x, expected in zip(stage.trajectory(stage.rounded, True), stage.given["x"], strict=True):
        assert_close(x, expected, 1e-5)
    # IF's own table is exact, as ours; diffusers' alpha² of entry 0, 1 - 4.1e-5 in float32, leaves sigma² three digits.
    *before, into_entry_0, last = zip(stage.trajectory(stage.exact, True), stage.given["x"], strict=True)
    for x, expected in before:
        assert_close(x, expected, 1e-5)
    for x, expected in (into_entry_0, last):
        assert_close(x, expected, 5e-5)


def test_whole_trajectory_of_deepfloyd_if(stage: IFStage) -> None:
    for x, expected in zip(stage.trajectory(stage.exact, False), stage.given["x"], strict=True):
        assert_close(x, expected, 1e-3)


def test_respaced_grid_has_the_tables_of_the_pipelines() -> None:
    tables = __import__("diffusers.pipelines.deepfloyd_if.timesteps", fromlist=["*"])
    sections = {
        "smart27": (7, 4, 2, 1, 2, 4, 7),
        "fast27": (10, 10, 3, 2, 2),
        "super100": (4, 4, 6, 6, 8, 8, 10, 10, 14, 30),
        "smart185": (1, 1, 2, 2, 2, 3, 3, 3, *range(4, 17), 18, 20),
    }
    for name, counts in sections.items():
        times = RespacedGrid(sections=counts).times(sum(counts))
        assert (np.round(times[:-1] * 1000) - 1).tolist() == getattr(tables, f"{name}_timesteps")


def test_a_saved_stage_samples_in_diffusers_as_its_original(stage: IFStage, tmp_path: Path) -> None:
    source, folder = GOLDEN / f"c_if_stage{stage.number}", tmp_path / "stage"
    save_if_stage(load_if_stage(str(source)), str(folder))
    kind = diffusers.IFPipeline if stage.number == 1 else diffusers.IFSuperResolutionPipeline
    saved = kind.from_pretrained(str(folder), local_files_only=True)
    saved.unet.set_attn_processor(diffusers.models.attention_processor.AttnAddedKVProcessor())
    parts: dict[str, Any] = dict.fromkeys(("tokenizer", "text_encoder", "safety_checker", "feature_extractor"))
    parts |= {"watermarker": None, "unet": stage.net, "requires_safety_checker": False}
    for name in ("scheduler", "image_noising_scheduler")[: stage.number]:
        parts[name] = diffusers.DDPMScheduler.from_pretrained(str(source / name), local_files_only=True)
    draws = []
    for pipeline in (saved, kind(**parts)):
        pipeline.set_progress_bar_config(disable=True)
        settings: dict[str, Any] = {"num_inference_steps": 3, "output_type": "pt"}
        for name in ("prompt_embeds", "negative_prompt_embeds"):
            settings[name] = torch.from_numpy(stage.given[name])
        if stage.number == 2:
            settings["image"] = torch.from_numpy(stage.given["lowres"])
        draws.append(pipeline(generator=torch.Generator().manual_seed(0), **settings).images.numpy())
    assert np.array_equal(*draws)
