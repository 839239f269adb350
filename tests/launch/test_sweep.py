"""Sweeps: every point of a grid, with its overrides and its own place, by any launcher."""

import json
import textwrap

import pytest
from ml_collections import ConfigDict

from imagen_jax.errors import UserError
from launch import sweep
from launch.configs import sweep_demo
from launch.jobs.phases import read_phases


def sweep_of(pipeline, grid, **fields):
    config = ConfigDict({"launcher": "local", "settings": (), "out_dir": "runs/x", **fields})
    config.pipeline, config.grid = str(pipeline), grid
    return config.lock()


def test_a_grid_has_every_combination():
    assert list(sweep.points((("A", (1, 2)), ("B", ("x", "y z"))))) == [
        ("A=1", "B=x"), ("A=1", "B=y z"), ("A=2", "B=x"), ("A=2", "B=y z"),
    ]  # fmt: skip


def test_each_point_has_its_overrides_and_its_place():
    configs = sweep.configs_of(sweep_demo.get_config())
    assert [config.out_dir for config in configs] == [f"runs/sweep/{number}" for number in range(4)]
    commands = [phase.commands[0] for phase in read_phases(configs[3]) if phase.name.startswith("train_")]
    assert len(commands) == 2
    for words in commands:
        assert list(words[-2:]) == ["--gin.LEARNING_RATE=0.003", "--gin.BATCH_SIZE=32"]


@pytest.mark.parametrize("launcher", ["tpu_vm", "gke", "slurm"])
def test_other_launchers_get_names_of_their_own(launcher, capsys):
    pipeline = {"tpu_vm": "tpu_v4_8", "gke": "gke_v5e", "slurm": "slurm_gpu"}[launcher]
    fields = ["corpus_dir=c", "t5_path=t", "vocabulary=v", "stages.base.overrides=('SEED=7',)"]
    fields += {"tpu_vm": ["project=p", "package=gs://b/p"], "gke": ["image=i"], "slurm": ["partition=gpu"]}[launcher]
    config = sweep_of(
        f"launch/configs/{pipeline}.py", (("LEARNING_RATE", (1e-4, 3e-4)),), launcher=launcher, settings=tuple(fields),
        out_dir="/shared/sweep",
    )  # fmt: skip
    assert sweep.launch([config], "run", dry_run=True) == 0
    told = capsys.readouterr().out
    for number, rate in enumerate(("0.0001", "0.0003")):
        assert f"-{number}-train-base" in told and f"--gin.LEARNING_RATE={rate}" in told
        assert f"--gin.MODEL_DIR=/shared/sweep/{number}/base" in told
    assert "--gin.SEED=7" in told


def test_on_this_machine_one_runs_after_the_other(tmp_path):
    (tmp_path / "pipeline.py").write_text(
        textwrap.dedent(
            f"""
            from ml_collections import ConfigDict
            def get_config():
                config = ConfigDict({{"out_dir": "", "overrides": ()}})
                config.phases = (("note", "cp {tmp_path}/text {{out_dir}}/{{overrides}}"),)
                return config.lock()
            """
        )
    )
    (tmp_path / "text").write_text("text")
    config = sweep_of(tmp_path / "pipeline.py", (("A", (1, 2)),), out_dir=str(tmp_path / "out"))
    assert sweep.launch([config], "run", dry_run=False) == 0
    assert [(tmp_path / "out" / str(number) / f"A={number + 1}").read_text() for number in (0, 1)] == ["text"] * 2
    assert json.loads((tmp_path / "out" / "sweep.json").read_text())[1] == {"point": 1, "overrides": ["A=2"]}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"launcher": "cloud"}, r"--config\.launcher \('cloud'\)"),
        ({"pipeline": "launch/configs/none.py"}, "is no config file"),
        ({"settings": ("nope=1",)}, "'nope=1' does not fit"),
        ({"settings": ("seed=many",)}, "'seed=many' does not fit"),
        ({"grid": (("A", ()),)}, "without values"),
    ],
)
def test_what_cannot_be_is_refused(fields, message):
    config = sweep_of("launch/configs/demo_short.py", (("A", (1,)),))
    for name, value in fields.items():
        config[name] = value
    with pytest.raises(UserError, match=message):
        sweep.launch([config], "run", dry_run=True)
