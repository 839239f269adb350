"""The registry of modes, and build_corpus by the command."""

import ast
import importlib
import inspect
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from PIL import Image

from imagen_jax.data.records import Corpus
from imagen_jax.main import find_modes, main

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", find_modes())
def test_every_mode_finds_its_room(name):
    """What its functions import when they run is there."""
    tree = ast.parse((REPOSITORY / f"imagen_jax/commands/{name}.py").read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.col_offset]
    for node in imports:
        for alias in node.names:
            found = getattr(importlib.import_module(node.module), alias.name)
            assert callable(found) or inspect.ismodule(found) or alias.name.isupper()
    mode = find_modes()[name]
    assert mode.name == name and (imports or isinstance(mode.config_class(), type))
    assert mode.help and not mode.help.endswith(".")


def test_modes_are_listed_in_the_order_that_people_need_them():
    assert list(find_modes()) == [
        "build_corpus", "import_text", "cache_text", "validate_cache", "train", "plan", "status", "sample", "eval",
        "follow", "sweep", "export", "model_card", "report", "serve", "build_study", "serve_study", "analyse_study",
        "checkpoints", "upgrade_run", "script",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_new_mode_is_one_new_file(tmp_path):
    """Dropped into a copy of the package, the example of the docstring is listed, has help and runs."""
    from imagen_jax import commands

    shutil.copytree(REPOSITORY / "imagen_jax", tmp_path / "imagen_jax", ignore=shutil.ignore_patterns("__pycache__"))
    example = commands.__doc__.split("count.py:\n")[1].split("\nA mode that gin")[0]
    (tmp_path / "imagen_jax/commands/count.py").write_text(textwrap.dedent(example))
    (tmp_path / "images").mkdir()
    for i in range(3):
        Image.new("RGB", (8, 8), (i, i, i)).save(tmp_path / f"images/{i}.png")
        (tmp_path / f"images/{i}.txt").write_text(f"number {i}")

    def run(*words: str) -> str:
        command = [sys.executable, "-m", "imagen_jax.main", *words]
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "    count         count the examples of a corpus\n" in run("--help")
    assert "DIR         corpus directory" in run("count", "--help")
    run("build_corpus", "--images=images", "--output=corpus", "--image_size=8")
    assert run("count", "corpus") == "3\n"


def test_build_corpus_takes_a_folder_or_a_list(capsys, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for i in range(20):
        Image.new("RGB", (9, 8), (i, i, i)).save(images / f"{i}.png")
        (images / f"{i}.txt").write_text(f"number {i}")
    (images / "bad.png").write_bytes(b"no image")
    (images / "bad.txt").write_text("bad")

    def build(source: Path, name: str, *flags: str) -> int:
        out = str(tmp_path / name)
        return main(["build_corpus", "--images", str(source), "--output", out, "--image_size", "8", *flags])

    assert build(images, "folder", "--val_fraction", "0.3") == 0
    assert "rejected: 1" in capsys.readouterr().out
    assert set(Corpus(tmp_path / "folder").splits) == {"train", "val"}
    (images / "list.csv").write_text("image,caption\n1.png,one\n")
    assert build(images / "list.csv", "list") == 0
    assert Corpus(tmp_path / "list").num_examples("train") == 1
    flags = ("--image_format=jpeg", "--quality=90", "--shard_size=1500")
    assert build(images, "jpeg", *flags) == 0
    jpeg = Corpus(tmp_path / "jpeg")
    assert next(jpeg.records("train")).image.startswith(b"\xff\xd8\xff")
    assert len(jpeg.manifest["splits"]["train"]["shards"]) > 3
    # The shorter side is 8.
    assert build(images, "large", "--min_size", "9") == 2
    assert build(tmp_path / "absent", "absent") == 2
    assert "error: image folder" in capsys.readouterr().err
