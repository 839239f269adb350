"""Following a run: each checkpoint once, by however many followers, and the best by a number of the results."""

import json
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from imagen_jax.checkpoints import folders, marks
from imagen_jax.errors import UserError
from imagen_jax.evals import follow as followers
from imagen_jax.evals.evaluator import EvalConfig
from imagen_jax.evals.follow import follow, number_at
from imagen_jax.files import as_path, files_under, locks, make_dirs, write_bytes, write_json
from imagen_jax.sampling.cascade import Cascade
from tests.untrained import untrained_cascade


def put(run: str, *steps: int) -> None:
    """Checkpoints of which only the names and the last file matter here."""
    for step in steps:
        path = folders.checkpoint_dir(run, step)
        make_dirs(path)
        write_bytes(path / folders.DIGESTS, b"{}")


@dataclass
class Score:
    """Writes score.json, whatever the cascade is, and tells of it."""

    score: Callable[[int], float] = float
    then: Callable[[int], object] = lambda step: None

    def __post_init__(self):
        self.steps: list[int] = []

    def evaluate(self, cascade: Cascade, run_dir: str) -> None:
        step = int(run_dir.rsplit("/", 1)[1])
        self.steps.append(step)
        write_json(f"{run_dir}/score.json", {"at": [{"w": 0.0}, {"w": self.score(step)}]})
        self.then(step)


@pytest.fixture(autouse=True)
def no_reading(monkeypatch):
    """Every checkpoint is one and the same cascade."""
    cascade = untrained_cascade()
    monkeypatch.setattr(Cascade, "load", lambda path, steps: cascade)


@pytest.fixture(params=["folder", "gs"])
def run_dir(request, tmp_path):
    if request.param == "folder":
        return str(tmp_path / "run")
    request.getfixturevalue("bucket")
    return "gs://bucket-a/run"


def config(run: str, score: Score, **more: str) -> EvalConfig:
    return EvalConfig(run_dir=run, evaluators=(score,), **more)


def best(run: str) -> dict:
    return json.loads((as_path(run) / marks.BEST).read_text())


def test_every_checkpoint_once_and_the_oldest_first(run_dir):
    put(run_dir, 8, 2, 10)
    score = Score()
    follow(config(run_dir, score), once=True)
    put(run_dir, 12)
    follow(config(run_dir, score), once=True)
    assert score.steps == [2, 8, 10, 12]
    found = files_under(as_path(run_dir) / followers.FOLDER)
    assert set(found) == {f"{step}/{name}" for step in (2, 8, 10, 12) for name in ("score.json", followers.DONE)}
    assert not (as_path(run_dir) / marks.BEST).exists()


def test_it_ends_with_the_run(tmp_path):
    run = str(tmp_path)

    def go_on(step: int) -> None:
        if step < 6:
            put(run, step + 1)
        else:
            marks.write_finished(run, 6)

    marks.write_finished(run, 1)  # Of a run that was made longer.
    put(run, 1)
    score = Score(then=go_on)
    follow(config(run, score), poll_s=0.01)
    assert score.steps == [1, 2, 3, 4, 5, 6]


def test_two_followers_share_a_run(run_dir):
    steps = [1, 2, 3, 4]
    put(run_dir, *steps)
    scores = [Score(then=lambda _: time.sleep(0.05)) for _ in range(2)]
    threads = [
        threading.Thread(target=follow, args=(config(run_dir, one, best="score.json:at/1/w"),), kwargs={"once": True})
        for one in scores
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(scores[0].steps + scores[1].steps) == steps and all(one.steps for one in scores)
    assert best(run_dir)["step"] == 4


def test_what_a_stopped_follower_had_begun_is_done_again(run_dir):
    def stop(step: int) -> None:
        raise KeyboardInterrupt

    put(run_dir, 3)
    with pytest.raises(KeyboardInterrupt):
        follow(config(run_dir, Score(then=stop)), once=True)
    score = Score()
    follow(config(run_dir, score), once=True)
    assert score.steps == [3]


def test_the_lease_of_a_dead_follower_is_taken_over(bucket, monkeypatch):
    monkeypatch.setattr(locks, "LEASE_S", 0.2)
    run = "gs://bucket-a/run"
    put(run, 3)
    owner = {"host": "far", "machine": "another", "process": 7, "nonce": "0"}
    write_bytes(f"{run}/{followers.FOLDER}/3.lock", json.dumps(owner).encode())
    score = Score()
    follow(config(run, score), once=True)
    assert score.steps == [3]


def test_a_checkpoint_that_goes_while_it_is_read_is_told_and_left_out(tmp_path, monkeypatch, capsys):
    run = str(tmp_path / "run")
    put(run, 2, 4)
    cascade = untrained_cascade()

    def load(path: str, steps: dict[str, int]) -> Cascade:
        assert path == run
        if steps == {"run": 2}:
            shutil.rmtree(folders.checkpoint_dir(run, 2))
            raise FileNotFoundError("arrays")
        return cascade

    monkeypatch.setattr(Cascade, "load", load)
    score = Score()
    follow(config(run, score), once=True)
    assert score.steps == [4]
    assert "checkpoint 2 was removed before it was read" in capsys.readouterr().err


def test_a_checkpoint_that_is_there_and_cannot_be_read_ends_it(tmp_path, monkeypatch):
    def load(path: str, steps: dict[str, int]) -> Cascade:
        raise UserError("damaged")

    put(str(tmp_path), 2)
    monkeypatch.setattr(Cascade, "load", load)
    with pytest.raises(UserError, match="damaged"):
        follow(config(str(tmp_path), Score()), once=True)


@pytest.mark.parametrize(("best_is", "step", "value"), [("max", 3, 4.0), ("min", 2, -9.0)])
def test_the_best_is_among_those_that_are_there(tmp_path, best_is, step, value):
    run, values = str(tmp_path), {1: 100.0, 2: -9.0, 3: 4.0, 4: 4.0, 5: float("nan")}
    put(run, *values)
    follow(config(run, Score(score=values.get)), once=True)
    folders.remove(folders.checkpoint_dir(run, 1))
    # Results that are there already count too.
    named = {"best": "score.json:at/1/w", "best_is": best_is}
    follow(config(run, Score(score=values.get), **named), once=True)
    assert best(run) == {"step": step, "value": value, "metric": "score.json:at/1/w", "best_is": best_is}
    folders.remove_old(run, 1)
    assert folders.saved_steps(run) == [step, 5]
    assert folders.existing(run, "best") == folders.checkpoint_dir(run, step)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("other.json:x", "cannot be read"),
        ("score.json:at/2", "has no '2' there; choose from 0; 1"),
        ("score.json:at/1/w/x", "has no 'x' there; nothing lies in it"),
        ("score.json:at/1", "has no number there but {'w': 7.0}"),
    ],
)
def test_a_number_that_is_not_there_is_told(tmp_path, metric, message):
    (tmp_path / "1").mkdir()
    Score(score=lambda step: 7.0).evaluate(untrained_cascade(), str(tmp_path / "1"))
    with pytest.raises(UserError, match=message):
        number_at(tmp_path / "1", metric)


def test_a_cascade_needs_the_name_of_a_stage(tmp_path):
    put(str(tmp_path / "sr"), 2)
    put(str(tmp_path / "base"), 2)
    with pytest.raises(UserError, match="holds the stages base, sr; say by --stage=NAME"):
        follow(config(str(tmp_path), Score()), once=True)
    score = Score()
    follow(config(str(tmp_path), score), stage="base", once=True)
    assert score.steps == [2] and (tmp_path / "base" / followers.FOLDER / "2" / followers.DONE).is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"poll_s": 0.0}, "--poll"),
        ({"poll_s": float("nan")}, "--poll"),
        ({"stage": "../other"}, "--stage"),
        ({"stage": "absent"}, "absent is not there; check the path and --stage"),
    ],
)
def test_options_out_of_range_are_refused(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        follow(config(str(tmp_path), Score()), once=True, **options)


@pytest.mark.parametrize(
    "settings", [{"best": "eval.json"}, {"best": "eval:x"}, {"best": "a.json:x//y"}, {"best_is": "x"}]
)
def test_settings_of_the_best_are_checked(tmp_path, settings):
    with pytest.raises(UserError, match="EvalConfig.best"):
        config(str(tmp_path), Score(), **settings)
