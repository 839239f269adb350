"""The local launcher: order, exit codes, measurements and its locked configs."""

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest
from absl.testing import flagsaver
from ml_collections import ConfigDict

from imagen_jax.commands.parts.command import GinCommand
from imagen_jax.errors import UserError
from imagen_jax.gin_config import load_with_operative, split_gin_flags
from imagen_jax.main import build_parser, find_modes
from launch import local
from launch.jobs import command_line
from launch.jobs.job import Restarts
from launch.jobs.local_job import COMMANDS
from launch.jobs.phases import Phase, read_phases
from launch.jobs.words import split_settings

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIGS = ["demo", "demo_short", "photos"]
ELSEWHERE = ["tpu_v4", "tpu_v4_8", "gke_v5e", "slurm_gpu"]
ELSEWHERE_FIELDS = ("out_dir", "corpus_dir", "t5_path", "vocabulary")


def launch(config_file, *flags, **options):
    command = [sys.executable, "-m", "launch.local", "--config", str(config_file), *flags]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, **options)


@pytest.fixture
def config_file(tmp_path):
    """Writes a pipeline config whose phases are small Python scripts in tmp_path."""

    def write(**scripts: str) -> Path:
        phases = []
        for name, script in scripts.items():
            (tmp_path / f"{name}.py").write_text(textwrap.dedent(script))
            phases.append((name, f"python {tmp_path}/{name}.py {{out_dir}} {{greeting}}"))
        path = tmp_path / "config.py"
        path.write_text(
            textwrap.dedent(
                f"""
                from ml_collections import ConfigDict
                def get_config():
                    config = ConfigDict()
                    config.out_dir = {str(tmp_path / "out")!r}
                    config.greeting = "hello"
                    config.phases = {tuple(phases)!r}
                    return config.lock()
                """
            )
        )
        return path

    return write


EVALUATION = {
    "guidance_weights": [1.0, 3.0],
    "alignment": {"1.0": {"single_both": 0.25}, "3.0": {"single_both": 0.75, "two_relation": 0.5}},
    "best_guidance_weight": 3,
    "unconditional_both": 0.125,
}


def test_phases_run_in_order_and_are_measured(config_file, tmp_path):
    path = config_file(
        first="import time; time.sleep(1.2)",
        second=f"""
            import json, pathlib, sys
            print("second says", *sys.argv[2:])
            (pathlib.Path(sys.argv[1]) / "eval.json").write_text(json.dumps({EVALUATION!r}))
        """,
        report="""
            import pathlib, sys
            out = pathlib.Path(sys.argv[1])
            (out / "seen.json").write_text((out / "metrics.json").read_text())
        """,
    )
    done = launch(path, "--config.greeting=good morning")
    assert done.returncode == 0, done.stderr
    assert "second says good morning" in done.stdout
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert list(metrics["seconds"]) == ["first", "second"]
    assert 1.2 <= metrics["seconds"]["first"] < 10 and metrics["seconds"]["second"] < metrics["seconds"]["first"]
    assert metrics["alignment"] == {"single_both": 0.75, "two_relation": 0.5, "unconditional_both": 0.125}
    # The report read all of it but its own time.
    seen = json.loads((tmp_path / "out" / "seen.json").read_text())
    assert seen["seconds"] == metrics["seconds"] and seen["alignment"] == metrics["alignment"]
    assert sum(metrics["seconds"].values()) - 0.11 <= seen["seconds_total"] <= metrics["seconds_total"]
    commands = json.loads((tmp_path / "out" / "commands.json").read_text())
    assert [item["phase"] for item in commands] == ["first", "second", "report"]
    assert commands[0]["command"] == f"python {tmp_path}/first.py {tmp_path}/out 'good morning'"


def test_first_failure_stops_with_its_code(config_file, tmp_path):
    path = config_file(
        first="import sys; sys.exit(7)",
        second="import sys, pathlib; pathlib.Path(sys.argv[1], 'ran').touch()",
    )
    done = launch(path)
    assert done.returncode == 7
    assert "phase first failed with exit code 7" in done.stderr
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["commands.json"]


def test_killed_phase_reports_its_signal(config_file):
    done = launch(config_file(first="import os, signal; os.kill(os.getpid(), signal.SIGKILL)"))
    assert done.returncode == 128 + signal.SIGKILL


def run_phase(*words):
    return local.run_phase(Phase(name="phase", commands=(words,)), 1, Restarts(max_restarts=0))


def test_a_command_that_is_no_program_is_told(capsys):
    assert run_phase("pyhton", "-c", "pass")[0] == 127
    told = capsys.readouterr()
    assert "phase phase begins with 'pyhton', which is no program here" in told.out + told.err


def test_a_bucket_that_is_not_there_is_one_line(bucket, config_file):
    done = launch(config_file(first="pass"), "--config.out_dir=gs://nowhere-to-be-found/x")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "does not exist; make it" in done.stderr


def test_settings_before_a_command_reach_it_alone():
    script = "import os, sys; sys.exit(int(os.environ['CODE']) - ('PATH' not in os.environ))"
    assert run_phase("CODE=9", "OTHER=a=b", "python", "-c", script)[0] == 9
    assert "CODE" not in os.environ


def test_memory_of_the_whole_process_tree_is_counted():
    allocate = "import time; held = b'x' * 200_000_000; time.sleep(2)"
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {allocate!r}])"
    code, seconds, peak = run_phase("python", "-c", nested)
    assert code == 0
    assert 2 <= seconds < 20
    assert 200e6 < peak < 400e6


def test_stopping_the_launcher_stops_the_phase(config_file, tmp_path):
    path = config_file(
        first="""
            import os, pathlib, sys, time
            part = pathlib.Path(sys.argv[1], "part")
            part.write_text(str(os.getpid()))
            part.rename(part.with_name("pid"))
            time.sleep(60)
        """
    )
    command = [sys.executable, "-m", "launch.local", "--config", str(path)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL) as launcher:
        pid_file = tmp_path / "out" / "pid"
        deadline = time.monotonic() + 30
        while not pid_file.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        launcher.terminate()
        assert launcher.wait(20) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


def refused(*words: str) -> str:
    """The one line on stderr of a launch that is refused, as the console command gives it."""
    command = [sys.executable, "-m", "imagen_jax.main", "script", "launch/local.py", *words]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1, done
    return done.stderr


def test_a_config_that_is_not_there():
    assert refused("--config=no/such.py") == (
        "error: --config=no/such.py: there is no such file; give a pipeline, such as launch/configs/demo.py\n"
    )


def test_no_config():
    assert refused() == "error: --config is missing; write --config launch/configs/demo.py\n"


def test_unknown_setting_is_refused(config_file, tmp_path):
    told = refused("--config", str(config_file(first="pass")), "--config.greting=hi")
    assert told == 'error: the config has no setting greting; Did you mean "greeting" instead of "greting"?\n'
    assert not (tmp_path / "out").exists()


@pytest.fixture
def refuse(monkeypatch, capsys):
    """Words of a command line, refused in this process → what stderr says."""

    def run(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["launch/local.py", *words])  # ml_collections looks there.
        with flagsaver.flagsaver(), pytest.raises(SystemExit) as ended:
            command_line.parse_flags(sys.argv, "launch/configs/demo.py")
        told = capsys.readouterr().err
        assert ended.value.code == 2 and told.startswith("error: ") and told.count("\n") == 1
        return told

    monkeypatch.chdir(REPOSITORY)
    return run


@pytest.mark.parametrize(("words", "told"), [
    (["--config"], "Missing value for flag --config; see --help"),
    (["--config=launch"], "no such file"),
    (["--config", ""], "no such file"),
    (["--config=README.md"], "--config=README.md makes no config (SyntaxError: "),
    (["--config=launch/configs/phases.py"], "makes no config (KeyError: 'get_config'); write it as launch/"),
    (["--config=launch/configs/demo.py", "more"], "unexpected argument more; settings are given as"),
    (["--config=launch/configs/demo.py", "--seed=1"], "Unknown command line flag 'seed'; see --help"),
    (["--config=launch/configs/demo.py", "--config.seed=x"], "--config.seed=x"),
    (["--config=launch/configs/demo.py", "--config.out_dir="], "--config.out_dir ('') must be the path"),
    (["--config=launch/configs/demo.py", "--config.out_dir=ftp://b/x"], "--config.out_dir (ftp://b/x) begins with"),
])  # fmt: skip
def test_words_that_are_refused(refuse, words, told):
    assert told in refuse(*words)


@pytest.mark.parametrize(
    "body", ["return None", "return {'out_dir': '', 'phases': ()}", "return ConfigDict()", "1 / 0"]
)
def test_files_that_make_no_config(refuse, tmp_path, body):
    (tmp_path / "c.py").write_text(f"from ml_collections import ConfigDict\ndef get_config():\n    {body}\n")
    assert f"--config={tmp_path}/c.py makes no config (" in refuse("--config", f"{tmp_path}/c.py")


@pytest.mark.parametrize("phases", [3, ("first",), (("first", ""),), (("first", "A=1"),), (("first", "python {no}"),),
                                    (("first", 3),), (("first", "python {"),), (("first", "python {0}"),)],
                         ids=str)  # fmt: skip
def test_phases_that_cannot_be_run(tmp_path, phases):
    with pytest.raises(
        UserError, match="phases cannot be run .*write pairs of a name and a command|has no setting no, which"
    ):
        local.run(ConfigDict({"out_dir": str(tmp_path / "out"), "phases": phases}))
    assert not (tmp_path / "out").exists()


def test_a_tilde_in_out_dir_is_the_home_directory(config_file, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    path = config_file(first="import sys; print('writes to', sys.argv[1])")
    done = launch(path, "--config.out_dir=~/runs")
    assert f"writes to {tmp_path}/home/runs" in done.stdout and (tmp_path / "home/runs/metrics.json").exists()


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_are_locked_and_their_commands_expand(name):
    config = importlib.import_module(f"launch.configs.{name}").get_config()
    assert isinstance(config, ConfigDict) and config.is_locked
    with pytest.raises(AttributeError, match="out_dirr"):
        config.out_dirr = "runs/x"
    config.out_dir = "runs/somewhere else"
    names = [phase for phase, _ in config.phases]
    assert names[-1] == local.REPORT and len(set(names)) == len(names)
    for (words,) in (phase.commands for phase in read_phases(config)):
        assert split_settings(words)[1][0] in COMMANDS
        assert not any("{" in word for word in words)
        assert any("runs/somewhere else" in word for word in words), "every phase follows --config.out_dir"


def whole_config(name):
    """A config whose empty fields are filled."""
    config = importlib.import_module(f"launch.configs.{name}").get_config()
    for field in ELSEWHERE_FIELDS if name in ELSEWHERE else ():
        config[field] = "/somewhere else"
    return config


@pytest.mark.parametrize("name", [*CONFIGS, *ELSEWHERE])
def test_commands_are_ones_a_person_could_type(name):
    """Their flags are known, and the scripts, gin files and prompt lists that they name exist."""
    config = whole_config(name)
    for command in (command for phase in read_phases(config) for command in phase.commands):
        program, *words = split_settings(command)[1]
        assert program == "imagen_jax"
        build_parser().parse_args(split_gin_flags(words)[1])
        named = [word.split("=", 1)[-1] for word in words]
        for path in [word for word in named if word.startswith(("configs/", "data/"))]:
            assert (REPOSITORY / path).is_file(), f"{path} of: {command}"
        if words[0] == "script":
            shown = subprocess.run([sys.executable, words[1], "--help"], cwd=REPOSITORY, capture_output=True)
            for flag in [word for word in words if word.startswith("--")]:
                assert f" {flag} " in shown.stdout.decode()


@pytest.mark.parametrize("name", ["demo", "demo_short"])
def test_demo_measures_the_phases_its_metrics_promise(name):
    config = importlib.import_module(f"launch.configs.{name}").get_config()
    assert [phase for phase, _ in config.phases] == [
        "corpus", "embeddings", "train_base", "train_sr", "sample", "evaluate", "report",
    ]  # fmt: skip


@pytest.mark.parametrize("name", [*CONFIGS, *ELSEWHERE])
def test_gin_modes_of_the_phases_get_whole_configs(name):
    """Every gin file resolves with just the macros that the phase gives, and its operative config again."""
    config = whole_config(name)
    modes = find_modes()
    for command in (command for phase in read_phases(config) for command in phase.commands):
        words = split_settings(command)[1][1:]
        if isinstance(modes[words[0]], GinCommand):
            bindings, words = split_gin_flags(words)
            files = build_parser().parse_args(words).gin_file
            target = modes[words[0]].config_class()
            instance, text = load_with_operative(target, files, bindings)
            with tempfile.NamedTemporaryFile("w", suffix=".gin") as file:
                file.write(text)
                file.flush()
                assert load_with_operative(target, [file.name]) == (instance, text)
