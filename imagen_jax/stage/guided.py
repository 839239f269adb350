"""One guided, thresholded estimate of a stage, and what the steps of a sampler ask of it."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.checks import check_count
from imagen_jax.diffusion import guidance, samplers, thresholding
from imagen_jax.diffusion.samplers import Estimate, Sampler
from imagen_jax.errors import UserError
from imagen_jax.models.denoiser import Conditioning, Denoiser, drop_text
from imagen_jax.stage.sampling_config import SamplingConfig
from imagen_jax.stage.spec import Stage
from imagen_jax.stage.steps import StepTable, make_step_table
from imagen_jax.typing import Array, Float


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
    check_count("num_resamples", num_resamples, hint="RePaint has 10", most=1000)
    check_count("jump_length", jump_length, hint="RePaint has 10")


class EditArrays(NamedTuple):
    """The arrays of an `Edit`."""

    image: Array
    mask: Array | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class StaticSettings:
    """Settings that the compiled program depends on, besides shapes."""

    sampler: Sampler
    thresholding: str
    percentile: float
    threshold_cap: float
    tile_size: int | None
    tile_overlap: int
    size: tuple[int, int]
    guided: str
    goes_back: bool


def lay_out_steps(
    stage: Stage, config: SamplingConfig, size: tuple[int, int], edit: Edit | None
) -> tuple[StepTable, StaticSettings]:
    """Lays out the steps of `draw`, and the settings that its program depends on.

    Args:
      stage, config: what is sampled, and how.
      size: height and width of the images.
      edit: images to be changed, for when the steps begin and how often they are repeated; None: drawn from noise.

    Raises:
      UserError: the schedule has fewer steps, or none after the begin; or the network cannot take the sizes.
    """
    check_sizes(stage, config, size)
    repeats = {} if edit is None else {"num_resamples": edit.num_resamples, "jump_length": edit.jump_length}
    table = make_step_table(
        config.schedule or stage.schedule,
        config.times,
        config.num_steps,
        config.guidance_weight,
        config.guidance_schedule,
        t_start=1.0 if edit is None else edit.strength,
        **repeats,
    )
    off = np.asarray(table.guidance_weight) == 1.0
    shared = ("sampler", "thresholding", "percentile", "threshold_cap", "tile_size", "tile_overlap")
    return table, StaticSettings(
        **{name: getattr(config, name) for name in shared},
        size=size,
        guided="never" if off.all() else "sometimes" if off.any() else "always",
        goes_back=bool((table.log_snr_next != table.log_snr_s).any()),
    )


def check_sizes(stage: Stage, config: SamplingConfig, size: tuple[int, int]) -> None:
    """Raises UserError for images or tiles that the network's down-samplings do not divide."""
    factor, tile = stage.model.size_factor, config.tile_size
    sides = {"height": size[0], "width": size[1]}
    if tile is not None:
        sides |= {"tile_size": min(tile, max(size))}
    for name, length in sides.items():
        if length < 1 or length % factor:
            near = max(length // factor, 1) * factor
            raise UserError(
                f"{name} ({length}) must be a multiple of {factor}, the product of the down-samplings of stage "
                f"{stage.name!r}; choose {near} or {near + factor}"
            )


def _paired(cond: Array, null: Array) -> Array:
    """Rows cond 0, null 0, cond 1, null 1, …, so that a device that has some rows of the batch has both of each."""
    return jnp.stack([cond, null], axis=1).reshape(2 * cond.shape[0], *cond.shape[1:])


@dataclasses.dataclass(frozen=True, kw_only=True)
class GuidedDenoiser:
    """A stage's network with its text and guidance: what a sampler's steps call.

    Args:
      stage: whose network it is.
      settings: whether to guide, and the thresholding.
      network: `Stage.network`, perhaps in tiles.
      cond: what the images are drawn of, b rows.
      null: text and text_mask that guidance leads away from, one row or b; None is zeros.
    """

    stage: Stage
    settings: StaticSettings
    network: Denoiser
    cond: Conditioning
    null: Conditioning | None = None

    def estimate(
        self,
        guidance_weight: Array,
        x0_before: Float[Array, "b h w c"],
        z_t: Float[Array, "b h w c"],
        log_snr: Float[Array, " b"],
    ) -> Estimate:
        """One guided, thresholded estimate.

        Args:
          guidance_weight: one number, or [b, 1, 1, 1] where `settings.guided` is "always".
          x0_before: of a self-conditioned stage: x0_hat of the step before.
          z_t, log_snr: where.
        """
        cond, settings = self.cond, self.settings
        if self.stage.self_cond_rate > 0:
            # As in training, which clips it whatever the thresholding is.
            cond = dataclasses.replace(cond, self_cond=jnp.clip(x0_before, -1.0, 1.0))

        def alone() -> Estimate:
            return self.stage.estimate(self.network(z_t, log_snr, cond), z_t, log_snr)

        def guided() -> Estimate:
            none_kept = drop_text(cond, jnp.zeros((z_t.shape[0],), bool), self.null)
            z_both, log_snr_both = _paired(z_t, z_t), _paired(log_snr, log_snr)  # [b, …] -> [2 b, …]
            output = self.network(z_both, log_snr_both, jax.tree.map(_paired, cond, none_kept))
            found = self.stage.estimate(output, z_both, log_snr_both)
            x0 = guidance.guide(found.x0[::2], found.x0[1::2], guidance_weight)  # [2 b, …] -> [b, …]
            # The variance is that of the conditional half, as in DeepFloyd IF.
            fraction = None if found.fraction is None else found.fraction[::2]
            return Estimate(x0, found.eps[::2], fraction)

        if settings.guided == "sometimes":
            found = jax.lax.cond(guidance_weight == 1.0, alone, guided)
        else:
            found = guided() if settings.guided == "always" else alone()
        x0 = thresholding.threshold(found.x0, settings.thresholding, settings.percentile, settings.threshold_cap)
        return samplers.estimate_from_x0(x0, z_t, log_snr)._replace(fraction=found.fraction)
