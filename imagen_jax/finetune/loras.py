"""Trained LoRA factors apart from their base, and stages with several of them merged."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from imagen_jax.checkpoints import checkpoints, folders
from imagen_jax.checkpoints.trained_stage import StageRecord, TrainedStage, Weights
from imagen_jax.errors import UserError
from imagen_jax.files import AnyPath, as_path
from imagen_jax.finetune import lora, source
from imagen_jax.finetune.lora import Layout, LoraConfig
from imagen_jax.typing import PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lora:
    """Trained factors, ready to be merged.

    Args:
      path: where they are from.
      config: rank, alpha, targets.
      stage: name of the stage they are of.
      base: checkpoint that they were trained on.
      factors: on the host.
      word: `checkpoints.fingerprint` of what they are from.
      layouts: of the kernels that they are of.
    """

    path: str
    config: LoraConfig
    stage: str
    base: str
    factors: PyTree
    word: str
    layouts: Mapping[str, Layout] = dataclasses.field(compare=False)

    @classmethod
    def of_run(cls, model_dir: str) -> "Lora":
        """The averaged factors of a run's newest checkpoint.

        Raises:
          UserError: there is none, or the run is none of LoRA.
        """

        def read(path: AnyPath) -> "Lora":
            if not source.is_adapted(path):
                raise UserError(f"{model_dir} trains all parameters of its stage, no LoRA; give it as --checkpoint")
            record, stage = source.LoraRecord.read(path), StageRecord.read(path).stage
            factors = jax.tree.map(np.asarray, checkpoints.load_item(path, "ema_params"))
            return cls(
                path=model_dir,
                config=record.config,
                stage=record.base.stage,
                base=record.base.checkpoint,
                factors=factors,
                word=checkpoints.fingerprint(model_dir, folders.step_of(path)),
                layouts=lora.layouts(record.config, source.abstract_network(stage)),
            )

        return checkpoints.read_newest(model_dir, read)


def with_loras(stages: Sequence[TrainedStage], loras: Sequence[tuple[Lora, float]]) -> list[TrainedStage]:
    """Stages with LoRAs merged into those that they were trained on; several add up.

    Args:
      stages: of a cascade.
      loras: each with its weight, a factor of its scale: 0 is the base, 1 the LoRA as it was trained.

    Raises:
      UserError: one was trained on none of the stages.
    """
    have = {one.checkpoint: number for number, one in enumerate(stages)}
    result = list(stages)
    for one, weight in loras:
        if one.base not in have:
            raise UserError(
                f"the LoRA {one.path} was trained on {one.base} of stage {one.stage!r}; the cascade has "
                f"{', '.join(f'{stage.checkpoint} of {stage.stage.name!r}' for stage in stages)}: load that checkpoint"
            )
        number = have[one.base]
        stage = result[number]
        lora.check_factors(one.factors, source.abstract_network(stage.stage), f"the LoRA {one.path}")
        host = lora.merged(stage.weights.host, one.factors, weight * one.config.scale)
        word = f"{stage.checkpoint}+{one.word}:{weight:g}"
        result[number] = dataclasses.replace(stage, weights=Weights(host, as_path(one.path)), checkpoint=word)
    return result
