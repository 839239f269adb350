"""Distillation of a trained, guided stage into few steps without guidance.

Progressive distillation (arXiv 2202.00512, algorithm 2) with the guidance folded in (arXiv 2210.03142, section 3). From
a corpus image diffused to the begin t of a step of the student's sampler, the teacher takes K DDIM steps
t = t_0 > … > t_K to that step's end, guided and thresholded as it is sampled. The student learns the x0_hat whose one
DDIM step ends there too,

    x0 = (z_s - (sigma_s / sigma_t) z_t) / (alpha_s - (sigma_s / sigma_t) alpha_t),   s = t_K.

With d = alpha / sigma, a DDIM step from t to s moves z / sigma by (d_s - d_t) x0_hat, so this x0 is the mean of what
the teacher said on its way, weighted by the growth of d:

    x0 = Σ_k (d_{k+1} - d_k) x0_hat_k / (d_K - d_0)

It is computed as that mean: no small numbers are divided, and where every x0_hat_k is within [-1, 1] so is the mean, so
that the student's own thresholding changes nothing. At the last step, to the clean image, it is the x0_hat that the
teacher ends with.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from imagen_jax.checkpoints import checkpoints, plain_data
from imagen_jax.checkpoints.trained_stage import StageRecord, read_record
from imagen_jax.diffusion import losses, process, time_sampling
from imagen_jax.diffusion.losses import Weighting
from imagen_jax.diffusion.samplers import DDIMSampler
from imagen_jax.diffusion.time_grids import UniformGrid
from imagen_jax.errors import UserError
from imagen_jax.models.denoiser import Conditioning, Denoiser
from imagen_jax.stage.guided import GuidedDenoiser, StaticSettings, lay_out_steps
from imagen_jax.stage.sampling_config import SamplingConfig
from imagen_jax.stage.spec import Stage
from imagen_jax.text.encoder import TextConfig, TextEncoder
from imagen_jax.text.encoders.t5 import T5Config
from imagen_jax.text.store.format import fingerprint_differences
from imagen_jax.text.weights.pretrained import Pretrained
from imagen_jax.train.config import TrainConfig
from imagen_jax.train.objective import Batch
from imagen_jax.train.stage_objective import StageObjective
from imagen_jax.typing import Array, Float, Int, PRNGKeyArray, PyTree

# What of a stage is read in ordinary training alone: a student may have its own.
OWN_FIELDS = ("cond_drop_rate", "weighting", "vlb_weight", "time_sampler")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillObjective(StageObjective):
    """Trains a student on its teacher; the teacher's parameters are the frozen ones and lie as the student's do.

    Args:
      stage: of both.
      teacher_dir: run directory of the teacher.
      settings: how the teacher is sampled.
      log_snr: float32 [n, K + 1], log-SNR at the begin of each of the student's n steps, between the teacher's K steps
        and at the end.
      guidance_weight: float32 [n, K], of the teacher.
      weighting: of the squared error of x0_hat.
    """

    teacher_dir: str
    settings: StaticSettings
    log_snr: np.ndarray
    guidance_weight: np.ndarray
    weighting: Weighting

    @classmethod
    def build(cls, config: TrainConfig) -> "DistillObjective | None":
        """Builds the objective of `config.distill`, None if unset; reads the teacher's record, not its parameters.

        Raises:
          UserError: there is no such teacher, it is another stage, or the run's own sampling is not what it can learn.
        """
        if config.distill is None:
            return None
        own, size = config.sampling, (config.stage.image_size, config.stage.image_size)
        _check_student(config.stage, own)
        teacher = read_record(config.distill.teacher_dir)
        _check_teacher(config, teacher, config.distill.teacher_dir)
        weight = config.distill.guidance_weight
        sampling = dataclasses.replace(
            teacher.sampling,
            num_steps=own.num_steps * config.distill.teacher_steps,
            sampler=DDIMSampler(),
            times=own.times,
            schedule=own.schedule,
            guidance_weight=teacher.sampling.guidance_weight if weight is None else weight,
            tile_size=None,
        )
        table, settings = lay_out_steps(config.stage, sampling, size, None)
        steps = (own.num_steps, config.distill.teacher_steps)
        begins, ends = table.log_snr_t.reshape(steps), table.log_snr_s.reshape(steps)
        return cls(
            stage=config.stage,
            teacher_dir=config.distill.teacher_dir,
            settings=settings if settings.guided == "never" else dataclasses.replace(settings, guided="always"),
            log_snr=np.concatenate([begins, ends[:, -1:]], axis=1),
            guidance_weight=table.guidance_weight.reshape(steps),
            weighting=config.distill.weighting,
        )

    @property
    def shares(self) -> np.ndarray:
        """float32 [n, K]: weights of the teacher's x0_hats in the student's target; each row sums to one."""
        growth = np.diff(np.exp(0.5 * self.log_snr.astype(np.float64)), axis=1)
        shares = growth / growth.sum(axis=1, keepdims=True)
        shares[-1] = np.arange(shares.shape[1]) == shares.shape[1] - 1
        return shares.astype(np.float32)

    def target(
        self,
        network: Denoiser,
        z_t: Float[Array, "b h w c"],
        index: Int[Array, " b"],
        cond: Conditioning,
        null: Conditioning | None = None,
    ) -> Float[Array, "b h w c"]:
        """The x0_hat of which one DDIM step ends where the teacher's K do.

        Args:
          network: the teacher.
          z_t: where the student's steps begin.
          index: number of each row's step, from 0 at the noise.
          cond, null: as in `Stage.loss`.
        """
        teacher = GuidedDenoiser(stage=self.stage, settings=self.settings, network=network, cond=cond, null=null)

        def step(carry: tuple[Array, Array], entry: tuple[Array, ...]) -> tuple[tuple[Array, Array], None]:
            (z, total), (log_snr_t, log_snr_s, share, weight) = carry, entry
            now = teacher.estimate(weight, jnp.zeros_like(z), z, log_snr_t)
            alpha_s, sigma_s = process.alpha_sigma(log_snr_s, z.ndim)
            return (alpha_s * now.x0 + sigma_s * now.eps, total + share * now.x0), None

        def of_rows(table: np.ndarray, ndim: int = 1) -> Array:
            rows = jnp.asarray(table)[index].T
            return rows.reshape(*rows.shape, *[1] * (ndim - 1))

        entries = (
            of_rows(self.log_snr[:, :-1]),
            of_rows(self.log_snr[:, 1:]),
            of_rows(self.shares, z_t.ndim),
            of_rows(self.guidance_weight, z_t.ndim),
        )
        return jax.lax.scan(step, (z_t, jnp.zeros_like(z_t)), entries)[0][1]

    def frozen_spec(self, mesh: Mesh) -> PyTree:
        """The teacher's parameters: those of the same network."""
        return self.network_spec(mesh)

    def load_frozen(self, mesh: Mesh) -> PyTree:
        """The teacher's newest averaged parameters.

        Raises:
          UserError: there is no checkpoint, or it is damaged or of another network.
        """
        return checkpoints.restore_params(self.teacher_dir, self.frozen_spec(mesh))

    def diffusion_loss(
        self, params: PyTree, frozen: PyTree, batch: Batch, rng: PRNGKeyArray, mesh: Mesh | None = None
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Weighted squared error of the student's x0_hat at the begin of random steps of its sampler.

        Args:
          params, batch, mesh: as in `Stage.loss`.
          frozen: the teacher's parameters.
          rng: decides steps, noise, dropped text and augmentation levels. Where the text is dropped the teacher is not
            guided, since both of its texts are the null text.

        Returns:
          As `Stage.loss`.
        """
        x0, stage = batch["x0"], self.stage
        t_rng, eps_rng, drop_rng, aug_rng, aug_eps_rng = jax.random.split(rng, 5)
        t = time_sampling.stratified(t_rng, x0.shape[0])
        index = jnp.minimum((t * len(self.log_snr)).astype(jnp.int32), len(self.log_snr) - 1)
        log_snr = jnp.asarray(self.log_snr[:, 0])[index]
        z_t = process.diffuse(x0, jax.random.normal(eps_rng, x0.shape), log_snr)
        cond = stage.conditioning(batch, drop_rng, aug_rng, aug_eps_rng, self.null)
        target = self.target(stage.network(frozen, mesh), z_t, index, cond, self.null)
        x0_hat = stage.estimate(stage.network(params, mesh)(z_t, log_snr, cond), z_t, log_snr).x0
        per_example = losses.per_example_mse(x0_hat, target) * self.weighting.weight("x0", log_snr)
        return per_example.mean(), {"per_example_loss": per_example, "log_snr": log_snr}


def _check_student(stage: Stage, sampling: SamplingConfig) -> None:
    if sampling.sampler != DDIMSampler() or sampling.times != UniformGrid():
        raise UserError(
            f"sampling.sampler ({sampling.sampler}) and sampling.times ({sampling.times}) of a distilled stage must be "
            "DDIMSampler(), with eta 0, and UniformGrid(): those steps are what it learns"
        )
    if lay_out_steps(stage, sampling, (stage.image_size, stage.image_size), None)[1].guided != "never":
        raise UserError(
            f"sampling.guidance_weight ({sampling.guidance_weight}) of a distilled stage must be 1 at every step: the "
            "teacher's guidance is part of what it learns; that weight is DistillConfig.guidance_weight"
        )
    if stage.prediction == "eps":
        raise UserError(
            "a stage that predicts 'eps' cannot be distilled: where z_t is all noise eps says nothing of x0, and few "
            "steps must begin there (arXiv 2202.00512, section 4). Train a teacher with Stage.prediction = 'v' or 'x0'"
        )
    if stage.self_cond_rate > 0:
        raise UserError(
            f"a self-conditioned stage (self_cond_rate {stage.self_cond_rate}) cannot be distilled: a step by itself "
            "has no estimate from the one before. Train a teacher with self_cond_rate 0"
        )


def _check_teacher(config: TrainConfig, teacher: StageRecord, teacher_dir: str) -> None:
    fields = [field.name for field in dataclasses.fields(Stage) if field.name not in OWN_FIELDS]
    pairs = {name: (getattr(config.stage, name), getattr(teacher.stage, name)) for name in fields}
    pairs["text"] = (_without_paths(config.text), _without_paths(teacher.text))
    # As plain data: gin's instances are of subclasses of their own.
    changed = [
        f"{name}: got {ours!r}, the teacher has {theirs!r}"
        for name, (ours, theirs) in pairs.items()
        if plain_data.to_data(ours) != plain_data.to_data(theirs)
    ]
    if changed:
        raise UserError(
            f"the stage is not that of the teacher in {teacher_dir} ({'; '.join(changed)}): a student is its teacher's "
            "network with other parameters; set these as in the config.gin there"
        )


def _without_paths(text: TextConfig) -> TextConfig:
    """Text settings without where things lie; `check_teacher_text` compares what lies there."""
    sizes = text.sizes()
    encoder = sizes if isinstance(sizes, T5Config) else Pretrained(path="-", sizes=sizes)
    return dataclasses.replace(text, vocabulary_path="-", encoder=encoder)


def check_teacher_text(config: TrainConfig, encoder: TextEncoder) -> None:
    """Compares the run's text encoder with that of the teacher, if there is one.

    Raises:
      UserError: vocabulary or parameters differ.
    """
    if config.distill is None:
        return
    teacher_dir = config.distill.teacher_dir
    differences = fingerprint_differences(encoder.fingerprint(), read_record(teacher_dir).text_fingerprint)
    if differences:
        raise UserError(
            f"the text encoder is not that of the teacher in {teacher_dir} ({'; '.join(differences)}): a student reads "
            "what its teacher read"
        )
