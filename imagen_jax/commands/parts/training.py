"""Training as the console command does it: the loop joined with the hooks that draw and evaluate."""

import contextlib
from collections.abc import Sequence

import numpy as np

from imagen_jax.checkpoints.trained_stage import StageRecord
from imagen_jax.data.pipeline import BatchIterator
from imagen_jax.data.task_batches import TaskBatches
from imagen_jax.errors import StoppedError, UserError
from imagen_jax.evals.evaluate_hook import EvaluateHook, check_evaluation
from imagen_jax.files import as_path
from imagen_jax.sampling.preview import PreviewRows
from imagen_jax.sampling.preview_hook import PreviewHook
from imagen_jax.train.config import PreviewConfig, TrainConfig
from imagen_jax.train.hooks import Hook, StepInfo
from imagen_jax.train.instruments import ProfileSteps, profiled_steps
from imagen_jax.train.loop import Run, train


def preview_rows(run: Run, previews: PreviewConfig) -> PreviewRows:
    """Captions of a base stage's previews; without captions, or for super-resolution, the data's first rows."""
    config = run.config
    if run.preview_text is not None:
        text, text_mask = run.preview_text
        return PreviewRows(text=text, text_mask=text_mask, captions=previews.captions)
    kind = BatchIterator if config.data.task is None else TaskBatches
    batches = kind(config.data, batch_size=previews.num_images, seed=config.seed, start_step=0, encoder=run.encoder)
    with contextlib.closing(batches):
        first = next(iter(batches))
    return PreviewRows(
        text=first["text"].astype(np.float32),
        text_mask=first["text_mask"],
        low_res=first.get("low_res"),
        captions=previews.captions,
    )


def hooks_of(run: Run, operative_config: str = "") -> Sequence[Hook]:
    """The hooks that the config of `run` asks for, in the order they are called."""
    config, previews, hooks = run.config, run.config.previews, list[Hook]()
    if previews is not None:
        hooks.append(
            PreviewHook(
                stage=config.stage,
                sampling=config.sampling,
                mesh=run.setup.mesh,
                rows=preview_rows(run, previews),
                every=previews.every,
                seed=previews.seed,
                directory=as_path(config.model_dir) / "samples",
                null=run.null,
                network_params=run.network_params,
                show=run.writer.image,
            )
        )
    if config.evaluate is not None:
        hooks.append(
            EvaluateHook(
                evaluation=config.evaluate.evaluation,
                model_dir=config.model_dir,
                record=StageRecord.of_run(config.stage, config.sampling, run.encoder, operative_config),
                mesh=run.setup.mesh,
                encoder=run.encoder,
                free_encoder=not config.data.encodes,
                every=config.evaluate.every,
                network_params=run.network_params,
            )
        )
    return hooks


class _StopReason(Hook):
    """Remembers the signal that asked the run to stop."""

    name: str | None = None

    def on_stop(self, info: StepInfo) -> None:
        """Takes note of it."""
        self.name = info.reason


def run(config: TrainConfig, operative_config: str = "", profile_steps: str | None = None) -> None:
    """Trains one stage with its previews and evaluations.

    Args:
      config: the run.
      operative_config: its gin text.
      profile_steps: "A:B", updates of which a trace is written; None: of none.

    Raises:
      UserError: see `train` and `check_evaluation`; also when the run directory cannot be written.
      StoppedError: a signal asked the run to stop, and it has saved.
    """
    stopped = _StopReason()
    profiled = profiled_steps(profile_steps) if profile_steps is not None else None
    if config.evaluate is not None:
        check_evaluation(
            config.evaluate.evaluation, config.model_dir, config.evaluate.every, save_every=config.save_every
        )

    def hooks(run: Run) -> Sequence[Hook]:
        asked = hooks_of(run, operative_config)
        if profiled is None:
            return (*asked, stopped)
        folder = as_path(config.model_dir) / "tensorboard"
        return (*asked, ProfileSteps(profiled, run.start, folder), stopped)

    try:
        train(config, operative_config, hooks=hooks)
    except OSError as error:
        raise UserError(
            f"the run in {config.model_dir} stopped on a file: {error}. Its checkpoints are intact; free space or "
            f"fix the permissions, then run the same command again"
        ) from error
    if stopped.name is not None:
        raise StoppedError(stopped.name)
