"""Everything one training run is made of."""

import dataclasses
import math
from typing import Any

from imagen_jax.checks import check_count, check_path
from imagen_jax.data.config import DataConfig
from imagen_jax.diffusion.guidance import check_guidance_weight
from imagen_jax.diffusion.losses import TruncatedSNRWeighting, Weighting
from imagen_jax.diffusion.time_grids import check_steps
from imagen_jax.errors import UserError
from imagen_jax.finetune.lora import LoraConfig
from imagen_jax.sharding.mesh import MeshConfig
from imagen_jax.stage.guided import check_sizes
from imagen_jax.stage.sampling_config import SamplingConfig
from imagen_jax.stage.spec import Stage
from imagen_jax.text.encoder import TextConfig
from imagen_jax.text.encoders.t5 import T5Config
from imagen_jax.train.optimizer import OptimizerConfig

COUNTS = ("num_steps", "batch_size", "accumulate_steps", "log_every", "save_every", "keep_checkpoints", "max_bad_steps")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreviewConfig:
    """Preview pictures during training, of the averaged parameters, with one seed and the run's `sampling`.

    Args:
      every: steps between previews, >= 1.
      captions: what a base stage draws; a super-resolution stage draws the first rows of the run's data
        instead, since it needs low-resolution images. Empty: a base stage too draws the text of those rows.
      num_images: rows of the data that are drawn where captions are not.
      seed: seed of the noise.
    """

    every: int
    captions: tuple[str, ...] = ()
    num_images: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        check_count("previews.every", self.every)
        check_count("previews.num_images", self.num_images)
        check_count("previews.seed", self.seed, 0)
        if isinstance(self.captions, str) or not all(isinstance(caption, str) for caption in self.captions):
            raise UserError(f"previews.captions ({self.captions!r}) must be a list of strings")
        object.__setattr__(self, "captions", tuple(self.captions))


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Evaluation during training, of the averaged parameters, as `imagen_jax follow` does it beside.

    Args:
      every: steps between evaluations, >= 1.
      evaluation: the EvalConfig that `follow` would take: its evaluators, the cascade directory that the run lies in,
        and by what the best checkpoint is kept. This module knows no evaluators; who evaluates looks at it.
    """

    every: int
    evaluation: Any

    def __post_init__(self) -> None:
        check_count("evaluate.every", self.every)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Distillation: the run's stage learns to take in one step what a trained one takes in several (`train.distill`).

    The steps it learns are those of the run's `sampling`.

    Args:
      teacher_dir: run directory of the teacher, the same stage; its newest averaged parameters also start the run.
      teacher_steps: DDIM steps of the teacher to one of the student, >= 1.
      guidance_weight: the teacher's; None: as configured in its run.
      weighting: of the squared error of x0_hat by noise.
    """

    teacher_dir: str
    teacher_steps: int = 2
    guidance_weight: float | None = None
    weighting: Weighting = TruncatedSNRWeighting()

    def __post_init__(self) -> None:
        check_path("distill.teacher_dir", self.teacher_dir)
        check_count("distill.teacher_steps", self.teacher_steps)
        if self.guidance_weight is not None:
            check_guidance_weight(self.guidance_weight)
        if not isinstance(self.weighting, Weighting):
            raise UserError(f"distill.weighting ({self.weighting!r}) must be a weighting, e.g. @losses.SNRWeighting()")


@dataclasses.dataclass(frozen=True, kw_only=True)
class InversionConfig:
    """Textual inversion: a new word's vectors are learned, and nothing else (`train.inversion`).

    Args:
      word: as the captions of the corpus have it, e.g. "<gorp>".
      num_vectors: tokens that it stands for, >= 1.
      start: a word of the vocabulary at whose vector they begin, e.g. the class; "": at the mean of all.
    """

    word: str
    num_vectors: int = 1
    start: str = ""

    def __post_init__(self) -> None:
        check_count("inversion.num_vectors", self.num_vectors)
        if not isinstance(self.word, str) or self.word.split() != [self.word]:
            raise UserError(f"inversion.word ({self.word!r}) must be one word without white space, e.g. <gorp>")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run of one stage.

    Args:
      stage: model and diffusion.
      data: corpus and embedding store; sizes must be the stage's.
      text: the encoder the store must come from; it also encodes the captions of previews, and those of the
        corpus where there is no store.
      model_dir: run directory of this stage; a run that finds its own checkpoints there goes on from them.
      num_steps: updates of the whole run.
      batch_size: rows of one update over all devices and microbatches.
      optimizer: optimizer and learning rate.
      mesh: division of the devices.
      planned_devices: how many `mesh` and `accumulate_steps` are meant for; on fewer, whose number divides it, the
        run goes on with a smaller mesh and more microbatches of the same batch (`train.fewer_devices`). None: `mesh`
        has to fit whatever is there.
      seed: seed of parameters, data order and every draw in training.
      ema_decay: decay of the parameter average, in [0, 1).
      ema_warmup: starts the average at a smaller decay, see `train.ema`.
      accumulate_steps: microbatches of one update.
      log_every, save_every: steps between metric lines, between checkpoints.
      save_minutes: also saves this long after the last save, at the next metrics line; None: by steps alone.
      keep_checkpoints: newest checkpoints kept, >= 1.
      keep_every: checkpoints of steps that this divides are kept too; None: no others but the best.
      background_saves: writes checkpoints while training goes on, from a copy of the state in the host's memory; only
        with one process.
      max_bad_steps: updates in a row that may be skipped, since loss or gradient was not finite or the loss a spike,
        before the run stops; 1 stops at the first.
      max_spike_sigmas: skips an update whose log loss is so many standard deviations above the mean of those before it,
        see `train.spikes`; 6 is usual, None skips no spike. What it knows of the losses is part of the optimizer's
        state: a run that has checkpoints keeps to a number or to None.
      watchdog_seconds: seconds without the end of a step after which the process ends with the retry code, its stacks
        shown; what happens between steps counts, such as saves and previews. None never ends it.
      sdc_every: steps between checks that the replicas of the state are the same bits on all devices, and that all
        devices compute the same gradient of the same rows; None: never.
      sampling: how this stage is sampled, in previews and wherever its checkpoint is used.
      previews: pictures drawn while it trains, or None.
      evaluate: evaluators run while it trains, or None.
      resume: run directory whose newest checkpoint (state and data position) is the start of a new run.
      init_from: run directory, or bundle, whose newest parameters are the start of a new run, from step 0; the same
        network and text encoder. With `lora` they stay as they are, and are needed as long as the run is.
      init_ema: the averaged parameters of init_from (True), or those that were being trained there.
      lora: trains low-rank factors in place of the parameters of init_from, or None (`finetune.lora`).
      inversion: trains the vectors of a new word on the parameters of init_from, or None.
      distill: what teaches this stage, or None: it learns from the corpus alone.

    Raises:
      UserError: a value is out of range or the parts do not fit each other.
    """

    stage: Stage
    data: DataConfig
    text: TextConfig
    model_dir: str
    num_steps: int
    batch_size: int
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    planned_devices: int | None = None
    sampling: SamplingConfig = SamplingConfig()
    seed: int = 0
    ema_decay: float = 0.9999
    ema_warmup: bool = True
    accumulate_steps: int = 1
    log_every: int = 100
    save_every: int = 1000
    save_minutes: float | None = None
    keep_checkpoints: int = 3
    keep_every: int | None = None
    background_saves: bool = True
    max_bad_steps: int = 10
    max_spike_sigmas: float | None = None
    watchdog_seconds: float | None = 3600.0
    sdc_every: int | None = None
    previews: PreviewConfig | None = None
    evaluate: EvaluateConfig | None = None
    resume: str | None = None
    init_from: str | None = None
    init_ema: bool = True
    lora: LoraConfig | None = None
    inversion: InversionConfig | None = None
    distill: DistillConfig | None = None

    def __post_init__(self) -> None:
        for name in COUNTS:
            check_count(name, getattr(self, name))
        check_count("seed", self.seed, 0)
        for name in ("keep_every", "sdc_every", "planned_devices"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        if self.save_minutes is not None and not 0 < self.save_minutes < math.inf:
            raise UserError(f"save_minutes ({self.save_minutes}) must be a number of minutes above 0; 30 is usual")
        if self.max_spike_sigmas is not None and not 0 < self.max_spike_sigmas < math.inf:
            raise UserError(f"max_spike_sigmas ({self.max_spike_sigmas}) must be above 0, or None; 6 is usual")
        if self.watchdog_seconds is not None and not 0 < self.watchdog_seconds < math.inf:
            raise UserError(f"watchdog_seconds ({self.watchdog_seconds}) must be above 0, or None for no watchdog")
        kinds: dict[str, type] = {
            "stage": Stage,
            "data": DataConfig,
            "text": TextConfig,
            "optimizer": OptimizerConfig,
            "mesh": MeshConfig,
            "sampling": SamplingConfig,
        }
        for name, kind in kinds.items():
            value = getattr(self, name)
            if not isinstance(value, kind):
                wanted = kind.__name__
                raise UserError(f"TrainConfig.{name} ({value!r}) must be {wanted}; in gin write @{wanted}()")
        check_path("TrainConfig.model_dir", self.model_dir)
        for name in ("resume", "init_from"):
            if getattr(self, name) is not None:
                check_path(f"TrainConfig.{name}", getattr(self, name))
        parts = {
            "distill": DistillConfig,
            "evaluate": EvaluateConfig,
            "lora": LoraConfig,
            "inversion": InversionConfig,
        }
        for name, kind in parts.items():
            value = getattr(self, name)
            if value is not None and not isinstance(value, kind):
                wanted = kind.__name__
                raise UserError(f"TrainConfig.{name} ({value!r}) must be {wanted}; in gin @{wanted}()")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"ema_decay ({self.ema_decay}) must be in [0, 1); 0.9999 is usual")
        if self.resume and self.init_from:
            raise UserError(
                f"resume ({self.resume}) and init_from ({self.init_from}) exclude each other: "
                f"resume goes on with a whole run, init_from starts a new one from its parameters"
            )
        if self.lora is not None and (self.init_from is None or not self.init_ema or self.distill is not None):
            raise UserError(
                f"lora needs init_from ({self.init_from}), the base that it is trained on, with init_ema True, and no "
                "distill; set init_from to a run directory or a bundle"
            )
        if self.inversion is not None:
            self._check_inversion()
        self._check_sizes()

    def _check_inversion(self) -> None:
        others = [name for name in ("lora", "distill", "previews", "evaluate") if getattr(self, name) is not None]
        if self.init_from is None or others or not self.data.encodes:
            raise UserError(
                "inversion needs init_from, the stage that it is trained on, data without a store_dir, since the text "
                f"encoder is part of what is differentiated, and None for lora, distill, previews and evaluate (got "
                f"init_from {self.init_from!r}{', ' * bool(others)}{', '.join(others)})"
            )
        if not isinstance(self.text.sizes(), T5Config):
            raise UserError(f"inversion is for T5 encoders; TextConfig.encoder is {self.text.encoder!r}")

    def _check_sizes(self) -> None:
        # Previews come late in a run.
        check_sizes(self.stage, self.sampling, (self.stage.image_size, self.stage.image_size))
        check_steps(self.sampling.schedule or self.stage.schedule, self.sampling.num_steps)
        for name in ("image_size", "low_res_size", "max_text_length"):
            ours, theirs = getattr(self.stage, name), getattr(self.data, name)
            if ours != theirs:
                raise UserError(
                    f"the data's {name} ({theirs}) differs from the stage's ({ours}): "
                    f"set both from one macro, e.g. DataConfig.{name} = %{name.upper()}"
                )
        for height, width in self.data.sizes:
            check_sizes(self.stage, dataclasses.replace(self.sampling, tile_size=None), (height, width))
            self.stage.check_rows(height, self.mesh.spatial)
        if self.stage.framing and not self.data.sizes:
            raise UserError(
                "Stage.framing is True, but DataConfig.sizes is empty: only a corpus of sizes says how its pictures "
                "are framed; build one (`imagen_jax build_corpus --sizes`), or unset Stage.framing"
            )
        if self.data.encodes and self.text.max_length > self.data.max_text_length:
            raise UserError(
                f"the text encoder's max_length ({self.text.max_length}) must be at most the data's max_text_length "
                f"({self.data.max_text_length}): set both from one macro"
            )
        if self.text.sizes().embed_dim != self.stage.text_embed_dim:
            raise UserError(
                f"the stage's text_embed_dim ({self.stage.text_embed_dim}) must be the text encoder's "
                f"embed_dim ({self.text.sizes().embed_dim}): set it to {self.text.sizes().embed_dim}"
            )
