"""A trained stage away from where it was trained: moved, of an older version, hostile, damaged."""

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from imagen_jax.checkpoints import checkpoints, folders, marks, proof
from imagen_jax.checkpoints.trained_stage import StageRecord
from imagen_jax.checkpoints.upgrade import upgrade_run
from imagen_jax.errors import UserError
from imagen_jax.finetune.source import load_stage
from imagen_jax.main import main
from imagen_jax.sampling.cascade import Cascade
from imagen_jax.text.encoder import TextConfig
from imagen_jax.text.encoders.t5 import T5Config
from imagen_jax.text.weights.pretrained import Pretrained
from tests.evals import measuring

REPOSITORY = Path(__file__).resolve().parents[2]
# Operative configs that the version of commit 69f6f65 wrote for the stages of these tests.
OLD_CONFIGS = REPOSITORY / "tests" / "golden" / "run_of_0_1"
CAPTION = ["a red cube"]


@pytest.fixture
def cascade_dir(root: Path, tmp_path: Path) -> Path:
    """A copy of the stages alone, under another name: no corpus, no store, no vocabulary beside them."""
    for stage in ("base", "sr"):
        shutil.copytree(root / stage / "checkpoints", tmp_path / "moved" / stage / "checkpoints")
    return tmp_path / "moved"


def newest(run: Path) -> Path:
    return folders.existing(run, None)


def rewrite(checkpoint: Path, change) -> None:
    """Changes a record as someone who also mends the digests would."""
    path = checkpoint / "stage.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    proof.write_digests(checkpoint)


def make_old(run: Path, stage: str, store: Path) -> None:
    """Turns the checkpoints of a run into what version 0.1 left."""
    for step in folders.saved_steps(run):
        path = folders.checkpoint_dir(run, step)
        (path / "stage.json").unlink()
        shutil.rmtree(path / "vocabulary")
        text = (OLD_CONFIGS / f"{stage}.gin").read_text().replace("OLD_STORE", str(store))
        (path / "config.gin").write_text(text.replace("OLD_VOCABULARY", str(store.parent / "corpus/vocabulary.model")))
        proof.write_digests(path)


def test_a_moved_cascade_draws_the_same_from_another_directory(root, cascade_dir, monkeypatch):
    expected = Cascade.load(str(root)).sample(CAPTION, seed=3)
    monkeypatch.chdir(cascade_dir)
    drawn = Cascade.load(".").sample(CAPTION, seed=3)
    assert len(drawn) == 2 and all(np.array_equal(*pair) for pair in zip(drawn, expected, strict=True))


def test_a_bundle_of_the_run_draws_the_same(root, tmp_path, capsys):
    place = tmp_path / "bundle"
    assert main(["export", f"--from={root}", f"--to={place}", "--license=apache-2.0"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(place)
    names = {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}
    assert {"README.md", "training/base/versions.json", "stages/1-sr/vocabulary/vocabulary.model"} <= names
    assert 'license: "apache-2.0"' in (place / "README.md").read_text()
    expected, loaded = Cascade.load(str(root)).sample(CAPTION, seed=3), Cascade.load(str(place))
    assert all(np.array_equal(*pair) for pair in zip(loaded.sample(CAPTION, seed=3), expected, strict=True))
    # A bundle is exported once more, as any cascade.
    loaded.export(str(tmp_path / "again"))
    assert main(["export", f"--from={root}", f"--to={place}"]) == 2
    assert "is there already; give --overwrite" in capsys.readouterr().err


def test_another_vocabulary_in_its_place_is_refused_by_digest(root, cascade_dir):
    path = newest(cascade_dir / "base")
    (vocabulary,) = (path / "vocabulary").iterdir()
    original = vocabulary.read_bytes()
    other = original.replace(b"red", b"rqz")
    assert other != original
    vocabulary.write_bytes(other)
    with pytest.raises(UserError, match=r"vocabulary.model \(changed\)"):
        Cascade.load(str(cascade_dir))
    proof.write_digests(path)
    with pytest.raises(UserError, match="not the text encoder that the stages were trained with.*vocabulary: got"):
        Cascade.load(str(cascade_dir)).sample(CAPTION)


def test_what_lies_beside_a_checkpoint_is_never_executed(cascade_dir, tmp_path):
    touched = tmp_path / "executed"
    hostile = f"import os\nos.system.command = 'touch {touched}'\nconfig.TrainConfig.stage = @os.system()\n"
    for run in (cascade_dir / "base", cascade_dir / "sr"):
        (newest(run) / "config.gin").write_text(hostile)
        proof.write_digests(newest(run))
    Cascade.load(str(cascade_dir)).sample(CAPTION)
    for run in (cascade_dir / "base", cascade_dir / "sr"):
        shutil.rmtree(newest(run) / "vocabulary")
        (newest(run) / "stage.json").unlink()
        proof.write_digests(newest(run))
    with pytest.raises(UserError, match="older version.*upgrade_run --run_dir="):
        Cascade.load(str(cascade_dir))
    with pytest.raises(UserError, match="class 'system'|no TrainConfig|does not know"):
        upgrade_run(cascade_dir)
    assert not touched.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: {**data, "schema": 2}, "schema 2, this program reads 1; install a newer"),
        (lambda data: [], "is damaged"),
        (lambda data: {**data, "stage": data["sampling"]}, "no Stage under 'stage'"),
        (lambda data: {**data, "stage": {"type": "Popen"}}, "class 'Popen'"),
        (lambda data: {**data, "text_fingerprint": None}, "no text_fingerprint"),
        (lambda data: {**data, "text": {**data["text"], "vocabulary_path": "../../v.model"}}, "expected a path under"),
        (lambda data: {**data, "text": {**data["text"], "vocabulary_path": "/etc/passwd"}}, "expected a path under"),
        (lambda data: {**data, "text": {**data["text"], "vocabulary_path": "."}}, "expected a path under"),
    ],
)
def test_records_that_cannot_be_right_are_refused(cascade_dir, change, message):
    rewrite(newest(cascade_dir / "base"), change)
    with pytest.raises(UserError, match=message):
        Cascade.load(str(cascade_dir))


def test_a_deeply_nested_record_is_one_error(cascade_dir):
    path = newest(cascade_dir / "base")
    (path / "stage.json").write_text('{"schema": 1, "stage": ' + "[" * 100_000 + "]" * 100_000 + "}")
    proof.write_digests(path)
    with pytest.raises(UserError, match="is damaged"):
        Cascade.load(str(cascade_dir))


def test_runs_of_the_older_version_load_after_one_upgrade(root, cascade_dir):
    expected = load_stage(root / "sr")
    for stage in ("base", "sr"):
        make_old(cascade_dir / stage, stage, root / "store")
    with pytest.raises(UserError, match="upgrade_run"):
        Cascade.load(str(cascade_dir))
    done = upgrade_run(cascade_dir)
    assert {path.parent.parent.name for path in done} == {"base", "sr"} and upgrade_run(cascade_dir) == []
    found = load_stage(cascade_dir / "sr")
    assert (found.stage, found.sampling) == (expected.stage, expected.sampling)
    assert found.text_fingerprint == expected.text_fingerprint
    drawn = Cascade.load(str(cascade_dir)).sample(CAPTION, seed=3)
    again = Cascade.load(str(root)).sample(CAPTION, seed=3)
    assert all(np.array_equal(*pair) for pair in zip(drawn, again, strict=True))


def test_an_upgrade_wants_proof_of_the_vocabulary(root, cascade_dir, tmp_path):
    make_old(cascade_dir / "base", "base", tmp_path / "nowhere")
    with pytest.raises(UserError, match="add --vocabulary=PATH"):
        upgrade_run(cascade_dir / "base")
    # An upgrade that was killed has left this; it is not taken for a record.
    (newest(cascade_dir / "base") / "stage.json").write_text("{")
    assert upgrade_run(cascade_dir / "base", vocabulary=str(root / "corpus" / "vocabulary.model"))
    assert load_stage(cascade_dir / "base").stage.name == "base"
    with pytest.raises(UserError, match="no checkpoint under"):
        upgrade_run(tmp_path / "nothing")


def test_an_upgrade_refuses_another_vocabulary(root, cascade_dir, tmp_path):
    make_old(cascade_dir / "base", "base", root / "store")
    other = tmp_path / "other.model"
    other.write_bytes((root / "corpus" / "vocabulary.model").read_bytes().replace(b"red", b"rqz"))
    with pytest.raises(UserError, match="not the text encoder of the training.*vocabulary: got"):
        upgrade_run(cascade_dir / "base", vocabulary=str(other))
    assert not (newest(cascade_dir / "base") / "stage.json").exists()


def test_a_pretrained_encoder_is_found_where_it_moved_with_the_run(cascade_dir, tmp_path):
    record = StageRecord.read(newest(cascade_dir / "base"))
    sizes = T5Config(vocab_size=300, embed_dim=16, num_heads=2, head_dim=8, num_layers=1, mlp_dim=32)
    encoder = tmp_path / "project" / "encoders" / "t5"
    encoder.mkdir(parents=True)
    text = TextConfig(
        encoder=Pretrained(path=str(encoder), sizes=sizes), vocabulary_path=record.text.vocabulary_path, max_length=8
    )
    checkpoint = tmp_path / "project" / "run" / "checkpoints" / "checkpoint_1"
    for name, content in dataclasses.replace(record, text=text).files(checkpoint).items():
        (checkpoint / name).parent.mkdir(parents=True, exist_ok=True)
        (checkpoint / name).write_bytes(content)
    assert StageRecord.read(checkpoint).text.encoder.path == str(encoder)
    (tmp_path / "project").rename(tmp_path / "elsewhere")
    moved = StageRecord.read(tmp_path / "elsewhere" / "run" / "checkpoints" / "checkpoint_1")
    assert moved.text.encoder.path == str(tmp_path / "elsewhere" / "encoders" / "t5")
    asked = StageRecord.read(tmp_path / "elsewhere" / "run" / "checkpoints" / "checkpoint_1", text_encoder="here")
    assert asked.text.encoder.path == "here"


LOAD = """
import sys
from imagen_jax import Cascade
Cascade.load(sys.argv[1])
heavy = ("tensorflow", "seqio", "tensorflow_datasets", "imagen_jax.train", "imagen_jax.data", "gin", "optax")
print([name for name in heavy if name in sys.modules])
"""


def test_loading_needs_neither_tensorflow_nor_the_trainer(cascade_dir, tmp_path):
    child = subprocess.run(
        [sys.executable, "-c", LOAD, str(cascade_dir)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    assert child.stdout.strip() == "[]"


def test_the_record_names_the_run(cascade_dir):
    path = newest(cascade_dir / "base")
    record = StageRecord.read(path)
    digest = hashlib.sha256((path / "config.gin").read_bytes()).hexdigest()
    assert record.config_hash == digest[:12]


def test_each_checkpoint_is_followed_and_the_best_is_loaded(root, cascade_dir, tmp_path, capsys):
    """By the command; what was evaluated is the averaged parameters of that step."""
    gin_file = tmp_path / "follow.gin"
    gin_file.write_text(
        "from __gin__ import dynamic_registration\nfrom tests.evals import measuring\n"
        "include 'configs/runs/eval.gin'\nEVALUATORS = (@measuring.Totals(),)\n"
    )
    command = ["follow", f"--gin_file={gin_file}", f"--gin.RUN_DIR={cascade_dir}", "--once"]
    best = "--gin.EvalConfig.best=totals.json:totals/base"
    assert main([*command, best]) == 2 and "--stage=NAME" in capsys.readouterr().err
    base = cascade_dir / "base"
    assert folders.saved_steps(base) == [2, 4]
    totals = {step: measuring.total(checkpoints.load_params(base, step)) for step in (2, 4)}
    assert totals[2] != totals[4]
    for best_is, choose in (("max", max), ("min", min)):
        assert main([*command, best, "--stage=base", f"--gin.EvalConfig.best_is={best_is}"]) == 0
        for step in (2, 4):
            found = json.loads((base / "evaluations" / str(step) / "totals.json").read_text())["totals"]
            assert found["base"] == totals[step] and set(found) == {"base", "sr"}
        wanted = choose(totals, key=lambda step: totals[step])
        assert marks.best_step(base) == wanted
        loaded = Cascade.load(str(cascade_dir), steps={"base": "best"}).stages[0]
        assert loaded.checkpoint.startswith(f"checkpoint_{wanted}-")
    # Training to the end says so; the copy has its checkpoints alone.
    assert marks.finished_step(root / "base") == 4 and marks.finished_step(base) is None
    with pytest.raises(UserError, match="no stage 'other' with a checkpoint; there is base, sr"):
        Cascade.load(str(cascade_dir), steps={"other": 2})


def test_a_gin_file_of_a_cascade_names_the_checkpoint(cascade_dir, tmp_path):
    gin_file = tmp_path / "cascade.gin"
    gin_file.write_text(
        "from __gin__ import dynamic_registration\nfrom imagen_jax.sampling import loading\n"
        "loading.CascadeConfig.stages = (@loading.StageSource(),)\n"
        f"loading.StageSource.model_dir = '{cascade_dir}/base'\nloading.StageSource.step = 'best'\n"
    )
    with pytest.raises(UserError, match=r"there is no .*best.json"):
        Cascade.load(str(gin_file))
    marks.write_best(cascade_dir / "base", 2, {})
    assert Cascade.load(str(gin_file)).stages[0].checkpoint.startswith("checkpoint_2-")
