"""Sampling of one stage: a single `lax.scan` over the rows of a step table, under jit.

    z_1 ~ N(0, 1), or a given image diffused to where the table begins
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

from imagen_jax.diffusion import process, samplers
from imagen_jax.errors import UserError
from imagen_jax.models.denoiser import Conditioning, uncropped
from imagen_jax.sharding import rules
from imagen_jax.stage.guided import Edit, EditArrays, GuidedDenoiser, StaticSettings, lay_out_steps
from imagen_jax.stage.sampling_config import SamplingConfig
from imagen_jax.stage.spec import Stage
from imagen_jax.stage.steps import StepTable
from imagen_jax.stage.tiles import tiled
from imagen_jax.typing import Array, Bool, Float, PyTree


class SampleRows(NamedTuple):
    """Noise, text and inputs of one call, one row an image.

    Attributes:
      keys: random keys, from `image_keys`.
      text: token embeddings [b, n, d].
      text_mask: True at real tokens, [b, n].
      low_res: super-resolution: images of the stage below, in [-1, 1]; the result is `Stage.scale` times as large.
    """

    keys: Array
    text: Float[Array, "b n d"]
    text_mask: Bool[Array, "b n"]
    low_res: Float[Array, "b h w c"] | None = None


class DrawInputs(NamedTuple):
    """Arrays that one stage draws b images from.

    Attributes:
      aug_level: super-resolution: how far low_res is corrupted, one number.
      keys: one random key an image, from `image_keys`.
      text, text_mask: token embeddings [b, n, d], and which tokens are real [b, n].
      low_res: super-resolution: images of the stage below, in [-1, 1].
      null: text and text_mask that guidance leads away from, one row or b; None is zeros.
      given: images to be changed; None: drawn from noise.
    """

    aug_level: Any
    keys: Any
    text: Any
    text_mask: Any
    low_res: Any = None
    null: Conditioning | None = None
    given: EditArrays | None = None


def image_keys(seed: int | Array, ids: Array) -> Array:
    """One random key an image: a function of the seed, one for all or one each, and the image's own id."""
    return jax.vmap(lambda one, i: jax.random.fold_in(jax.random.key(one), i))(jnp.broadcast_to(seed, ids.shape), ids)


def sample_stage(
    stage: Stage,
    config: SamplingConfig,
    params: PyTree,
    rows: SampleRows,
    *,
    null: Conditioning | None = None,
    mesh: Mesh | None = None,
    size: tuple[int, int] | None = None,
    edit: Edit | None = None,
) -> Float[Array, "b h2 w2 c"]:
    """Draws one image a row.

    Args:
      stage: what to sample.
      config: how; other weights, levels and times, of the same number, do not compile anew.
      params: network parameters (usually the EMA).
      rows: noise, text and inputs of each image.
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
    low_res = rows.low_res
    if (low_res is None) != (stage.low_res_size is None):
        got, expected = ("none", "images") if low_res is None else ("images", "none")
        raise UserError(
            f"low_res of stage {stage.name!r}: got {got}, expected {expected} (low_res_size is {stage.low_res_size})"
        )
    if low_res is not None:
        size = (low_res.shape[1] * stage.scale, low_res.shape[2] * stage.scale)
    table, settings = lay_out_steps(stage, config, size or (stage.draw_size, stage.draw_size), edit)
    given = None if edit is None else EditArrays(edit.image, edit.mask)
    inputs = DrawInputs(np.float32(config.aug_level), rows.keys, rows.text, rows.text_mask, low_res, null, given)
    return draw(stage, settings, mesh, params, table, inputs)


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
    table, settings = lay_out_steps(stage, config, (size, size), None)
    return draw.trace(
        stage,
        dataclasses.replace(settings, guided="always"),
        mesh,
        params,
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), table),
        DrawInputs(
            aug_level=jax.ShapeDtypeStruct((), jnp.float32),
            keys=row((), jax.eval_shape(lambda: jax.random.key(0)).dtype),
            text=row((stage.max_text_length, stage.text_embed_dim)),
            text_mask=row((stage.max_text_length,), jnp.bool_),
            low_res=None if low is None else row((low, low, 3)),
        ),
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def draw(
    stage: Stage,
    settings: StaticSettings,
    mesh: Mesh | None,
    params: PyTree,
    table: StepTable,
    inputs: DrawInputs,
) -> Array:
    """The program of `sample_stage`."""
    keys, given = inputs.keys, inputs.given
    batch, num_calls = inputs.text.shape[0], table.log_snr_t.shape[0]

    # Noise 0 starts; 1, 2, … belong to the steps. The other kinds have numbers that no step reaches.
    def noise(index: int | Array, kind: int = 0) -> Array:
        number = index + kind * 2**24
        return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, number), (*settings.size, 3)))(keys)

    def rows(value: Array) -> Array:
        return jnp.broadcast_to(value, (batch,))

    cond = Conditioning(text=inputs.text, text_mask=inputs.text_mask)
    if inputs.low_res is not None:
        low_res, level = stage.upsample_low_res(inputs.low_res), inputs.aug_level
        augmented = stage.low_res_noise.corrupt(low_res, noise(0, 1), rows(level))
        cond = dataclasses.replace(cond, low_res=augmented, aug_level=rows(level))
    if stage.framing:
        cond = dataclasses.replace(cond, framing=uncropped(batch, *settings.size))
    network = stage.network(params, mesh)
    if settings.tile_size is not None:
        network = tiled(network, settings.tile_size, settings.tile_overlap)
    denoiser = GuidedDenoiser(stage=stage, settings=settings, network=network, cond=cond, null=inputs.null)

    def keep_given(z_s: Array, log_snr_s: Array, index: Array) -> Array:
        if given is None or given.mask is None:
            return z_s
        return jnp.where(given.mask > 0.5, z_s, process.diffuse(given.image, noise(index, 2), log_snr_s))

    def body(carry: tuple[Array, Array], entry: tuple[Array, StepTable]) -> tuple[tuple[Array, Array], None]:
        (z_t, x0_before), (index, now) = carry, entry
        step = samplers.Step(rows(now.log_snr_t), rows(now.log_snr_s), rows(now.log_snr_before))
        predict = functools.partial(denoiser.estimate, now.guidance_weight, x0_before)
        z_s, x0_hat = settings.sampler.step(predict, z_t, step, noise(index), x0_before)
        z_s = keep_given(z_s, step.log_snr_s, index)
        if settings.goes_back:
            z_s = samplers.renoise(z_s, step.log_snr_s, rows(now.log_snr_next), noise(index, 3))
        return (z_s, x0_hat), None

    z_first = noise(0)
    if given is not None:
        z_first = process.diffuse(given.image, z_first, rows(table.log_snr_t[0]))
    steps = jax.tree.map(lambda x: x[:-1], table)
    (z_last, before), _ = jax.lax.scan(body, (z_first, jnp.zeros_like(z_first)), (jnp.arange(1, num_calls), steps))
    final = jax.tree.map(lambda x: x[-1], table)
    x0 = denoiser.estimate(final.guidance_weight, before, z_last, rows(final.log_snr_t)).x0
    if given is not None and given.mask is not None:
        x0 = jnp.where(given.mask > 0.5, x0, given.image)
    return jnp.clip(x0, -1.0, 1.0)
