"""Sampling of one stage: a single `lax.scan` over the steps of a plan, under jit.

    z_1 ~ N(0, 1), or a given image diffused to where the plan begins
    → each step: cond and null in one batched network call → guide → threshold → x0_hat, eps_hat → the sampler's z_s
      → a given image in the place of what was drawn outside of its mask → perhaps back to more noise
    → … → x0_hat of the last call

Every image has a random key of its own, so an image does not depend on the batch that it was drawn in.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from imagen_jax.diffusion import guidance, noise_conditioning, process, samplers, thresholding
from imagen_jax.diffusion.guidance import ConstantGuidance, GuidanceSchedule
from imagen_jax.diffusion.samplers import DDIMSampler, Estimate, Sampler
from imagen_jax.diffusion.schedules import Schedule
from imagen_jax.diffusion.time_grids import TimeGrid, UniformGrid
from imagen_jax.errors import UserError
from imagen_jax.models.denoiser import Conditioning, Denoiser, drop_text
from imagen_jax.sampling.plan import Plan, make_plan
from imagen_jax.sampling.tiles import check_tiles, tiled
from imagen_jax.sharding import rules
from imagen_jax.stage import Stage
from imagen_jax.typing import Array, Bool, Float, PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How a stage is sampled.

    Args:
      num_steps: steps from noise to image; the paper does not state a number. A step calls the network once (guided
        calls count once), with HeunSampler twice.
      sampler: DDPMSampler, DDIMSampler, DPMSolverSampler or HeunSampler.
      grid: which times the steps are between.
      schedule: log-SNR of those times; None is the stage's own.
      guidance_weight: w of classifier-free guidance; 1 is off, 0 unconditional.
      guidance_schedule: how w changes over the steps.
      thresholding: "dynamic", "static" or "none".
      percentile: of dynamic thresholding, on the 0-100 scale (paper: 99.5).
      threshold_cap: the most that dynamic thresholding clips to; the paper has none.
      aug_level: super-resolution: how far the low-res image is corrupted at inference, in [0, 1].
      tile_size: images are drawn in overlapping tiles of this side, in pixels; None: whole.
      tile_overlap: pixels that neighbouring tiles share at least.
    """

    num_steps: int = 64
    sampler: Sampler = DDIMSampler()
    grid: TimeGrid = UniformGrid()
    schedule: Schedule | None = None
    guidance_weight: float = 1.0
    guidance_schedule: GuidanceSchedule = ConstantGuidance()
    thresholding: str = "dynamic"
    percentile: float = 99.5
    threshold_cap: float = float("inf")
    aug_level: float = 0.0
    tile_size: int | None = None
    tile_overlap: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.num_steps, int) or self.num_steps < 1:
            raise UserError(f"num_steps ({self.num_steps!r}) must be a whole number of at least 1; 32 to 256 is usual")
        kinds: dict[str, tuple[Any, str]] = {
            "sampler": (Sampler, "@DDIMSampler()"),
            "grid": (TimeGrid, "@UniformGrid()"),
            "guidance_schedule": (GuidanceSchedule, "@ConstantGuidance()"),
        }
        for name, (kind, example) in kinds.items():
            if not isinstance(getattr(self, name), kind):
                raise UserError(f"{name} ({getattr(self, name)!r}) must be a {kind.__name__}, e.g. {example}")
        if self.schedule is not None and not isinstance(self.schedule, Schedule):
            raise UserError(f"schedule ({self.schedule!r}) must be a schedule, e.g. @EDMSchedule(), or None")
        guidance.check_guidance_weight(self.guidance_weight)
        thresholding.check_thresholding(self.thresholding, self.percentile, self.threshold_cap)
        noise_conditioning.check_aug_level(self.aug_level)
        check_tiles(self.tile_size, self.tile_overlap)
        self.grid.times(self.num_steps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Edit:
    """A given image, at the size of the stage's own, to be changed.

    Args:
      image: [b, h, w, 3] in [-1, 1].
      mask: [b, h, w, 1], 1 where to draw, 0 where the image stays; None: everywhere.
      strength: time in (0, 1] that the image is diffused to before it is drawn anew; 1 keeps what the mask keeps alone.
      num_resamples: how often each stretch of steps is gone through, so that what is drawn fits what is given
        (RePaint, arXiv 2201.09865); 1 is once.
      jump_length: steps of a stretch.
    """

    image: Array
    mask: Array | None = None
    strength: float = 1.0
    num_resamples: int = 1
    jump_length: int = 1

    def __post_init__(self) -> None:
        check_edit(self.strength, self.num_resamples, self.jump_length)


def check_edit(strength: float, num_resamples: int = 1, jump_length: int = 1) -> None:
    """Raises UserError for values out of range."""
    if not 0.0 < strength <= 1.0:
        raise UserError(f"strength ({strength}) must be in (0, 1]: near 0 keeps the image, 1 keeps nothing of it")
    for name, value in (("num_resamples", num_resamples), ("jump_length", jump_length)):
        if not isinstance(value, int) or value < 1:
            raise UserError(f"{name} ({value!r}) must be a whole number of at least 1; RePaint has 10 of each")


def image_keys(seed: int | Array, ids: Array) -> Array:
    """One random key an image: a function of the seed, one for all or one each, and the image's own id."""
    return jax.vmap(lambda one, i: jax.random.fold_in(jax.random.key(one), i))(jnp.broadcast_to(seed, ids.shape), ids)


def sample_stage(
    stage: Stage,
    config: SamplingConfig,
    params: PyTree,
    keys: Array,
    text: Float[Array, "b n d"],
    text_mask: Bool[Array, "b n"],
    low_res: Float[Array, "b h w c"] | None = None,
    null: Conditioning | None = None,
    mesh: Mesh | None = None,
    size: tuple[int, int] | None = None,
    edit: Edit | None = None,
) -> Float[Array, "b h2 w2 c"]:
    """Draws one image a row of text.

    Args:
      stage: what to sample.
      config: how; other weights, levels and times, of the same number, do not compile anew.
      params: network parameters (usually the EMA).
      keys: one random key an image, from `image_keys`.
      text: token embeddings.
      text_mask: True at real tokens.
      low_res: super-resolution: images of the stage below, in [-1, 1]; the result is `stage.scale` times as large.
      null: text and text_mask that guidance leads away from, one row or b: the null text of training, or negative
        prompts; None is zeros.
      mesh: where the parameters lie, as in `Stage.network`; its devices draw some of the images each.
      size: height and width of what a base stage draws; None is its own.
      edit: images to be changed, instead of noise.

    Returns:
      Images in [-1, 1].

    Raises:
      UserError: low_res is missing or too much, or the network or the schedule cannot do the size or the steps.
    """
    if (low_res is None) != (stage.low_res_size is None):
        got, expected = ("none", "images") if low_res is None else ("images", "none")
        raise UserError(
            f"low_res of stage {stage.name!r}: got {got}, expected {expected} (low_res_size is {stage.low_res_size})"
        )
    if low_res is not None:
        size = (low_res.shape[1] * stage.scale, low_res.shape[2] * stage.scale)
    plan, how = how_to_draw(stage, config, size or (stage.draw_size, stage.draw_size), edit)
    given = None if edit is None else Given(edit.image, edit.mask)
    aug_level = np.float32(config.aug_level)
    return draw(stage, how, mesh, params, plan, aug_level, keys, text, text_mask, low_res, null, given)


def trace_sampler(
    stage: Stage, config: SamplingConfig, params: PyTree, rows: int, mesh: Mesh | None = None
) -> jax.stages.Traced:
    """The guided program of `sample_stage`, to be counted, or lowered and compiled for devices that are not here.

    Args:
      stage: what would be sampled.
      config: how.
      params: abstract parameters with shardings.
      rows: images of one call, split over the mesh.
      mesh: where the parameters lie; None is one device, whose work is that of all.
    """
    sharding = None if mesh is None else rules.batch_sharding(mesh)

    def row(shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=sharding)

    # Drawn as it is trained: a stage for crops draws whole images where its memory is, which a plan does not know.
    low, size = stage.low_res_size, stage.image_size
    plan, how = how_to_draw(stage, config, (size, size), None)
    return draw.trace(
        stage,
        dataclasses.replace(how, guided="always"),
        mesh,
        params,
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), plan),
        jax.ShapeDtypeStruct((), jnp.float32),
        row((), jax.eval_shape(lambda: jax.random.key(0)).dtype),
        row((stage.max_text_length, stage.text_embed_dim)),
        row((stage.max_text_length,), jnp.bool_),
        None if low is None else row((low, low, 3)),
        None,
        None,
    )


class Given(NamedTuple):
    """The arrays of an `Edit`."""

    image: Array
    mask: Array | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class How:
    """What the compiled program depends on, besides shapes."""

    sampler: Sampler
    thresholding: str
    percentile: float
    threshold_cap: float
    tile_size: int | None
    tile_overlap: int
    size: tuple[int, int]
    guided: str
    goes_back: bool


def how_to_draw(stage: Stage, config: SamplingConfig, size: tuple[int, int], edit: Edit | None) -> tuple[Plan, How]:
    """What `draw` needs besides arrays of images and text: the steps, and what its program depends on.

    Args:
      stage, config: what is sampled, and how.
      size: height and width of the images.
      edit: images to be changed, for when the steps begin and how often they are repeated; None: drawn from noise.

    Raises:
      UserError: the schedule has fewer steps, or none after the begin.
    """
    repeats = {} if edit is None else {"num_resamples": edit.num_resamples, "jump_length": edit.jump_length}
    plan = make_plan(
        config.schedule or stage.schedule,
        config.grid,
        config.num_steps,
        config.guidance_weight,
        config.guidance_schedule,
        t_start=1.0 if edit is None else edit.strength,
        **repeats,
    )
    off = np.asarray(plan.guidance_weight) == 1.0
    shared = ("sampler", "thresholding", "percentile", "threshold_cap", "tile_size", "tile_overlap")
    return plan, How(
        **{name: getattr(config, name) for name in shared},
        size=size,
        guided="never" if off.all() else "sometimes" if off.any() else "always",
        goes_back=bool((plan.log_snr_next != plan.log_snr_s).any()),
    )


def _paired(cond: Array, null: Array) -> Array:
    """Rows cond 0, null 0, cond 1, null 1, …, so that a device that has some rows of the batch has both of each."""
    return jnp.stack([cond, null], axis=1).reshape(2 * cond.shape[0], *cond.shape[1:])


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def draw(
    stage: Stage,
    how: How,
    mesh: Mesh | None,
    params: PyTree,
    plan: Plan,
    aug_level: Array,
    keys: Array,
    text: Array,
    text_mask: Array,
    low_res: Array | None,
    null: Conditioning | None,
    given: Given | None,
) -> Array:
    """The program of `sample_stage`."""
    batch, num_calls = text.shape[0], plan.log_snr_t.shape[0]

    # Noise 0 starts; 1, 2, … belong to the steps. The other kinds have numbers that no step reaches.
    def noise(index: int | Array, kind: int = 0) -> Array:
        number = index + kind * 2**24
        return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, number), (*how.size, 3)))(keys)

    def rows(value: Array) -> Array:
        return jnp.broadcast_to(value, (batch,))

    cond = Conditioning(text=text, text_mask=text_mask)
    if low_res is not None:
        augmented = noise_conditioning.corrupt(stage.upsample_low_res(low_res), noise(0, 1), rows(aug_level))
        cond = dataclasses.replace(cond, low_res=augmented, aug_level=rows(aug_level))
    network = stage.network(params, mesh)
    if how.tile_size is not None:
        network = tiled(network, how.tile_size, how.tile_overlap)

    def keep_given(z_s: Array, log_snr_s: Array, index: Array) -> Array:
        if given is None or given.mask is None:
            return z_s
        return jnp.where(given.mask > 0.5, z_s, process.diffuse(given.image, noise(index, 2), log_snr_s))

    def body(carry: tuple[Array, Array], entry: tuple[Array, Plan]) -> tuple[tuple[Array, Array], None]:
        (z_t, x0_before), (index, now) = carry, entry
        step = samplers.Step(rows(now.log_snr_t), rows(now.log_snr_s), rows(now.log_snr_before))
        predict = functools.partial(estimate, stage, how, network, cond, null, now.guidance_weight, x0_before)
        z_s, x0_hat = how.sampler.step(predict, z_t, step, noise(index), x0_before)
        z_s = keep_given(z_s, step.log_snr_s, index)
        if how.goes_back:
            z_s = samplers.renoise(z_s, step.log_snr_s, rows(now.log_snr_next), noise(index, 3))
        return (z_s, x0_hat), None

    z_first = noise(0)
    if given is not None:
        z_first = process.diffuse(given.image, z_first, rows(plan.log_snr_t[0]))
    steps = jax.tree.map(lambda x: x[:-1], plan)
    (z_last, before), _ = jax.lax.scan(body, (z_first, jnp.zeros_like(z_first)), (jnp.arange(1, num_calls), steps))
    final = jax.tree.map(lambda x: x[-1], plan)
    x0 = estimate(stage, how, network, cond, null, final.guidance_weight, before, z_last, rows(final.log_snr_t)).x0
    if given is not None and given.mask is not None:
        x0 = jnp.where(given.mask > 0.5, x0, given.image)
    return jnp.clip(x0, -1.0, 1.0)


def estimate(
    stage: Stage,
    how: How,
    network: Denoiser,
    cond: Conditioning,
    null: Conditioning | None,
    guidance_weight: Array,
    x0_before: Array,
    z_t: Array,
    log_snr: Array,
) -> Estimate:
    """One guided, thresholded estimate.

    Args:
      stage, network: what is sampled.
      how: says whether to guide, and the thresholding.
      cond, null: as in `sample_stage`.
      guidance_weight: one number, or [b, 1, 1, 1] where `how.guided` is "always".
      x0_before: of a self-conditioned stage: x0_hat of the step before.
      z_t, log_snr: where.
    """
    if stage.self_cond_rate > 0:
        cond = dataclasses.replace(cond, self_cond=x0_before)

    def alone() -> Estimate:
        return stage.estimate(network(z_t, log_snr, cond), z_t, log_snr)

    def guided() -> Estimate:
        none_kept = drop_text(cond, jnp.zeros((z_t.shape[0],), bool), null)
        z_both, log_snr_both = _paired(z_t, z_t), _paired(log_snr, log_snr)
        found = stage.estimate(
            network(z_both, log_snr_both, jax.tree.map(_paired, cond, none_kept)), z_both, log_snr_both
        )
        x0 = guidance.guide(found.x0[::2], found.x0[1::2], guidance_weight)
        # The variance is that of the conditional half, as in DeepFloyd IF.
        fraction = None if found.fraction is None else found.fraction[::2]
        return Estimate(x0, found.eps[::2], fraction)

    if how.guided == "sometimes":
        found = jax.lax.cond(guidance_weight == 1.0, alone, guided)
    else:
        found = guided() if how.guided == "always" else alone()
    x0 = thresholding.threshold(found.x0, how.thresholding, how.percentile, how.threshold_cap)
    return samplers.estimate_from_x0(x0, z_t, log_snr)._replace(fraction=found.fraction)
