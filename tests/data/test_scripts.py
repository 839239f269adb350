"""The corpus scripts run from the command line and print errors for people."""

import importlib.util
import io
import json

import pytest
from PIL import Image

from imagen_jax.data.records import Corpus
from tests.full_disk import files_up_to
from tests.scripts import SCRIPTS, run_script

ALL = ["beam_build.py", "beam_cache_text.py", "build_photos.py", "build_shapes.py", "build_task.py", "unpack_coco.py"]


def test_these_are_all_scripts():
    assert sorted(path.name for path in SCRIPTS.glob("*.py")) == ALL


@pytest.mark.parametrize("script", ALL)
def test_help(capsys, script):
    assert run_script(script, "--help") == 0
    assert f"usage: {script}" in capsys.readouterr().out


@pytest.mark.skipif(importlib.util.find_spec("apache_beam") is not None, reason="tests/beam runs these scripts")
@pytest.mark.parametrize("script", ["beam_build.py", "beam_cache_text.py"])
def test_want_of_beam_is_told(capsys, script):
    arguments = ("--images", "a", "--output", "b", "--image_size", "8") if script == "beam_build.py" else ()
    assert run_script(script, *arguments) == 2
    assert "error: Apache Beam is not installed; " in capsys.readouterr().err


def test_shapes(capsys, tmp_path):
    settings = {"num_train": 40, "num_val": 3, "image_size": 32, "vocab_size": 90, "num_workers": 0}
    arguments = ["--out", str(tmp_path), *(f"--{name}={value}" for name, value in settings.items())]
    assert run_script("build_shapes.py", *arguments) == 0
    assert "examples: train 40, val 3; rejected: 0" in capsys.readouterr().out
    assert run_script("build_shapes.py", *arguments, "--seed", "1") == 2
    assert capsys.readouterr().err.count("error: ") == 1
    assert run_script("build_shapes.py", *arguments, "--seed", "1", "--overwrite") == 0


def test_shapes_on_backgrounds_of_any_brightness(capsys, tmp_path):
    arguments = ["--num_train=40", "--num_val=3", "--image_size=32", "--vocab_size=90", "--num_workers=0"]
    assert run_script("build_shapes.py", "--out", str(tmp_path), *arguments, "--brightness", "any") == 0
    corners = [Image.open(io.BytesIO(one.image)).getpixel((0, 0)) for one in Corpus(tmp_path).records("train")]
    assert Corpus(tmp_path).manifest["extra"]["brightness"] == "any"
    assert any(0.42 < max(corner) / 255 < 0.63 for corner in corners)
    # Another corpus of the same seed.
    assert run_script("build_shapes.py", "--out", str(tmp_path), *arguments) == 2
    capsys.readouterr()
    assert run_script("build_shapes.py", "--out", str(tmp_path / "bad"), *arguments, "--brightness", "dim") == 2
    error = capsys.readouterr().err
    assert "brightness ('dim') must be one of light_or_dark, any" in error and not (tmp_path / "bad").exists()


def test_the_form_of_the_pictures_and_files_is_set_as_in_build_corpus(capsys, tmp_path):
    arguments = ["--num_train=40", "--num_val=3", "--image_size=32", "--vocab_size=90", "--num_workers=0"]
    form = ["--image_format=jpeg", "--quality=90", "--shard_size=4000"]
    assert run_script("build_shapes.py", "--out", str(tmp_path), *arguments, *form) == 0
    corpus = Corpus(tmp_path)
    assert all(one.image[:3] == b"\xff\xd8\xff" for one in corpus.records("train"))
    assert len(corpus.manifest["splits"]["train"]["shards"]) > 3
    for script in ("build_shapes.py", "build_photos.py"):
        assert run_script(script, "--out", str(tmp_path / "bad"), "--image_format=gif") == 2
        assert "image_format is 'gif'; choose one of" in capsys.readouterr().err


def test_a_full_disk_is_told_and_leaves_no_corpus(capsys, tmp_path):
    arguments = ["--out", str(tmp_path / "corpus"), "--num_train=40", "--num_val=3", "--vocab_size=90"]
    with files_up_to(30_000):
        assert run_script("build_shapes.py", *arguments) == 2
    error = capsys.readouterr().err
    assert "error: " in error and "File too large" in error and "Free space" in error
    assert not (tmp_path / "corpus" / "corpus.json").exists()
    assert run_script("build_shapes.py", *arguments) == 0


def test_photos(tmp_path):
    pytest.importorskip("skimage", reason="the photographs come with imagen_jax[photos]; `make test` installs it")
    assert run_script("build_photos.py", "--out", str(tmp_path)) == 0
    corpus = Corpus(tmp_path)
    records = list(corpus.records("train"))
    assert len(records) == 20 and corpus.image_size == 64
    assert (tmp_path / "rejects.jsonl").read_text() == ""
    assert (tmp_path / "vocabulary.model").is_file()
    assert json.loads(records[0].meta)["licence"] == "NASA, public domain"


def test_unknown_task(capsys, tmp_path):
    arguments = ("--task", "absent", "--out", str(tmp_path / "out"), "--image_size", "8")
    assert run_script("build_task.py", *arguments, "--image_format=gif") == 2
    assert "image_format is 'gif'; choose one of" in capsys.readouterr().err
    assert run_script("build_task.py", *arguments) == 2
    assert "there is no seqio task 'absent'" in capsys.readouterr().err
