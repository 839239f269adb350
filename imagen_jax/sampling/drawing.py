"""The programs of a cascade: every stage's steps laid out, all stages in one jit, and what memory that takes."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from imagen_jax.checkpoints.trained_stage import TrainedStage
from imagen_jax.cost import memory
from imagen_jax.errors import UserError
from imagen_jax.models.denoiser import Conditioning, drop_text, uncropped
from imagen_jax.sampling.loading import stage_sizes
from imagen_jax.sampling.request import Request
from imagen_jax.sampling.stage_sampler import DrawInputs, draw, image_keys
from imagen_jax.sharding import rules
from imagen_jax.stage.guided import EditArrays, StaticSettings, lay_out_steps
from imagen_jax.stage.spec import Stage
from imagen_jax.stage.steps import StepTable
from imagen_jax.typing import Array, PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class CascadePrograms:
    """Step tables and static settings, one per stage."""

    stages: tuple[Stage, ...]
    settings: tuple[StaticSettings, ...]
    tables: list[Any]
    sizes: list[tuple[int, int]]


def prepare(loaded: Sequence[TrainedStage], request: Request) -> CascadePrograms:
    """The program of every stage; raises UserError where the request does not fit them."""
    first = loaded[0].stage
    if (first.low_res_size is None) != (request.low_res is None):
        what = "not taken" if first.low_res_size is None else "needed"
        raise UserError(
            f"the first stage ({first.name!r}) has low_res_size {first.low_res_size}: low-resolution images are {what}"
        )
    guided = [one.sampling.guidance_weight != 1.0 for one in loaded]
    if request.negative_prompts is not None and not any(guided):
        raise UserError("negative prompts do nothing at guidance_weight 1; set a larger one, e.g. 3")
    stages = [one.stage for one in loaded]
    size = request.size
    if request.low_res is not None:
        scale = math.prod(stage.scale for stage in stages)
        size = (request.low_res.shape[1] * scale, request.low_res.shape[2] * scale)
    sizes = stage_sizes(stages, size)
    edit = request.edit
    laid_out = []
    for one, own in zip(loaded, sizes, strict=True):
        small = None if edit is None else edit.at(np.zeros(1, int), sizes[-1][0] // own[0])
        laid_out.append(lay_out_steps(one.stage, one.sampling, own, small))
    tables = [table for table, _ in laid_out]
    settings = tuple(static for _, static in laid_out)
    return CascadePrograms(stages=tuple(stages), settings=settings, tables=tables, sizes=sizes)


class RowInputs(NamedTuple):
    """Arrays of a batch that all stages share.

    Attributes:
      seeds, ids: the images' random keys, as in `image_keys`.
      low_res: what the first stage enlarges, in [-1, 1]; None: it is a base stage.
    """

    seeds: Any
    ids: Any
    low_res: Any = None


class StageInputs(NamedTuple):
    """Arrays of a batch for one stage.

    Attributes:
      table: the steps.
      aug_level, given: as in `DrawInputs`.
      cond, null: text, and what guidance leads away from.
    """

    table: StepTable
    aug_level: Any
    cond: Conditioning
    null: Conditioning
    given: EditArrays | None


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def draw_all(
    stages: tuple[Stage, ...],
    settings: tuple[StaticSettings, ...],
    mesh: Mesh | None,
    params: Sequence[PyTree],
    rows: RowInputs,
    inputs: Sequence[StageInputs],
    first: Array | int = 0,
) -> list[Array]:
    """All stages in one program; `first` is the number of the first of them in the cascade."""
    drawn: list[Array] = []
    keys = image_keys(rows.seeds, rows.ids)
    for number, (stage, own, arrays) in enumerate(zip(stages, settings, inputs, strict=True)):
        own_inputs = DrawInputs(
            aug_level=arrays.aug_level,
            keys=jax.vmap(lambda key, number=number: jax.random.fold_in(key, first + number))(keys),
            text=arrays.cond.text,
            text_mask=arrays.cond.text_mask,
            low_res=drawn[-1] if drawn else rows.low_res,
            null=arrays.null,
            given=arrays.given,
        )
        image = draw(stage, own, mesh, params[number], arrays.table, own_inputs)
        drawn.append(image if mesh is None else jax.lax.with_sharding_constraint(image, rules.replicated(mesh)))
    return drawn


def as_trained(stage: Stage, cond: Conditioning, captions: Sequence[str]) -> Conditioning:
    """Text of each caption, and of an empty one what the stage was trained with in its place."""
    if stage.null_text == "empty":
        return cond
    return drop_text(cond, jnp.asarray([bool(caption.strip()) for caption in captions]))


@functools.lru_cache(maxsize=64)
def activation_bytes(stage: Stage, settings: StaticSettings, rows: int) -> int:
    """Widest moment of one network call, in bytes; the network is traced for it, seconds for a large one."""
    height, width = (
        settings.size if settings.tile_size is None else (min(side, settings.tile_size) for side in settings.size)
    )
    rows *= 1 if settings.guided == "never" else 2

    def shape(*dims: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, *dims), dtype)

    def call(params: PyTree, z_t: Array, level: Array, text: Array, text_mask: Array) -> Array:
        cond = Conditioning(
            text=text,
            text_mask=text_mask,
            low_res=None if stage.low_res_size is None else z_t,
            aug_level=None if stage.low_res_size is None else level,
            self_cond=z_t if stage.self_cond_rate > 0 else None,
            framing=uncropped(rows, height, width) if stage.framing else None,
        )
        return stage.model.apply({"params": params}, z_t, level, cond)

    tokens = stage.max_text_length
    text = (shape(tokens, stage.text_embed_dim), shape(tokens, dtype=jnp.bool_))
    params = rules.unbox(jax.eval_shape(stage.init, jax.random.key(0)))
    return memory.peak_bytes(call, params, shape(height, width, 3), shape(), *text)


def estimate_bytes(
    loaded: Sequence[TrainedStage], programs: CascadePrograms, batch_size: int, mesh: Mesh | None
) -> int:
    """Memory of one device with all stages' parameters and the widest moment of any stage's network."""
    total, widest = 0, 0
    ways = 1 if mesh is None else mesh.size
    for one, own in zip(loaded, programs.settings, strict=True):
        shardings = None if mesh is None else one.weights.shardings(one.stage, mesh)
        total += memory.tree_bytes(one.weights.host, shardings)
        widest = max(widest, activation_bytes(one.stage, own, batch_size) // ways)
    return total + widest
