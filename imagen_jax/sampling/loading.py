"""Trained stages from their run directories, and how they form a chain.

A cascade directory holds one run directory a stage (base/, sr/, …); a stage's run directory alone is a cascade of one;
a gin file that binds a `CascadeConfig` names the run directories, in order, and how each is sampled:

    from __gin__ import dynamic_registration
    from imagen_jax.sampling import loading
    loading.CascadeConfig.stages = (@base/loading.StageSource(), @sr/loading.StageSource())
    base/loading.StageSource.model_dir = 'runs/x/base'
    …
"""

import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import jax

from imagen_jax.checkpoints import folders
from imagen_jax.checkpoints.trained_stage import StageRecord, TrainedStage
from imagen_jax.checks import check_path
from imagen_jax.errors import UserError
from imagen_jax.export.bundle import is_bundle, load_bundle
from imagen_jax.files import absolute, as_path
from imagen_jax.finetune.loras import Lora, with_loras
from imagen_jax.finetune.peft import is_peft, read_peft
from imagen_jax.finetune.source import load_stage
from imagen_jax.sampling.request import MAX_SIDE
from imagen_jax.stage.sampling_config import SamplingConfig
from imagen_jax.stage.spec import Stage
from imagen_jax.text.store.format import fingerprint_differences

Loaded = TypeVar("Loaded")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageSource:
    """One stage of a `CascadeConfig`.

    Args:
      model_dir: run directory with a checkpoint.
      sampling: how it is sampled; None: as configured in its run.
      step: which checkpoint: a number, or "best"; None is the newest.
    """

    model_dir: str
    sampling: SamplingConfig | None = None
    step: int | str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class CascadeConfig:
    """Stages in the order they run, at least one."""

    stages: tuple[StageSource, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        if not self.stages or not all(isinstance(one, StageSource) for one in self.stages):
            raise UserError(
                f"CascadeConfig.stages ({self.stages!r}) must be a tuple of @SCOPE/StageSource(), one for each stage"
            )


def drawing_devices() -> list[jax.Device]:
    """The devices that a cascade draws on: all of this process."""
    return jax.local_devices()


def load_stages(
    path: str, text_encoder: str | None = None, steps: Mapping[str, folders.Step] | None = None
) -> list[TrainedStage]:
    """The stages, in order, of a cascade directory, a run directory, a bundle or a gin file of a `CascadeConfig`.

    Args:
      path: of one of these.
      text_encoder: where the pretrained text encoder is; None: where the checkpoints say.
      steps: checkpoint of a stage, a number or "best", by the name of its run directory; of the others the newest.

    Raises:
      UserError: nothing trained there, or stages that do not fit each other.
    """

    def load(run: str, step: folders.Step | None = None) -> TrainedStage:
        return load_stage(run, text_encoder, asked.get(run_name(run), step))

    asked = steps or {}
    check_path("the cascade", path)
    if path.endswith(".gin"):
        # A file that the user names may bind anything; what lies beside a checkpoint is never taken for one.
        from imagen_jax import gin_config

        stages, sources = [], gin_config.load(CascadeConfig, [path]).stages
        _check_names(asked, [source.model_dir for source in sources])
        for source in sources:
            if folders.latest_step(source.model_dir) is None:
                raise UserError(f"{path} names {source.model_dir!r}, where no checkpoint is; train that stage first")
            one = load(source.model_dir, source.step)
            stages.append(one if source.sampling is None else dataclasses.replace(one, sampling=source.sampling))
        check_chain(stages)
        return stages
    if is_bundle(path):
        if asked:
            raise UserError(f"{path} is a bundle, which holds no checkpoints to choose from; leave the step out")
        stages = load_bundle(path, text_encoder)
        check_chain(stages)
        return stages
    if folders.latest_step(path) is not None:
        _check_names(asked, [path])
        return [load(path)]
    runs = _runs(path)
    _check_names(asked, runs)
    stages = [load(run) for run in runs]
    if not stages:
        raise UserError(
            f"no trained stage under {path!r}: expected checkpoints/checkpoint_N in it or in its "
            "sub-directories (base/, sr/, …); train first, or check the path"
        )
    stages.sort(key=lambda loaded: loaded.stage.draw_size)
    check_chain(stages)
    return stages


def with_lora(stages: Sequence[TrainedStage], lora: Sequence[str]) -> list[TrainedStage]:
    """Stages with LoRAs merged into those that they were trained on.

    Args:
      stages: of a cascade.
      lora: run directories of LoRA, or folders of PEFT's form; "DIR:0.8" has the weight 0.8, others 1.

    Raises:
      UserError: one is not there, is damaged, or was trained on none of the stages.
    """
    return with_loras(stages, [_weighted(text) for text in lora])


def _weighted(text: str) -> tuple[Lora, float]:
    path, _, last = text.rpartition(":")
    try:
        weight = float(last)
    except ValueError:
        path, weight = text, 1.0
    if not path or not math.isfinite(weight):
        raise UserError(f"the LoRA {text!r} must be a folder, or a folder and a finite weight as in runs/style:0.8")
    return (read_peft(path) if is_peft(path) else Lora.of_run(path)), weight


def load_others(path: str, model_dir: str, load: Callable[[str], Loaded]) -> list[Loaded]:
    """The newest of what is trained in a cascade directory, but for one stage.

    Args:
      path: cascade directory, or `model_dir` itself, in which no others are.
      model_dir: run directory of the stage that is left out.
      load: reads a run directory.
    """
    return [load(run) for run in _runs(path) if absolute(run) != absolute(model_dir)]


def _runs(path: str) -> list[str]:
    """The run directories in a directory that have a checkpoint."""
    root = as_path(path)
    runs = [os.fspath(entry) for entry in sorted(root.iterdir())] if root.is_dir() else []
    return [run for run in runs if folders.latest_step(run) is not None]


def run_name(run: str) -> str:
    """Name of a run directory, also of one that is given as "."."""
    return as_path(absolute(run)).name


def _check_names(steps: Mapping[str, folders.Step], runs: Sequence[str]) -> None:
    known = [run_name(run) for run in runs]
    if unknown := sorted(steps.keys() - known):
        raise UserError(f"no stage {unknown[0]!r} with a checkpoint; there is {', '.join(known) or 'none'}")


def check_chain(stages: Sequence[TrainedStage | StageRecord]) -> None:
    """Raises UserError unless each stage takes what the one below draws, and all read the same text."""
    for below, above in zip(stages, stages[1:], strict=False):
        drawn, wanted = below.stage.draw_size, above.stage.draw_size // above.stage.scale
        if above.stage.low_res_size is None or wanted != drawn:
            takes = "no images" if above.stage.low_res_size is None else f"{wanted}-pixel images"
            raise UserError(
                f"stage {above.stage.name!r} takes {takes} from below, but stage {below.stage.name!r} draws {drawn}; "
                "a cascade must be one chain (a stage trained on crops needs Stage.full_size)"
            )
        differences = fingerprint_differences(above.text_fingerprint, below.text_fingerprint)
        if differences:
            raise UserError(
                f"stages {above.stage.name!r} and {below.stage.name!r} were trained with different text encoders "
                f"({'; '.join(differences)}); retrain one of them"
            )


def stage_sizes(stages: Sequence[Stage], size: tuple[int, int] | None) -> list[tuple[int, int]]:
    """Height and width of every stage's images, when the last one's are `size` (None: the first draws its own).

    Raises:
      UserError: a network or a scale cannot do it; names the sizes nearby that work.
    """
    scales, unit = _scales_above(stages), size_unit(stages)
    if size is None:
        side = stages[0].draw_size * scales[0]
        size = (side, side)
    for name, length in zip(("height", "width"), size, strict=True):
        if length > MAX_SIDE:
            raise UserError(f"{name} ({length}) must be at most {MAX_SIDE} pixels")
        if length < 1 or length % unit:
            near = max(length // unit, 1) * unit
            raise UserError(
                f"{name} ({length}) must be a multiple of {unit}, which the networks' down-samplings and the scales of "
                f"the stages ask for; choose {near} or {near + unit}"
            )
    return [(size[0] // scale, size[1] // scale) for scale in scales]


def size_unit(stages: Sequence[Stage]) -> int:
    """Number that height and width of the last stage's images must be multiples of."""
    pairs = zip(stages, _scales_above(stages), strict=True)
    return math.lcm(*(above * math.lcm(stage.model.size_factor, stage.scale) for stage, above in pairs))


def _scales_above(stages: Sequence[Stage]) -> list[int]:
    """Ratio of the last stage's image size to each stage's."""
    return [math.prod(stage.scale for stage in stages[number + 1 :]) for number in range(len(stages))]
