"""Evaluators during training: the parameters and pictures of the checkpoint beside, once a step, the best kept."""

import dataclasses
import json
from pathlib import Path
from typing import ClassVar

import jax
import numpy as np
import pytest

from imagen_jax import gin_config
from imagen_jax.checkpoints import checkpoints, folders, marks
from imagen_jax.checkpoints.trained_stage import StageRecord
from imagen_jax.checkpoints.trees import TrainState
from imagen_jax.commands.parts import training
from imagen_jax.errors import UserError
from imagen_jax.evals import evaluate_hook, follow
from imagen_jax.evals.alignment import Alignment
from imagen_jax.evals.evaluate_hook import EvaluateHook, check_evaluation
from imagen_jax.evals.evaluator import EvalConfig
from imagen_jax.files import write_json
from imagen_jax.sampling import cascade as cascades
from imagen_jax.sampling.cascade import Cascade
from imagen_jax.stage.sampling_config import SamplingConfig
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.train import loop
from imagen_jax.train.config import EvaluateConfig, TrainConfig
from imagen_jax.train.hooks import StepInfo
from imagen_jax.train.setup import TrainSetup
from imagen_jax.train.state import init_state
from tests.train import tiny_run


class Draw:
    """Writes images.npy of two captions and score.json; notes the steps and stages that it sees."""

    def __init__(self, scores: dict[int, float] | None = None, fail: int | None = None):
        self.scores, self.fail = scores or {}, fail
        self.steps: list[int] = []
        self.names: list[str] = []

    def evaluate(self, cascade: Cascade, run_dir: str) -> None:
        step = int(Path(run_dir).name)
        self.steps.append(step)
        self.names = cascade.names
        np.save(Path(run_dir) / "images.npy", cascade.sample(["a", "bb"], label="")[-1])
        if step == self.fail:
            raise UserError("the scorer failed")
        write_json(f"{run_dir}/score.json", {"score": self.scores.get(step, 0.0)})


class Static(Draw):
    needs_cascade: ClassVar[bool] = False


@pytest.fixture(autouse=True)
def tiny_data(monkeypatch):
    tiny_run.use_tiny_data(monkeypatch.setattr)
    monkeypatch.setattr(cascades, "drawing_devices", lambda: jax.local_devices()[:1])


def evaluated(run: Path, every: int, evaluator: Draw, run_dir: Path | None = None, **more: str) -> EvaluateConfig:
    return EvaluateConfig(
        every=every, evaluation=EvalConfig(run_dir=str(run_dir or run), evaluators=(evaluator,), **more)
    )


def state_of(config: TrainConfig) -> TrainState:
    setup = TrainSetup.build(config)
    return init_state(setup.objective, setup.settings.optimizer, 0)


def config_of(run: Path, **changes: object) -> TrainConfig:
    return tiny_run.tiny_config(run, **{"sampling": SamplingConfig(num_steps=2), **changes})


def images(run: Path, step: int) -> np.ndarray:
    return np.load(run / follow.FOLDER / str(step) / "images.npy")


def test_a_run_that_goes_on_draws_what_follow_draws_and_nothing_twice(tmp_path, monkeypatch):
    """An evaluation that failed begins anew in an empty folder; the best checkpoint is noted and kept."""
    encoders: list[TextEncoder] = []

    def opened(config: TrainConfig) -> TextEncoder:
        encoders.append(TextEncoder(config.text))
        return encoders[-1]

    monkeypatch.setattr(loop, "check_text", opened)
    run, scores = tmp_path / "run", {2: 3.0, 4: 1.0, 6: 2.0}
    failing, during, beside = Draw(scores, fail=6), Draw(scores), Draw(scores)
    best = {"best": "score.json:score", "best_is": "min"}
    config = config_of(run, num_steps=6, save_every=2, keep_checkpoints=1)
    with pytest.raises(UserError, match="the scorer failed"):
        training.run(tiny_run.with_changes(config, evaluate=evaluated(run, 2, failing, **best)))
    assert failing.steps == [2, 4, 6] and folders.saved_steps(run) == [2, 4]
    left = run / follow.FOLDER / "6" / "half.json"
    left.write_text("{")
    training.run(tiny_run.with_changes(config, evaluate=evaluated(run, 2, during, **best)))
    assert during.steps == [6] and not left.exists()
    assert json.loads((run / follow.FOLDER / "4" / follow.DONE).read_text())["stages"] == {"base": "training_4"}
    expected = {"step": 4, "value": 1.0, "metric": "score.json:score", "best_is": "min"}
    assert json.loads((run / marks.BEST).read_text()) == expected
    assert folders.saved_steps(run) == [4, 6]
    # Nothing of the encoder stays beside the training.
    assert len(encoders) == 2 and "_loaded" not in vars(encoders[1])

    (run / follow.FOLDER).rename(tmp_path / "during")
    follow.follow(EvalConfig(run_dir=str(run), evaluators=(beside,)), once=True)
    assert beside.steps == [4, 6]
    for step in (4, 6):
        np.testing.assert_array_equal(images(run, step), np.load(tmp_path / "during" / str(step) / "images.npy"))
    assert (images(run, 4) != images(run, 6)).any()


def test_the_stages_of_the_cascade_directory_are_drawn_too(tmp_path):
    draw, plain = Draw(), config_of(tmp_path / "base")
    encoder = TextEncoder(plain.text)
    small = {"stage": tiny_run.tiny_stage(image_size=4), "data": dataclasses.replace(plain.data, image_size=4)}
    base = tiny_run.with_changes(plain, **small)
    checkpoints.save(base.model_dir, state_of(base), {}, loop.companions(base, encoder, ""), keep=1)

    def hook(name: str, **stage: int) -> EvaluateHook:
        return EvaluateHook(
            evaluation=evaluated(tmp_path / name, 1, draw, run_dir=tmp_path).evaluation,
            model_dir=str(tmp_path / name),
            record=StageRecord.of_run(tiny_run.tiny_stage(name=name, **stage), plain.sampling, encoder, ""),
            mesh=plain.mesh.build(),
            encoder=encoder,
            free_encoder=True,
            every=1,
        )

    large = {"stage": tiny_run.tiny_stage(name="sr", low_res_size=4)}
    large["data"] = dataclasses.replace(plain.data, low_res_size=4)
    state = state_of(tiny_run.with_changes(plain, **large))
    hook("sr", low_res_size=4).before_step(StepInfo(step=7, state=state))
    assert draw.names == ["base", "sr"] and images(tmp_path / "sr", 7).shape == (2, 8, 8, 3)
    with pytest.raises(UserError, match="takes no images from below"):
        hook("other")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"evaluation": Draw()}, "EvaluateConfig.evaluation .* must be EvalConfig"),
        ({"evaluation": EvalConfig(run_dir="runs/x", evaluators=(Static(),))}, "no evaluator of this file looks at"),
        ({"model_dir": "runs/y/base"}, r"EvalConfig.run_dir \(runs/x\) must be .*own directory \(runs/y/base\)"),
        ({"every": 3}, r"every \(3\) must be a multiple of save_every \(2\)"),
    ],
)
def test_evaluations_that_cannot_be_are_refused_before_training(change, message):
    given = EvalConfig(run_dir="runs/x", evaluators=(Draw(),), best="score.json:score")
    values = {"evaluation": given, "model_dir": "runs/x/base", "every": 4, "save_every": 2}
    assert check_evaluation(**values) is given
    assert check_evaluation(**{**values, "model_dir": "runs/x/"}) is given
    with pytest.raises(UserError, match=message):
        check_evaluation(**{**values, **change})


def test_several_processes_are_told_to_follow(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate_hook.jax, "process_count", lambda: 2)
    with pytest.raises(
        UserError, match="TrainConfig.evaluate is for one process, and there are 2; .*imagen_jax follow"
    ):
        training.run(config_of(tmp_path, evaluate=evaluated(tmp_path, 2, Draw())))
    assert not list(tmp_path.iterdir())


def test_gin_files_of_training_and_of_eval_are_given_together():
    files = ["configs/experiments/demo_base.gin", "configs/experiments/demo_eval.gin", "configs/runs/evaluate.gin"]
    macros = {"RUN_DIR": "runs/x", "MODEL_DIR": "runs/x/base", "CORPUS_DIR": "c", "STORE_DIR": "s"}
    bindings = [f"{name} = '{value}'" for name, value in {**macros, "VOCABULARY_PATH": "bytes"}.items()]
    config = gin_config.load(TrainConfig, files, [*bindings, "EVALUATE_EVERY = 2400"])
    assert config.evaluate.every == 2400
    assert isinstance(config.evaluate.evaluation.evaluators[0], Alignment)
    assert check_evaluation(config.evaluate.evaluation, config.model_dir, 2400, config.save_every).run_dir == "runs/x"
    with pytest.raises(UserError, match=r"evaluate.every \(0\) must be an integer >= 1"):
        gin_config.load(TrainConfig, files, [*bindings, "EVALUATE_EVERY = 0"])
