"""IF stages as stages of ours, against diffusers' recorded trajectories (tests/golden/c_if_*), and in training."""

import dataclasses
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from imagen_jax.checkpoints import plain_data
from imagen_jax.diffusion.samplers import DDPMSampler, Estimate, Step
from imagen_jax.diffusion.schedules import DiscreteSchedule
from imagen_jax.diffusion.time_grids import SpacedGrid
from imagen_jax.errors import UserError
from imagen_jax.finetune import lora
from imagen_jax.interop import load_if_stage
from imagen_jax.interop.native import native_stage
from imagen_jax.interop.scheduler import DiscreteDDPM
from imagen_jax.models.denoiser import Conditioning
from imagen_jax.sampling.stage_sampler import SampleRows, image_keys, sample_stage
from imagen_jax.sharding import rules
from imagen_jax.stage.guided import GuidedDenoiser, lay_out_steps

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
SIZES = {1: (16,), 2: (24, 6)}


def nhwc(x):
    return jnp.asarray(np.moveaxis(x, -3, -1))


def text_of(embeds):
    return Conditioning(text=jnp.asarray(embeds), text_mask=jnp.ones(embeds.shape[:2], bool))


@pytest.fixture(scope="module", params=[1, 2])
def golden(request):
    folder = GOLDEN / f"c_if_stage{request.param}"
    one = load_if_stage(str(folder))
    return one, *native_stage(one, *SIZES[request.param]), np.load(folder / "trajectory.npz")


def test_the_forward_pass_is_diffusers_at_every_time_and_level(golden):
    one, stage, _, _ = golden
    run = np.load(GOLDEN / f"c_if_stage{1 if stage.low_res_size is None else 2}" / "forward.npz")
    cond, images = text_of(run["encoder_hidden_states"]), nhwc(run["sample"])
    if stage.low_res_size is not None:
        level = jnp.asarray(run["noise_level"] / 1000, jnp.float32)
        cond = dataclasses.replace(cond, low_res=images[..., 3:], aug_level=level)
    log_snr = stage.schedule.log_snr(jnp.asarray((run["timestep"] + 1) / 1000, jnp.float32))
    got = jax.jit(stage.network(one.params))(images[..., :3], log_snr, cond)
    np.testing.assert_allclose(got, nhwc(run["output"]), atol=1e-4, rtol=0)


def test_the_guided_trajectory_is_diffusers_at_every_step(golden):
    one, stage, sampling, run = golden
    noise = nhwc(np.concatenate([run["initial_noise"][None], run["step_noise"]]))
    weight = float(run["guidance_scale"])
    sampling = dataclasses.replace(sampling, num_steps=len(noise), guidance_weight=weight)
    cond, rows = text_of(run["prompt_embeds"]), jnp.ones(noise.shape[1])
    if stage.low_res_size is not None:
        level = rows * int(run["noise_level"]) / 1000
        enlarged = stage.upsample_low_res(nhwc(run["lowres"]))
        np.testing.assert_allclose(enlarged, nhwc(run["upscaled"]), atol=1e-6)
        low_res = stage.low_res_noise.corrupt(enlarged, nhwc(run["lowres_noise"]), level)
        np.testing.assert_allclose(low_res, nhwc(run["upscaled_noised"]), atol=2e-6)
        cond = dataclasses.replace(cond, low_res=low_res, aug_level=level)
    table, settings = lay_out_steps(stage, sampling, noise.shape[2:4], None)
    network = jax.jit(stage.network(one.params))
    null = text_of(run["negative_prompt_embeds"])
    denoiser = GuidedDenoiser(stage=stage, settings=settings, network=network, cond=cond, null=null)
    z, wanted = noise[0], nhwc(run["x"])
    predict = partial(denoiser.estimate, jnp.float32(weight), z)
    for i in range(len(noise) - 1):
        step = Step(table.log_snr_t[i] * rows, table.log_snr_s[i] * rows, -jnp.inf * rows)
        z, _ = settings.sampler.step(predict, z, step, noise[i + 1], z)
        np.testing.assert_allclose(z, wanted[i], atol=1e-3, rtol=0)
    np.testing.assert_allclose(predict(z, table.log_snr_t[-1] * rows).x0, wanted[-1], atol=1e-3, rtol=0)


def test_the_whole_program_draws_what_the_pipeline_does(golden):
    one, stage, sampling, run = golden
    if stage.low_res_size is None:
        pytest.skip("super-resolution is the same program and more")
    sampling, steps = dataclasses.replace(sampling, num_steps=5), 5
    keys, shape = image_keys(3, jnp.arange(2)), (stage.image_size, stage.image_size, 3)
    draw = lambda n: jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, n), shape))(keys)  # noqa: E731
    low = {} if stage.low_res_size is None else {"low_res": nhwc(run["lowres"])}
    more = {} if not low else {**low, "low_res_noise": draw(2**24), "noise_level": 250}
    text, null = text_of(run["prompt_embeds"]), text_of(run["negative_prompt_embeds"])
    rows = SampleRows(keys, text.text, text.text_mask, **low)
    got = sample_stage(stage, sampling, one.params, rows, null=null)
    noise = jnp.stack([draw(n) for n in range(steps)])
    wanted = one.sample(text.text, null.text, noise, guidance_weight=sampling.guidance_weight, **more)[-1]
    np.testing.assert_allclose(got, jnp.clip(wanted, -1, 1), atol=1e-3, rtol=0)


@pytest.mark.slow
def test_training_lowers_both_terms_of_the_loss():
    one = load_if_stage(str(GOLDEN / "c_if_stage1"))
    stage, _ = native_stage(one, 8)
    keys = jax.random.split(jax.random.key(0), 3)
    text = text_of(np.asarray(jax.random.normal(keys[0], (4, 77, stage.text_embed_dim))))
    x0 = jnp.tanh(jax.random.normal(keys[1], (4, 8, 8, 3)))
    batch = {"x0": x0, "text": text.text, "text_mask": text.text_mask}
    optimizer = optax.adam(1e-3)

    @jax.jit
    def terms(params):
        # The loss is affine in the bound's weight: two of them tell both terms.
        low, high = (dataclasses.replace(stage, vlb_weight=w).loss(params, batch, keys[2])[0] for w in (1.0, 2.0))
        return 2 * low - high, high - low

    @jax.jit
    def update(params, state):
        gradient = jax.grad(lambda p: stage.loss(p, batch, keys[2])[0])(params)
        changes, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, changes), state

    params, state = one.params, optimizer.init(one.params)
    for _ in range(20):
        params, state = update(params, state)
    (error, bound), (error_before, bound_before) = terms(params), terms(one.params)
    assert error < 0.9 * error_before and bound < 0.9 * bound_before


def test_lora_finds_its_attention_and_its_kernels_are_sharded_by_name(golden):
    _, stage, _, _ = golden
    abstract = jax.eval_shape(stage.init, jax.random.key(0))
    found = lora.layouts(lora.LoraConfig(), abstract)
    assert {name.split(".")[-2] for name in found} >= {"to_q", "add_k_proj", "add_v_proj", "to_out_0"}
    factors = lora.init(lora.LoraConfig(rank=2), abstract, jax.random.key(1))
    lora.check_factors(rules.unbox(factors), abstract, "the factors")
    assert all(rules.is_boxed(leaf) for name, leaf in named(abstract) if name.endswith("kernel"))


def named(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=rules.is_boxed)
    return [(path[-1].key, leaf) for path, leaf in leaves]


def test_a_record_holds_the_stage(golden):
    _, stage, sampling, _ = golden
    assert plain_data.from_data(plain_data.to_data(stage)) == stage
    assert plain_data.from_data(plain_data.to_data(sampling)) == sampling


def test_integer_times_are_those_of_the_table():
    for betas in ("cosine", "linear"):
        schedule = DiscreteSchedule(betas=betas)
        got = schedule.integer_time(schedule.log_snr(jnp.arange(1, 1001) / 1000))
        assert np.array_equal(got, np.arange(1000))


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_times_are_those_of_the_scheduler(spacing):
    grid = SpacedGrid(spacing=spacing)
    times = DiscreteDDPM(timestep_spacing=spacing).timesteps(27)
    assert np.allclose(grid.times(27), [*(times + 1) / 1000, 0])
    assert (grid.times(27, 0.5) <= 0.5).all() and grid.times(27, 0.5)[-1] == 0


def test_gamma_decides_where_a_learned_variance_is_not_used():
    z = jnp.ones((1, 2, 2, 3))
    step = Step(jnp.zeros(1), jnp.ones(1), jnp.full(1, -jnp.inf))
    fixed, learned = (DDPMSampler(use_learned=use).step(
        lambda z, _: Estimate(z, z, jnp.full(z.shape, 0.5)), z, step, z, z)[0] for use in (False, True))  # fmt: skip
    plain = DDPMSampler().step(lambda z, _: Estimate(z, z), z, step, z, z)[0]
    assert np.array_equal(fixed, plain) and (learned > plain).all()


def test_what_no_stage_has_is_refused(golden):
    one, stage, _, _ = golden
    with pytest.raises(UserError, match="low_res_size is"):
        native_stage(one, 16, 8 if stage.low_res_size is None else None)
    other = load_if_stage(str(GOLDEN / "c_if_stage1"))
    other.scheduler = dataclasses.replace(other.scheduler, beta_schedule="scaled_linear")
    with pytest.raises(UserError, match="scaled_linear"):
        native_stage(other, 16)
