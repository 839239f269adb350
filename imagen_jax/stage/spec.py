"""One stage of the cascade: a network joined with its diffusion. Training and sampling both speak of this.

A stage is data. The base stage and the super-resolution stages differ in `low_res_size` and in their network,
never in code.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from imagen_jax.checks import check_count
from imagen_jax.diffusion import losses, process
from imagen_jax.diffusion.losses import SimpleWeighting, Weighting
from imagen_jax.diffusion.noise_conditioning import ENLARGEMENTS, CosineNoise, LowResNoise, enlarge
from imagen_jax.diffusion.samplers import Estimate
from imagen_jax.diffusion.schedules import CosineSchedule, Schedule
from imagen_jax.diffusion.time_sampling import StratifiedTimes, TimeSampler
from imagen_jax.errors import UserError
from imagen_jax.models.backbone import Backbone, check_backbone
from imagen_jax.models.denoiser import Conditioning, Denoiser, drop_text
from imagen_jax.models.layers import MAX_WIDTH, kernels_gathered_over
from imagen_jax.sharding import rules
from imagen_jax.sharding.on_mesh import on_mesh
from imagen_jax.typing import Array, Float, PRNGKeyArray, PyTree

NULL_TEXTS = ("zeros", "empty")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """A denoising network and the diffusion it was made for.

    Args:
      name: "base", "sr256", …: names the run directory inside a cascade directory.
      model: the Linen network (UNet, EfficientUNet or PixelTransformer of models/).
      image_size: height and width of the images it is trained on, in pixels.
      text_embed_dim: width of the text encoder's token embeddings.
      max_text_length: tokens of a padded caption.
      low_res_size: for super-resolution, size of the conditioning image; None for the base stage.
      full_size: for a stage that is trained on crops: size of the whole images that it draws in a cascade (paper
        appendix F.3: 256-pixel crops, 1024-pixel images); None is image_size.
      schedule: log-SNR over time.
      time_sampler: which times are trained: evenly in [0, 1] (the paper), or `time_sampling.LogitNormalTimes`.
      prediction: what the network predicts: "eps" (the paper), "x0", "v" or "flow".
      weighting: of the loss by noise; simple is the paper's.
      vlb_weight: of the variational bound, in the loss of a network with `learned_variance`.
      null_text: what stands for no text: "zeros", the paper's zero embeddings without a token, or "empty", the text
        encoder's output of "" (DeepFloyd IF).
      cond_drop_rate: probability that an example is trained with null text (paper: 0.1).
      max_aug_level: super-resolution is trained with aug_level uniform in [0, max_aug_level] (paper: 1).
      low_res_noise: super-resolution: how aug_level corrupts, `CosineNoise` (the paper) or `DiscreteNoise` (DeepFloyd
        IF).
      enlargement: super-resolution: bilinear with the edges aligned, "half_pixel", or the corner pixels, "corners"
        (DeepFloyd IF).
      framing: the network is told how a picture is framed: size of the original, what was cut off, its own size
        (SDXL, arXiv 2307.01952, section 2.2); batches then have it (`data.sized_pictures`).
      self_cond_rate: probability that a batch is trained with an estimate of x0 as a further input (self-conditioning,
        arXiv 2208.04202, section 2.2, where it is 0.5); 0: there is no such input.

    Raises:
      UserError: for sizes that cannot work together, or a network that is no `Backbone` or does not read what it gets.
    """

    name: str
    model: Backbone
    image_size: int
    text_embed_dim: int
    max_text_length: int
    low_res_size: int | None = None
    full_size: int | None = None
    schedule: Schedule = CosineSchedule()
    prediction: str = "eps"
    weighting: Weighting = SimpleWeighting()
    vlb_weight: float = 1.0
    null_text: str = "zeros"
    cond_drop_rate: float = 0.1
    max_aug_level: float = 1.0
    low_res_noise: LowResNoise = CosineNoise()
    enlargement: str = "half_pixel"
    framing: bool = False
    self_cond_rate: float = 0.0
    time_sampler: TimeSampler = StratifiedTimes()

    def __post_init__(self) -> None:
        for field in ("image_size", "text_embed_dim", "max_text_length"):
            check_count(f"Stage.{field}", getattr(self, field), most=MAX_WIDTH)
        process.check_prediction(self.prediction)
        if not isinstance(self.schedule, Schedule):
            raise UserError(f"Stage.schedule ({self.schedule!r}) must be a schedule, e.g. @CosineSchedule()")
        if isinstance(self.time_sampler, type) or not isinstance(self.time_sampler, TimeSampler):
            raise UserError(
                f"Stage.time_sampler ({self.time_sampler!r}) must be a time sampler, e.g. "
                "@time_sampling.StratifiedTimes()"
            )
        if not isinstance(self.weighting, Weighting):
            raise UserError(f"Stage.weighting ({self.weighting!r}) must be a weighting, e.g. @losses.MinSNRWeighting()")
        if not self.vlb_weight > 0:
            raise UserError(f"Stage.vlb_weight ({self.vlb_weight}) must be positive; 1 is usual")
        if not 0.0 <= self.self_cond_rate <= 1.0:
            raise UserError(f"Stage.self_cond_rate ({self.self_cond_rate}) must be in [0, 1]; 0.5 is usual, 0 is off")
        if self.null_text not in NULL_TEXTS:
            raise UserError(f"Stage.null_text ({self.null_text!r}) must be one of {NULL_TEXTS}; the paper uses 'zeros'")
        if not 0.0 <= self.cond_drop_rate < 1.0:
            raise UserError(f"Stage.cond_drop_rate ({self.cond_drop_rate}) must be in [0, 1); the paper uses 0.1")
        if not 0.0 < self.max_aug_level <= 1.0:
            raise UserError(f"Stage.max_aug_level ({self.max_aug_level}) must be in (0, 1]; the paper uses 1")
        if not isinstance(self.low_res_noise, LowResNoise):
            raise UserError(f"Stage.low_res_noise ({self.low_res_noise!r}) must be a noise, e.g. @DiscreteNoise()")
        if self.enlargement not in ENLARGEMENTS:
            raise UserError(f"Stage.enlargement ({self.enlargement!r}) must be one of {', '.join(ENLARGEMENTS)}")
        given = {
            "text": True,
            "low_res": self.low_res_size is not None,
            "self_cond": self.self_cond_rate > 0,
            "framing": self.framing,
        }
        check_backbone(self.model, tuple(name for name, is_given in given.items() if is_given))
        factor = self.model.size_factor
        if self.image_size % factor:
            near = max(self.image_size // factor, 1) * factor
            raise UserError(
                f"Stage.image_size ({self.image_size}) must be divisible by {factor}, the product of the network's "
                f"down-samplings; choose {near} or {near + factor}"
            )
        if self.low_res_size is not None and (self.low_res_size < 1 or self.image_size % self.low_res_size):
            raise UserError(
                f"Stage.low_res_size ({self.low_res_size}) must divide image_size ({self.image_size}); "
                f"choose e.g. {self.image_size // 4}"
            )
        if self.full_size is not None and (self.full_size < self.image_size or self.full_size % factor):
            raise UserError(
                f"Stage.full_size ({self.full_size}) must be at least image_size ({self.image_size}), a crop of it, "
                f"and divisible by {factor}"
            )

    @property
    def draw_size(self) -> int:
        """Side of the images the stage draws unless another size is asked for."""
        return self.full_size or self.image_size

    @property
    def scale(self) -> int:
        """Ratio of an image's size to its low-resolution input's; 1 for the base stage."""
        return self.image_size // self.low_res_size if self.low_res_size else 1

    def untrained_level(self, aug_level: float) -> str | None:
        """One line for people about an aug_level that the stage never saw in training; None where it did."""
        if self.low_res_size is None or aug_level <= self.max_aug_level:
            return None
        return (
            f"warning: aug_level ({aug_level:g}) is above {self.max_aug_level:g}, the largest that stage {self.name!r} "
            f"is trained to (Stage.max_aug_level): its pictures may come out noisy or blurred; choose at most that"
        )

    def init(self, rng: PRNGKeyArray) -> PyTree:
        """Fresh float32 parameters, boxed with their logical axis names."""
        size = self.image_size
        text = jnp.zeros((1, self.max_text_length, self.text_embed_dim))
        cond = Conditioning(text=text, text_mask=jnp.ones(text.shape[:2], bool))
        if self.low_res_size is not None:
            cond = dataclasses.replace(cond, low_res=jnp.zeros((1, size, size, 3)), aug_level=jnp.zeros((1,)))
        if self.self_cond_rate > 0:
            cond = dataclasses.replace(cond, self_cond=jnp.zeros((1, size, size, 3)))
        if self.framing:
            cond = dataclasses.replace(cond, framing=jnp.zeros((1, 6)))
        return self.model.init(rng, jnp.zeros((1, size, size, 3)), jnp.zeros((1,)), cond)["params"]

    def network(self, params: PyTree, mesh: Mesh | None = None) -> Denoiser:
        """The network as a function of its input.

        Args:
          params: network parameters.
          mesh: where they lie, sharded by `sharding.rules`; None for one device.

        Raises:
          UserError: the mesh splits the height of the images more ways than the network's lowest level has rows.
        """
        if mesh is None or mesh.size == 1:
            return functools.partial(self.model.apply, {"params": params})
        self.check_rows(self.image_size, mesh.shape["spatial"])
        return functools.partial(on_mesh, self._apply_sharded, mesh, _param_shardings(self, mesh), params)

    def check_rows(self, height: int, ways: int) -> None:
        """Raises UserError unless the network's lowest level of images of a height can be split `ways` ways."""
        lowest = height // self.model.size_factor
        if lowest % ways:
            raise UserError(
                f"mesh axis spatial ({ways}) must divide {lowest}, the height of the network's lowest level "
                f"(image_size {height} / {self.model.size_factor}); choose {math.gcd(lowest, ways)}, "
                f"or larger images"
            )

    def _apply_sharded(self, params: PyTree, *inputs: Any) -> Array:
        with kernels_gathered_over("fsdp"):
            return self.model.apply({"params": params}, *inputs)

    def estimate(
        self, output: Float[Array, "b h w c2"], z_t: Float[Array, "b h w c"], log_snr: Float[Array, " b"]
    ) -> Estimate:
        """Reads x0 and eps from the network's output, and the variance if it learns one."""
        channels = z_t.shape[-1]
        x0, eps = process.to_x0_eps(self.prediction, output[..., :channels], z_t, log_snr)
        return Estimate(x0, eps, 0.5 * (output[..., channels:] + 1.0) if self.model.learned_variance else None)

    def upsample_low_res(self, low_res: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        """Resizes a low-resolution image by the scale of this stage, bilinear (the paper does not state how)."""
        return enlarge(low_res, low_res.shape[1] * self.scale, low_res.shape[2] * self.scale, self.enlargement)

    def loss(
        self,
        params: PyTree,
        batch: dict[str, Array],
        rng: PRNGKeyArray,
        null: Conditioning | None = None,
        mesh: Mesh | None = None,
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Weighted squared error of the network's prediction at random times (paper section 2.2, figure A.32).

        Args:
          params: network parameters.
          batch: "x0" [b, h, w, 3] in [-1, 1], "text" [b, n, d], "text_mask" [b, n]; for super-resolution
            "low_res" [b, h', w', 3], with `framing` "framing" [b, 6].
          rng: decides times, noise, dropped text, augmentation levels and self-conditioning.
          null: the null text, one row; None is zeros. Whoever trains gives what `null_text` names.
          mesh: as in `network`.

        Returns:
          The mean loss, and {"per_example_loss": [b], "log_snr": [b]}.
        """
        x0 = batch["x0"]
        t_rng, eps_rng, drop_rng, aug_rng, aug_eps_rng = jax.random.split(rng, 5)
        t = self.time_sampler.times(t_rng, x0.shape[0])
        log_snr = self.schedule.log_snr(t)
        eps = jax.random.normal(eps_rng, x0.shape)
        cond = self.conditioning(batch, drop_rng, aug_rng, aug_eps_rng, null)
        network, z_t = self.network(params, mesh), process.diffuse(x0, eps, log_snr)
        if self.self_cond_rate > 0:
            cond = self._self_conditioned(network, z_t, log_snr, cond, jax.random.fold_in(rng, 5))
        output = network(z_t, log_snr, cond)
        target = process.target(self.prediction, x0, eps, log_snr)
        per_example = losses.per_example_mse(output[..., : x0.shape[-1]], target)
        per_example *= self.weighting.weight(self.prediction, log_snr)
        found = self.estimate(output, z_t, log_snr)
        if found.fraction is not None:
            bound = losses.variational_bound(x0, found.x0, found.fraction, t, self.schedule)
            per_example += self.vlb_weight * bound
        return per_example.mean(), {"per_example_loss": per_example, "log_snr": log_snr}

    def conditioning(
        self,
        batch: dict[str, Array],
        drop_rng: PRNGKeyArray,
        aug_rng: PRNGKeyArray,
        aug_eps_rng: PRNGKeyArray,
        null: Conditioning | None = None,
    ) -> Conditioning:
        """Makes the conditioning of a training batch: text, some of it dropped, and corrupted low-resolution images.

        Args:
          batch, null: as in `loss`.
          drop_rng: decides which text is dropped.
          aug_rng, aug_eps_rng: levels and noise of the corruption.
        """
        b = batch["x0"].shape[0]
        # Text may have travelled in bfloat16; what follows is the same program for both.
        text = batch["text"].astype(jnp.float32)
        cond = Conditioning(text=text, text_mask=batch["text_mask"])
        cond = drop_text(cond, jax.random.uniform(drop_rng, (b,)) >= self.cond_drop_rate, null)
        if self.framing:
            cond = dataclasses.replace(cond, framing=batch["framing"])
        if self.low_res_size is None:
            return cond
        low_res = self.upsample_low_res(batch["low_res"])
        aug_level = jax.random.uniform(aug_rng, (b,), maxval=self.max_aug_level)
        aug_eps = jax.random.normal(aug_eps_rng, low_res.shape)
        low_res = self.low_res_noise.corrupt(low_res, aug_eps, aug_level)
        return dataclasses.replace(cond, low_res=low_res, aug_level=aug_level)

    def _self_conditioned(
        self, network: Denoiser, z_t: Array, log_snr: Array, cond: Conditioning, rng: PRNGKeyArray
    ) -> Conditioning:
        """Adds the network's own estimate of x0, not differentiated, or zeros in its place."""
        nothing = dataclasses.replace(cond, self_cond=jnp.zeros_like(z_t))

        def first_look() -> Array:
            found = self.estimate(network(z_t, log_snr, nothing), z_t, log_snr)
            return jax.lax.stop_gradient(jnp.clip(found.x0, -1.0, 1.0))

        # One coin for the batch: the rows that need no first look would cost one all the same.
        known = jax.lax.cond(jax.random.uniform(rng) < self.self_cond_rate, first_look, lambda: jnp.zeros_like(z_t))
        return dataclasses.replace(cond, self_cond=known)


@functools.lru_cache(maxsize=8)
def _param_shardings(stage: Stage, mesh: Mesh) -> PyTree:
    return rules.param_shardings(jax.eval_shape(stage.init, jax.random.key(0)), mesh)
