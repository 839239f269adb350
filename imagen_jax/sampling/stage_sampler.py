"""Sampling of one stage: a single `lax.scan` over times under jit.

    z_1 ~ N(0, 1) → for t > s in the time grid: cond and null in one batched network call → guide → x0_hat
    → threshold → step to z_s → … → x0

Every image has a random key of its own, so an image does not depend on the batch that it was drawn in.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from imagen_jax.diffusion import guidance, noise_conditioning, thresholding
from imagen_jax.diffusion.samplers import DDIMSampler, Sampler
from imagen_jax.errors import UserError
from imagen_jax.models.denoiser import Conditioning, drop_text
from imagen_jax.sharding import rules
from imagen_jax.stage import Stage
from imagen_jax.typing import Array, Bool, Float, PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How a stage is sampled.

    Args:
      num_steps: network evaluations (guided ones count once); the paper does not state a number.
      sampler: DDPMSampler or DDIMSampler.
      guidance_weight: w of classifier-free guidance; 1 is off, 0 unconditional.
      thresholding: "dynamic", "static" or "none".
      percentile: of dynamic thresholding, on the 0-100 scale (paper: 99.5).
      aug_level: super-resolution: how far the low-res image is corrupted at inference, in [0, 1].
    """

    num_steps: int = 64
    sampler: Sampler = DDIMSampler()
    guidance_weight: float = 1.0
    thresholding: str = "dynamic"
    percentile: float = 99.5
    aug_level: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.num_steps, int) or self.num_steps < 1:
            raise UserError(f"num_steps ({self.num_steps!r}) must be a whole number of at least 1; 32 to 256 is usual")
        if not isinstance(self.sampler, Sampler):
            raise UserError(f"sampler ({self.sampler!r}) must be @DDPMSampler() or @DDIMSampler()")
        guidance.check_guidance_weight(self.guidance_weight)
        thresholding.check_thresholding(self.thresholding, self.percentile)
        noise_conditioning.check_aug_level(self.aug_level)


def image_keys(seed: int, ids: Array) -> Array:
    """One random key an image: a function of the seed and the image's own id."""
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(ids)


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
) -> Float[Array, "b h2 w2 c"]:
    """Draws one image a row of text.

    Args:
      stage: what to sample.
      config: how; a change of guidance_weight or aug_level alone does not compile anew.
      params: network parameters (usually the EMA).
      keys: one random key an image, from `image_keys`.
      text: token embeddings.
      text_mask: True at real tokens.
      low_res: super-resolution: images at the size of the stage below, in [-1, 1].
      null: text and text_mask that guidance leads away from, one row or b: the null text of training, or negative
        prompts; None is zeros.
      mesh: where the parameters lie, as in `Stage.network`; its devices draw some of the images each.

    Returns:
      Images at stage.image_size, in [-1, 1].
    """
    if (low_res is None) != (stage.low_res_size is None):
        got, expected = ("none", "images") if low_res is None else ("images", "none")
        raise UserError(
            f"low_res of stage {stage.name!r}: got {got}, expected {expected} (low_res_size is {stage.low_res_size})"
        )
    frozen = dataclasses.replace(config, guidance_weight=1.0, aug_level=0.0)
    return _sample(
        stage,
        frozen,
        config.guidance_weight != 1.0,
        mesh,
        params,
        jnp.float32(config.guidance_weight),
        jnp.float32(config.aug_level),
        keys,
        text,
        text_mask,
        low_res,
        null,
    )


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

    low = stage.low_res_size
    length, scalar = stage.max_text_length, jax.ShapeDtypeStruct((), jnp.float32)
    return _sample.trace(
        stage,
        dataclasses.replace(config, guidance_weight=1.0, aug_level=0.0),
        True,
        mesh,
        params,
        scalar,
        scalar,
        row((), jax.eval_shape(lambda: jax.random.key(0)).dtype),
        row((length, stage.text_embed_dim)),
        row((length,), jnp.bool_),
        None if low is None else row((low, low, 3)),
        None,
    )


def _paired(cond: Array, null: Array) -> Array:
    """Rows cond 0, null 0, cond 1, null 1, …, so that a device that has some rows of the batch has both of each."""
    return jnp.stack([cond, null], axis=1).reshape(2 * cond.shape[0], *cond.shape[1:])


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _sample(
    stage: Stage,
    config: SamplingConfig,
    guided: bool,
    mesh: Mesh | None,
    params: PyTree,
    guidance_weight: Array,
    aug_level: Array,
    keys: Array,
    text: Array,
    text_mask: Array,
    low_res: Array | None,
    null: Conditioning | None,
) -> Array:
    batch, size = text.shape[0], stage.image_size

    def noise(index: int | Array) -> Array:
        return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index), (size, size, 3)))(keys)

    cond = Conditioning(text=text, text_mask=text_mask)
    if low_res is not None:
        aug = jnp.full((batch,), aug_level)
        augmented = noise_conditioning.corrupt(stage.upsample_low_res(low_res), noise(config.num_steps + 1), aug)
        cond = dataclasses.replace(cond, low_res=augmented, aug_level=aug)
    none_kept = drop_text(cond, jnp.zeros((batch,), bool), null)
    both = jax.tree.map(_paired, cond, none_kept)

    def predict_x0(z_t: Array, log_snr: Array) -> Array:
        if not guided:
            return stage.denoise(params, z_t, log_snr, cond, mesh)[0]
        x0_hat, _ = stage.denoise(params, _paired(z_t, z_t), _paired(log_snr, log_snr), both, mesh)
        return guidance.guide(x0_hat[::2], x0_hat[1::2], guidance_weight)

    sampler: Sampler = config.sampler
    times = jnp.linspace(1.0, 0.0, config.num_steps + 1)
    log_snrs = stage.schedule.log_snr(times)

    def body(z_t: Array, step: tuple[Array, Array, Array]) -> tuple[Array, None]:
        log_snr_t, log_snr_s = (jnp.broadcast_to(a, (batch,)) for a in step[1:])
        x0_hat = thresholding.threshold(predict_x0(z_t, log_snr_t), config.thresholding, config.percentile)
        return sampler.step(z_t, x0_hat, log_snr_t, log_snr_s, noise(step[0])), None

    steps = (jnp.arange(1, config.num_steps), log_snrs[:-2], log_snrs[1:-1])
    z_last, _ = jax.lax.scan(body, noise(0), steps)
    last = jnp.broadcast_to(log_snrs[-2], (batch,))
    x0 = thresholding.threshold(predict_x0(z_last, last), config.thresholding, config.percentile)
    return jnp.clip(x0, -1.0, 1.0)
