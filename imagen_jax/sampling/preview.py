"""Preview pictures drawn while a stage trains."""

import dataclasses
import functools

import jax
import numpy as np
from jax.sharding import Mesh

from imagen_jax.models.denoiser import Conditioning
from imagen_jax.sampling.images import enlarge, sheet, to_uint8
from imagen_jax.sampling.stage_sampler import SampleRows, image_keys, sample_stage
from imagen_jax.sharding.rules import replicated
from imagen_jax.stage.sampling_config import SamplingConfig
from imagen_jax.stage.spec import Stage
from imagen_jax.typing import Bool, Float, PyTree, UInt8

MIN_SIDE = 64  # Smaller images are shown with their pixels repeated.


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreviewRows:
    """Inputs of a preview, one row a picture.

    Args:
      text, text_mask: embeddings of the captions.
      low_res: super-resolution: inputs in [-1, 1].
      captions: the captions, where they are known; written into the picture's file.
    """

    text: Float[np.ndarray, "b n d"]
    text_mask: Bool[np.ndarray, "b n"]
    low_res: Float[np.ndarray, "b h w 3"] | None = None
    captions: tuple[str, ...] = ()


def draw_preview(
    stage: Stage,
    params: PyTree,
    rows: PreviewRows,
    *,
    mesh: Mesh,
    sampling: SamplingConfig,
    seed: int,
    null: Conditioning | None = None,
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Draws one image a caption; for super-resolution the low-resolution inputs stand in the rows above.

    Args:
      stage: what is trained.
      params: its averaged parameters.
      rows: what to draw.
      mesh: where the parameters lie; every process of it draws the same picture.
      sampling: how to sample.
      seed: the same seed gives the same noise at every call.
      null: the stage's null text, one row; None is zeros.
    """
    everywhere = replicated(mesh)
    place = functools.partial(jax.device_put, device=everywhere)
    keys = jax.jit(functools.partial(image_keys, seed), out_shardings=everywhere)(place(np.arange(rows.text.shape[0])))
    low_res = rows.low_res
    given = SampleRows(keys, place(rows.text), place(rows.text_mask), None if low_res is None else place(low_res))
    drawn = sample_stage(stage, sampling, params, given, null=place(null), mesh=mesh)
    images = list(to_uint8(np.asarray(jax.jit(lambda x: x, out_shardings=everywhere)(drawn))))
    columns = min(8, len(images))
    if low_res is not None:
        above = [enlarge(image, stage.scale) for image in to_uint8(low_res)]
        pairs = [(above[i : i + columns], images[i : i + columns]) for i in range(0, len(images), columns)]
        images = [image for pair in pairs for row in pair for image in row]
    return enlarge(sheet(images, columns), max(1, MIN_SIDE // stage.image_size))
