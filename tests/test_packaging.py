"""A plain install, without -e and without the repository: the files that commands name came with it."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from imagen_jax.data.records import Corpus
from imagen_jax.files import shipped_file
from imagen_jax.versions import revision

ROOT = Path(__file__).parents[1]
# What each launcher's dry run shows.
LAUNCHERS = (
    ("tpu_vm", "tpu_v4", "gcloud compute tpus queued-resources create imagen-train-base --project=PROJECT"),
    ("gke", "gke_v5e", "kind: JobSet"),
    ("slurm", "slurm_gpu", "sbatch --parsable"),
    ("sweep", "sweep_demo", "--gin.LEARNING_RATE=0.003"),
)
# Names as the README's commands have them, in a folder that has no such files.
USE = """
import sys
import imagen_jax
from imagen_jax import gin_config, main
from imagen_jax.commands import sample

assert imagen_jax.__file__.startswith(sys.argv[1]), imagen_jax.__file__
modes = main.find_modes()
for experiment in sys.argv[2:]:
    kind = experiment.removesuffix(".gin").rpartition("_")[2]
    judging = ("eval", "samplers", "suites", "words")
    mode = modes["eval" if kind in judging else "sweep" if kind == "sweep" else "train"]
    gin_config.load_with_operative(mode.config_class(), [f"configs/experiments/{experiment}"], open_paths="x")
words = ["sample", "--checkpoint", "c", "--output", "o", "--prompts_file", "data/prompts/demo.txt"]
print("\\n".join(sample.captions_of(main.build_parser(modes).parse_args(words))))
sys.exit(main.main(["train", "--gin_file=configs/experiments/none.gin"]))
"""


def build(source: Path, kind: str, out: Path) -> Path:
    """Builds an archive by the project's own setup.py, without a network."""
    command = [sys.executable, "setup.py", "-q", kind, "--dist-dir", str(out)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (archive,) = out.iterdir()
    return archive


@pytest.mark.slow
def test_an_install_of_the_wheel_of_the_source_archive_has_configs_and_prompts(tmp_path: Path) -> None:
    # A copy, as building writes beside setup.py.
    clone = tmp_path / "clone"
    for part in ("imagen_jax", "configs", "data", "launch", "docs"):
        shutil.copytree(ROOT / part, clone / part, ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / part, clone)
    # What a checkout's own history would say.
    (clone / "REVISION").write_text("0123abc")
    with tarfile.open(build(clone, "sdist", tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    wheel = build(unpacked, "bdist_wheel", tmp_path / "wheel")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    # Folders named so would be anybody's among installed packages.
    assert {path.name.split("-")[0] for path in installed.iterdir()} == {"imagen_jax"}

    assert revision(installed / "imagen_jax") == "0123abc"

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    # photos.gin is what the stages of the photographs share.
    experiments = sorted({path.name for path in (ROOT / "configs" / "experiments").iterdir()} - {"photos.gin"})
    assert "demo_base.gin" in experiments
    used = subprocess.run(
        [sys.executable, "-c", USE, str(installed), *experiments],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert used.returncode == 2 and "configs/experiments/none.gin" in used.stderr, used.stderr
    assert used.stdout == (ROOT / "data" / "prompts" / "demo.txt").read_text()
    scripts_of_the_pages_run(elsewhere, installed)


def scripts_of_the_pages_run(elsewhere: Path, installed: Path) -> None:
    """Every `imagen_jax script …` of a page has help, and a pipeline of one of them draws its corpus."""

    def script(*words: str, code: int = 0) -> str:
        command = [sys.executable, "-m", "imagen_jax.main", "script", *words]
        environment = {**os.environ, "PYTHONPATH": str(installed)}
        done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    named = {name for page in pages for name in re.findall(r"imagen_jax script (\S+\.py)", page.read_text())}
    assert {"launch/local.py", "docs/caption_to_picture.py", "data/build_task.py"} <= named
    for name in sorted(name for name in named if not name.startswith("launch/")):
        assert f"usage: {Path(name).name}" in script(name, "--help")
    (elsewhere / "mine.py").write_text(
        "from launch.configs import demo\n"
        "def get_config():\n"
        "    config = demo.get_config().unlock()\n"
        "    config.phases = config.phases[:1]\n"
        "    return config.lock()\n"
    )
    few = ("--config.num_train=6", "--config.num_val=2")
    script("launch/local.py", "--config", "mine.py", "--config.out_dir=mine out", *few)
    assert Corpus(elsewhere / "mine out" / "corpus").num_examples("train") == 6
    for launcher, config, shown in LAUNCHERS:
        told = script(f"launch/{launcher}.py", "--config", f"launch/configs/{config}.py", "--dry_run")
        assert shown in told
    # One that came with the package.
    told = script("launch/local.py", "--config=launch/configs/demo.py", "--config.nothing=1", code=2)
    assert "the config has no setting" in told and "nothing" in told


def test_a_file_of_ones_own_wins_over_the_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "data/prompts/demo.txt"
    monkeypatch.chdir(tmp_path)
    assert Path(shipped_file(name)).samefile(ROOT / name)
    assert shipped_file("data/prompts/other.txt") == "data/prompts/other.txt"
    (tmp_path / "data" / "prompts").mkdir(parents=True)
    (tmp_path / name).write_text("mine")
    assert shipped_file(name) == name
    assert shipped_file("/nowhere/demo.txt") == "/nowhere/demo.txt"
