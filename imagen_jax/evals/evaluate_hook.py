"""Evaluators during training: the averaged parameters every N steps, into the files that `follow` writes.

The parameters are evaluated where they lie: no checkpoint is read, and none is needed at that step. An evaluator that
fails ends the run as any hook does. `imagen_jax follow` does the same beside training, and takes no time of it.
"""

import dataclasses
from collections.abc import Callable

import jax
from jax.sharding import Mesh

from imagen_jax.checkpoints.trained_stage import StageRecord, TrainedStage, Weights, read_record
from imagen_jax.errors import UserError
from imagen_jax.evals.evaluator import EvalConfig
from imagen_jax.evals.follow import Follower, check_needs_cascade
from imagen_jax.files import LEASE_S, StrPath, absolute, as_path, is_remote, remove_tree
from imagen_jax.finetune.source import load_stage
from imagen_jax.sampling.cascade import Cascade
from imagen_jax.sampling.loading import check_chain, load_others, run_name
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.train.hooks import Hook, StepInfo
from imagen_jax.typing import PyTree


def check_evaluation(evaluation: object, model_dir: str, every: int, save_every: int) -> EvalConfig:
    """The evaluation of a run, looked at before anything is read or compiled.

    Args:
      evaluation: `EvaluateConfig.evaluation`.
      model_dir: run directory of the stage that trains.
      every, save_every: steps between evaluations, between checkpoints.

    Raises:
      UserError: it is no EvalConfig, is of another cascade, looks at no checkpoints, or keeps a best one where an
        evaluated step has no checkpoint; or there are several processes.
    """
    if not isinstance(evaluation, EvalConfig):
        raise UserError(
            f"EvaluateConfig.evaluation ({evaluation!r}) must be EvalConfig; in gin @evaluator.EvalConfig()"
        )
    check_needs_cascade(evaluation)
    if jax.process_count() > 1:
        raise UserError(
            f"TrainConfig.evaluate is for one process, and there are {jax.process_count()}; set it to None, and run "
            "`imagen_jax follow` beside the training"
        )
    if _place(evaluation.run_dir) not in (_place(model_dir), _place(as_path(absolute(model_dir)).parent)):
        raise UserError(
            f"EvalConfig.run_dir ({evaluation.run_dir}) must be the run's own directory ({model_dir}), or the "
            "cascade directory that this lies in"
        )
    if evaluation.best is not None and every % save_every:
        raise UserError(
            f"EvaluateConfig.every ({every}) must be a multiple of save_every ({save_every}) where EvalConfig.best is "
            "set: only a step with a checkpoint can be kept"
        )
    return evaluation


def _place(path: StrPath) -> str:
    return absolute(path).rstrip("/")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateHook(Hook):
    """Writes MODEL_DIR/evaluations/STEP/ and, after checkpoints, best.json; a step that is done is passed over.

    Args:
      evaluation: what to evaluate with, see `check_evaluation`.
      model_dir: run directory of the stage that trains.
      record: its settings.
      mesh: where its parameters lie.
      encoder: of the run.
      free_encoder: training needs no encoder, so its parameters leave the device after an evaluation.
      every: steps between evaluations, >= 1.
      network_params: the network's parameters from the averaged ones.
    """

    evaluation: EvalConfig
    model_dir: str
    record: StageRecord
    mesh: Mesh
    encoder: TextEncoder
    free_encoder: bool
    every: int
    network_params: Callable[[PyTree], PyTree] = lambda params: params

    def __post_init__(self) -> None:
        # Before the first step, and without anyone's parameters.
        others = load_others(self.evaluation.run_dir, self.model_dir, read_record)
        check_chain(sorted([*others, self.record], key=lambda one: one.stage.draw_size))

    @property
    def follower(self) -> Follower:
        """The evaluations of the run."""
        alone = _place(self.evaluation.run_dir) == _place(self.model_dir)
        return Follower(config=self.evaluation, stage=None if alone else run_name(self.model_dir))

    def wants(self, step: int) -> bool:
        """True every `every` steps."""
        return step % self.every == 0

    def before_step(self, info: StepInfo) -> None:
        """Runs the evaluators, unless the step has their results."""
        follower = self.follower

        def load() -> Cascade:
            # What a killed run left is of parameters that are perhaps not bit for bit these.
            remove_tree(follower.folder(info.step))
            return self._cascade(info.step, self.network_params(info.state.ema_params))

        follower.evaluate(info.step, load, LEASE_S + 5 if is_remote(self.model_dir) else 0.0)
        if self.free_encoder:
            self.encoder.release()

    def on_save(self, info: StepInfo) -> None:
        """Notes the best checkpoint: only now is this step among them."""
        self.follower.note_best()

    def _cascade(self, step: int, params: PyTree) -> Cascade:
        fields = {field.name: getattr(self.record, field.name) for field in dataclasses.fields(self.record)}
        weights = Weights(params, as_path(self.model_dir))
        own = TrainedStage(**fields, weights=weights, checkpoint=f"training_{step}")
        stages = sorted(
            [*load_others(self.evaluation.run_dir, self.model_dir, load_stage), own],
            key=lambda one: one.stage.draw_size,
        )
        check_chain(stages)
        # One stage after the other: the state of training needs its memory too.
        mesh = self.mesh if self.mesh.size > 1 else None
        return Cascade(stages=tuple(stages), encoder=self.encoder, mesh=mesh, weights="offload")
