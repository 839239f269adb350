"""The console command: modes, flags, joins and what people read when something is wrong."""

import errno
import importlib
import json
import os
import socket
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import pytest

from imagen_jax.commands.parts.sample_options import SampleOptions
from imagen_jax.errors import UserError
from imagen_jax.main import main

REPOSITORY = Path(__file__).resolve().parent.parent
PATHS = [f"--gin.{name}=nowhere" for name in ("CORPUS_DIR", "STORE_DIR", "MODEL_DIR", "VOCABULARY_PATH")]
MODES = ["build_corpus", "cache_text", "train", "plan", "sample", "eval", "report"]

FAKE = """
import json, sys
from dataclasses import asdict, dataclass
from imagen_jax.errors import UserError

@dataclass(frozen=True, kw_only=True)
class Config:
    size: int = 64

    def __post_init__(self):
        if self.size % 16:
            raise UserError(f"size ({self.size}) must be divisible by 16; choose 64 or 80")

def run(config, operative_config=None, profile_steps=None):
    print(json.dumps({"ran": config.size, "operative": operative_config, "profiled": profile_steps}))

def dry_run(config):
    print(f"parameters for size {config.size}")

def sample(checkpoint, captions, options):
    given = {name: value for name, value in asdict(options).items() if value is not None}
    print(json.dumps({"checkpoint": checkpoint, "captions": captions, **given}))

def report(run_dir):
    return f"{run_dir}/report.html"

def fail_on_last(config, operative_config, profile_steps):
    import jax
    from jax.experimental import multihost_utils
    print("processes", jax.process_count(), flush=True)
    if jax.process_index() == 1:
        raise UserError("this host is out of disk space")
    multihost_utils.sync_global_devices("waits for the other host")
"""


TEXT_GIN = """
from __gin__ import dynamic_registration
from imagen_jax.text.store import cache
from imagen_jax.text import encoder
from imagen_jax.text.encoders import t5
CORPUS_DIR = %gin.REQUIRED
cache.CacheConfig.corpus_dir = %CORPUS_DIR
cache.CacheConfig.store_dir = 'store'
cache.CacheConfig.text = @encoder.TextConfig()
encoder.TextConfig.encoder = @t5.T5Config()
encoder.TextConfig.vocabulary_path = 'corpus/vocabulary.model'
encoder.TextConfig.max_length = 16
t5.T5Config.vocab_size = 128
t5.T5Config.embed_dim = 8
t5.T5Config.num_heads = 2
t5.T5Config.head_dim = 4
t5.T5Config.num_layers = 1
t5.T5Config.mlp_dim = 16
"""


@pytest.fixture
def joined(tmp_path, monkeypatch):
    """Joins every mode to a stand-in module; the current directory holds run.gin for it."""
    name = f"stand_in_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(FAKE)
    (tmp_path / "run.gin").write_text(
        textwrap.dedent(f"""
        from __gin__ import dynamic_registration
        import {name} as stand_in
        SIZE = 80
        stand_in.Config.size = %SIZE
        """)
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    fake = importlib.import_module(name)
    for room, members in {
        "text.store.cache": {"CacheConfig": fake.Config},
        "train.config": {"TrainConfig": fake.Config},
        "commands.parts.training": {"run": fake.run},
        "planning.dry_run": {"run": fake.dry_run},
        "evals.evaluator": {"EvalConfig": fake.Config, "run": fake.run},
        "commands.parts.sample_run": {"draw_to_files": fake.sample},
        "report.page": {"write_report": fake.report},
    }.items():
        room = f"imagen_jax.{room}"
        monkeypatch.setitem(sys.modules, room, types.ModuleType(room))
        vars(sys.modules[room]).update(members)
    monkeypatch.setattr("imagen_jax.commands.cache_text.cache_corpus", fake.run)
    return name


@pytest.mark.parametrize("mode", MODES)
def test_each_mode_has_help(mode, capsys):
    with pytest.raises(SystemExit) as exit:
        main([mode, "--help"])
    assert exit.value.code == 0
    assert f"imagen_jax {mode}" in capsys.readouterr().out


def test_help_lists_the_modes_and_loads_no_library():
    script = (
        "import sys; from imagen_jax.main import main\n"
        "for words in ['--help'], ['train', '--help'], ['sample', '--help']:\n"
        "    try: main(words)\n"
        "    except SystemExit: pass\n"
        "slow = {'jax', 'tensorflow', 'flax', 'gin', 'numpy'} & set(sys.modules)\n"
        "assert not slow, slow"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(f"    {mode}" in done.stdout for mode in MODES)


@pytest.mark.parametrize("mode", ["cache_text", "eval"])
def test_gin_modes_build_their_config_and_run(joined, capsys, mode):
    assert main([mode, "--gin_file=run.gin", "--gin.SIZE=96"]) == 0
    assert json.loads(capsys.readouterr().out)["ran"] == 96


def test_train_gets_the_operative_config(joined, capsys, tmp_path):
    assert main(["train", "--gin_file=run.gin", "--gin.SIZE=96"]) == 0
    first = json.loads(capsys.readouterr().out)
    (tmp_path / "config.gin").write_text(first["operative"])
    assert main(["train", "--gin_file=config.gin"]) == 0
    assert json.loads(capsys.readouterr().out) == first
    assert main(["train", "--gin_file=config.gin", "--profile_steps=3:4"]) == 0
    assert json.loads(capsys.readouterr().out) == first | {"profiled": "3:4"}


def test_gin_files_are_found_in_search_paths(joined, capsys, tmp_path):
    for folder, size in (("a", 16), ("b", 32)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{folder}.gin").write_text(f"include 'run.gin'\nSIZE = {size}\n")
    assert main(["eval", "--gin_search_paths=a,b", "--gin_file=a.gin", "--gin_file=b.gin"]) == 0
    assert json.loads(capsys.readouterr().out)["ran"] == 32


@pytest.mark.parametrize("flag", ["--dry_run", "--dry-run"])
def test_dry_run_prints_the_config_and_trains_nothing(joined, capsys, flag):
    assert main(["train", "--gin_file=run.gin", flag]) == 0
    out = capsys.readouterr().out
    assert "SIZE = 80" in out and "parameters for size 80" in out and "ran" not in out


@pytest.mark.parametrize("captions_first", [True, False])
def test_sample_passes_captions_and_settings_on(joined, capsys, tmp_path, captions_first):
    (tmp_path / "prompts.txt").write_text("a blue ring\n\n  two stars \n", encoding="utf-8")
    captions = ["a red cube", "a cat"]
    flags = (
        "--checkpoint runs/demo --output out --prompts_file prompts.txt --guidance_weight 3 --seed 5 "
        "--stage base --num_steps 32 --negative_prompt grey --aug_level 0.1 --overwrite --size 64x96 --border 1,2,3,4"
    ).split()
    assert main(["sample", *(captions + flags if captions_first else flags + captions)]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "checkpoint": "runs/demo",
        "captions": ["a red cube", "a cat", "a blue ring", "two stars"],
        "output": "out",
        "guidance_weight": 3.0,
        "aug_level": 0.1,
        "num_steps": 32,
        "negative_prompt": "grey",
        "seed": 5,
        "stage": "base",
        "overwrite": True,
        "size": [64, 96],
        "border": [1, 2, 3, 4],
        "mode": "text",
        "batch_size": 64,
        "weights": "auto",
        "spatial": 1,
        "lora": [],
        "embedding": [],
        "num_images": 1,
        "list": False,
    }


def test_the_sample_flags_offer_every_mode_and_sampler_there_is():
    from imagen_jax.commands.parts import sample_options
    from imagen_jax.sampling import cascade
    from imagen_jax.stage import sampler_names

    assert cascade.MODES == sample_options.MODES and cascade.WEIGHTS == sample_options.WEIGHTS
    assert tuple(sampler_names.SAMPLERS) == sample_options.SAMPLERS


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"mode": "paint"}, "--mode ('paint') must be one of text, image_to_image"),
        ({"weights": "none"}, "--weights ('none') must be one of auto, resident, offload"),
        ({"sampler": "euler"}, "--sampler ('euler') must be one of ddpm"),
        ({"thresholding": "hard"}, "--thresholding ('hard') must be one of dynamic, static, none"),
        ({"batch_size": 0}, "--batch_size (0) must be an integer >= 1"),
        ({"tile_overlap": 8}, "--tile_overlap needs --tile_size"),
    ],
)
def test_sample_options_refuse_what_cannot_be(options, expected):
    with pytest.raises(UserError) as refused:
        SampleOptions(output="out", **options)
    assert expected in str(refused.value)


def test_a_flag_that_is_zero_or_empty_was_given():
    options = SampleOptions(output="out", strength=0.0, negative_prompt="")
    assert options.given("mask", "strength", "negative_prompt") == {"strength": 0.0, "negative_prompt": ""}


def test_a_border_of_one_number_is_a_list_too(joined, capsys):
    assert main(["sample", "--checkpoint=x", "--output=y", "--border=3", "a cat"]) == 0
    assert json.loads(capsys.readouterr().out)["border"] == [3]


def test_plan_passes_its_flags_on(monkeypatch, tmp_path):
    from imagen_jax.planning import plan

    calls = []
    monkeypatch.setattr(plan, "run", lambda *words: calls.append(words))
    paths = [f"--gin.{name}=x" for name in ("CORPUS_DIR", "STORE_DIR", "MODEL_DIR", "VOCABULARY_PATH")]
    flags = "--topology=v4-512 --global_batch_size=2048 --num_slices=2 --optimization_level=default --json=p.json"
    gin_file = "--gin_file=configs/experiments/demo_base.gin"
    assert main(["plan", gin_file, *paths, *flags.split(), "--sampler", "--search"]) == 0
    ((config, options, path, search),) = calls
    assert config.stage.name == "base" and path == "p.json" and search
    assert options == plan.PlanOptions(
        topology="v4-512", num_slices=2, global_batch_size=2048, optimization_level="default", sampler=True
    )


def test_report_gets_its_directory(joined, capsys):
    assert main(["report", "--run_dir", "runs/demo"]) == 0
    assert capsys.readouterr().out == "runs/demo/report.html\n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["train", "--gin_file=run.gin", "--gin.SIZE=65"],
            r"size (65) must be divisible by 16; choose 64 or 80",
        ),
        (["train", "--gin_file=run.gin", "--gin.SIZ=64"], "did you mean SIZE?"),
        (["train", "--gin_file=run.gin", "--gin.SIZE"], "--gin.SIZE=VALUE"),
        (["train"], "--gin_file=FILE"),
        (
            ["train", "--gin_file=run.gin", "--num_processes=2"],
            "--coordinator_address and --process_id missing",
        ),
        (
            ["train", "--coordinator_address=localhost:1", "--num_processes=2", "--process_id=2"],
            "--process_id (2) must be from 0 to 1",
        ),
        (["sample", "--checkpoint=x", "--output=y"], "nothing to draw"),
        (["sample", "--checkpoint=x", "--output=y", "--prompts_file=absent.txt"], "absent.txt"),
    ],
)
def test_mistakes_end_with_code_2_and_plain_words(joined, capsys, words, expected):
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and expected in captured.err and captured.out == ""


@pytest.mark.parametrize(
    "words",
    [["paint"], [], ["train", "--gin_fil=x"], ["report", "--run_dir=x", "--gin.SIZE=3"], ["sample", "--size=64"]],
)
def test_unknown_words_show_the_usage(joined, capsys, words):
    with pytest.raises(SystemExit) as exit:
        main(words)
    assert exit.value.code == 2
    assert "usage: imagen_jax" in capsys.readouterr().err


def test_a_disk_that_fails_is_told_in_plain_words(joined, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "out/00000.png")

    monkeypatch.setattr(sys.modules["imagen_jax.report.page"], "write_report", full)
    assert main(["report", "--run_dir", "runs/demo"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "No space left on device: 'out/00000.png'. Free space" in error


def test_an_interrupt_is_told_in_plain_words(joined, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["imagen_jax.report.page"], "write_report", interrupted)
    assert main(["report", "--run_dir", "runs/demo"]) == 130
    told = capsys.readouterr().err
    assert told.startswith("interrupted") and "Traceback" not in told


@pytest.mark.parametrize("words", [["report", "--run_dir=x", "--a\nb\x1b[31m"], ["a\nb\x1b[31m"]])
def test_wrong_words_are_quoted_on_one_line(words, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words)
    told = capsys.readouterr().err
    assert ended.value.code == 2 and "a\\nb\\x1b[31m" in told.splitlines()[-1]
    assert "\x1b" not in told and told.startswith("usage: imagen_jax")


def test_an_argument_that_is_no_text_is_told(capsys):
    for words in (["sample", "--checkpoint=x", "--output=y", "a \udcff cube"], ["train", "--gin.X=\udcff"]):
        assert main(words) == 2
        assert "is not UTF-8 text" in capsys.readouterr().err


def test_no_traceback_reaches_the_user():
    command = [sys.executable, "-m", "imagen_jax.main", "sample", "--checkpoint=x", "--output=y"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 2
    assert done.stderr.startswith("error: nothing to draw") and "Traceback" not in done.stderr


def test_hosts_join_and_one_that_fails_does_not_hang_the_other(joined, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    script = textwrap.dedent(f"""
        import sys, types
        import {joined} as stand_in
        from imagen_jax.main import main
        config, loop = types.ModuleType("config"), types.ModuleType("training")
        config.TrainConfig, loop.run = stand_in.Config, stand_in.fail_on_last
        sys.modules |= {{"imagen_jax.train.config": config, "imagen_jax.commands.parts.training": loop}}
        sys.exit(main(sys.argv[1:]))
    """)
    flags = ["train", "--gin_file=run.gin", f"--coordinator_address=localhost:{port}", "--num_processes=2"]
    path = os.pathsep.join([str(REPOSITORY), str(tmp_path)])
    environment = {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
    hosts = [
        subprocess.Popen(
            [sys.executable, "-c", script, *flags, f"--process_id={index}"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        results = [(*host.communicate(timeout=60), host.returncode) for host in reversed(hosts)]
    finally:
        for host in hosts:
            host.kill()
    failed, waiting = results
    assert failed[0] == waiting[0] == "processes 2\n", results
    assert failed[2] == 2 and failed[1].rstrip().endswith("error: this host is out of disk space")
    assert waiting[2] != 0 and "another task died" in waiting[1]
