"""`imagen_jax follow`: evaluates every checkpoint of a run beside its training, once each.

    MODEL_DIR/evaluations/
      STEP/                  what the evaluators write of the checkpoint after STEP updates
      STEP/evaluated.json    written last: this step is done
      STEP.lock              the follower that is at it
    MODEL_DIR/best.json      the best of the checkpoints that are there, by EvalConfig.best

The lock is one of `imagen_jax.files`: several followers share a run, and what a dead one had begun is done again by
another. The oldest checkpoint is evaluated first, because it is the next to be removed.
"""

import dataclasses
import functools
import math
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from imagen_jax.checkpoints import folders, marks
from imagen_jax.errors import UserError, listed
from imagen_jax.evals.evaluator import EvalConfig
from imagen_jax.files import (
    LEASE_S,
    AnyPath,
    Lock,
    LockLostError,
    as_path,
    is_file_name,
    is_remote,
    locked,
    make_dirs,
    read_json,
    write_json,
)
from imagen_jax.sampling.cascade import Cascade
from imagen_jax.sampling.loading import run_name

FOLDER, DONE = "evaluations", "evaluated.json"
BEST_WAIT_S = LEASE_S + 5


def follow(config: EvalConfig, *, stage: str | None = None, once: bool = False, poll_s: float = 30.0) -> None:
    """Evaluates every checkpoint that is there and that comes, until the run is finished.

    Args:
      config: what to evaluate with; its `run_dir` need not be there yet, but with `once`.
      stage: name of the stage's folder whose checkpoints are followed, the other stages of the cascade are the newest
        there are; None: run_dir is the run directory of one stage.
      once: end as soon as nothing is left to do, also where training goes on.
      poll_s: seconds between looks, > 0.

    Raises:
      UserError: an evaluator fails, `best` is not in its result, run_dir is a cascade and `stage` is not given, or what
        is followed once is not there.
    """
    if not (poll_s > 0 and math.isfinite(poll_s)):
        raise UserError(f"--poll ({poll_s}) must be a number of seconds above 0, e.g. 30")
    if stage is not None and not is_file_name(stage):
        raise UserError(f"--stage ({stage!r}) must be the name of a folder in {config.run_dir}, e.g. base")
    check_needs_cascade(config)
    follower = Follower(config=config, stage=stage)
    if once and not as_path(follower.model_dir).is_dir():
        raise UserError(f"{follower.model_dir} is not there; check the path and --stage, or leave --once out to wait")
    follower.note_best()
    told = False
    while True:
        # Before the list is read: what is listed after the end is all there will be.
        finished = marks.finished_step(follower.model_dir)
        if follower.evaluate_one(LEASE_S + 5 if once and is_remote(follower.model_dir) else 0.0):
            told = False
            continue
        steps = folders.saved_steps(follower.model_dir)
        over = bool(steps) and finished == steps[-1] and all(map(follower.is_done, steps))
        if once or over:
            _say(f"{follower.model_dir}: {'the run is finished' if over else 'nothing is left to evaluate'}")
            return
        if not told:
            _say(f"{follower.model_dir}: waits for the next checkpoint")
            told = True
        time.sleep(poll_s)


def check_needs_cascade(config: EvalConfig) -> None:
    """Raises UserError where all evaluators measure what is there already, the same at every step."""
    if not any(getattr(one, "needs_cascade", True) for one in config.evaluators):
        raise UserError("no evaluator of this file looks at checkpoints; run `imagen_jax eval` once instead")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Follower:
    """The evaluations of one run's checkpoints.

    Args:
      config, stage: see `follow`.
    """

    config: EvalConfig
    stage: str | None = None

    def __post_init__(self) -> None:
        root = as_path(self.config.run_dir)
        if self.stage is not None or folders.saved_steps(root) or not root.is_dir():
            return
        if runs := [entry.name for entry in sorted(root.iterdir()) if folders.saved_steps(entry)]:
            raise UserError(
                f"{self.config.run_dir} holds the stages {', '.join(runs)}; say by --stage=NAME which is followed"
            )

    @property
    def model_dir(self) -> str:
        """Run directory that is followed."""
        return self.config.run_dir if self.stage is None else os.path.join(self.config.run_dir, self.stage)

    def folder(self, step: int) -> AnyPath:
        """Where the results of a step are."""
        return as_path(self.model_dir) / FOLDER / str(step)

    def is_done(self, step: int) -> bool:
        """Tells if a step has been evaluated."""
        return (self.folder(step) / DONE).exists()

    def evaluate_one(self, wait_s: float) -> bool:
        """Evaluates the oldest checkpoint that nobody has evaluated or is at.

        Args:
          wait_s: seconds to wait for a follower that is at it and gives no sign of life; a living one is passed over.

        Returns:
          False if there is none.
        """
        steps = folders.saved_steps(self.model_dir)
        return any(self.evaluate(step, functools.partial(self._load, step), wait_s) for step in steps)

    def evaluate(self, step: int, load: Callable[[], Cascade | None], wait_s: float) -> bool:
        """Evaluates one step, unless that is done or another is at it.

        Args:
          step: updates of its parameters.
          load: makes what is evaluated; called while no other is at it. None: it is gone, and has said so.
          wait_s: see `evaluate_one`.

        Returns:
          True if it is evaluated now.
        """
        if self.is_done(step):
            return False
        make_dirs(self.folder(step).parent)
        lock = Lock(self.folder(step).parent / f"{step}.lock")
        if not lock.acquire(wait_s, patient=False):
            return False
        try:
            cascade = None if self.is_done(step) else load()
            if cascade is None:
                return False
            self._evaluate(step, cascade, lock)
            return True
        except LockLostError as error:
            _say(f"{self.model_dir}: step {step} is left to another follower: {error}")
            return False
        finally:
            lock.release()

    def _evaluate(self, step: int, cascade: Cascade, lock: Lock) -> None:
        _say(f"{self.model_dir}: evaluates step {step}")
        folder, began = self.folder(step), time.monotonic()
        make_dirs(folder)
        for evaluator in self.config.evaluators:
            evaluator.evaluate(cascade, os.fspath(folder))
        lock.check()
        stages = {one.stage.name: one.checkpoint for one in cascade.stages}
        done = {"step": step, "stages": stages, "seconds": round(time.monotonic() - began, 1)}
        write_json(folder / DONE, done, end="\n")
        if self.config.best is not None:
            value = number_at(folder, self.config.best)
            _say(f"{self.model_dir}: step {step} has {value:g} at {self.config.best}")
            self.note_best()

    def _load(self, step: int) -> Cascade | None:
        try:
            return Cascade.load(self.config.run_dir, steps={run_name(self.model_dir): step})
        except Exception:
            # A trainer keeps the newest checkpoints only, and files that vanish fail in as many ways as there are
            # readers. Of a checkpoint that is still there every error goes on.
            if folders.is_there(folders.checkpoint_dir(self.model_dir, step)):
                raise
            _say(f"{self.model_dir}: checkpoint {step} was removed before it was read; it is left out")
            return None

    def note_best(self) -> None:
        """Writes best.json by the results of the checkpoints that are there; nothing where no number is finite.

        Raises:
          UserError: another follower does not give back the lock.
        """
        metric, sign = self.config.best, 1 if self.config.best_is == "max" else -1
        done = [] if metric is None else [step for step in folders.saved_steps(self.model_dir) if self.is_done(step)]
        if metric is None or not done:
            return
        path = as_path(self.model_dir) / FOLDER / "best.lock"
        with locked(path, BEST_WAIT_S) as held:
            if not held:
                raise UserError(f"{path} is held by {Lock(path).owner()}; end it, and run the same command again")
            # Read again, under the lock: who comes last has seen all.
            values = {step: self._number(step, metric) for step in folders.saved_steps(self.model_dir)}
            finite = {step: value for step, value in values.items() if math.isfinite(value)}
            if not finite:
                _say(f"{self.model_dir}: no checkpoint has a finite number at {metric}; {marks.BEST} stays as it is")
                return
            best = max(finite, key=lambda step: sign * finite[step])
            facts = {"value": finite[best], "metric": metric, "best_is": self.config.best_is}
            marks.write_best(self.model_dir, best, facts)

    def _number(self, step: int, metric: str) -> float:
        """NaN where an evaluation is not done, or has no such number."""
        if not self.is_done(step):
            return math.nan
        try:
            return number_at(self.folder(step), metric)
        except UserError:
            return math.nan


def number_at(folder: AnyPath, metric: str) -> float:
    """The number that `EvalConfig.best` names.

    Args:
      folder: of the results.
      metric: "FILE:NAME/NAME…"; in a list a NAME is a place, from 0.

    Raises:
      UserError: there is no such file, or no number there; says what there is instead.
    """
    file, _, place = metric.partition(":")
    try:
        value: Any = read_json(folder / file)
    except (OSError, ValueError) as error:
        raise UserError(f"EvalConfig.best ({metric!r}): {folder / file} cannot be read ({error})") from error
    for name in place.split("/"):
        inside = value if isinstance(value, dict) else dict(enumerate(value)) if isinstance(value, list) else {}
        known = {str(key): one for key, one in inside.items()}
        if name not in known:
            there = f"choose from {listed(list(known))}" if known else "nothing lies in it"
            raise UserError(f"EvalConfig.best ({metric!r}): {folder / file} has no {name!r} there; {there}")
        value = known[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"EvalConfig.best ({metric!r}): {folder / file} has no number there but {str(value)[:80]}")
    return float(value)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
