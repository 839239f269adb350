"""Corpus and store by Beam in a bucket are those of one process in a folder, byte for byte, whatever is killed."""

import dataclasses
import functools
import io
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

# `make beam-test` installs it.
pytest.importorskip("apache_beam")

from imagen_jax.beam.build import build_corpus
from imagen_jax.beam.cache_text import cache_text
from imagen_jax.commands.cache_text import cache_corpus
from imagen_jax.data import builder
from imagen_jax.data.builder import BuildConfig
from imagen_jax.data.raw import Source
from imagen_jax.data.records import Corpus
from imagen_jax.data.sources import shapes_source
from imagen_jax.errors import UserError
from imagen_jax.files import write_bytes
from imagen_jax.main import main
from imagen_jax.text.store.cache import CacheConfig
from tests.beam.conftest import TWO_PROCESSES, TWO_THREADS, files

URL = "gs://bucket-a/made"
CONFIG = BuildConfig(name="shapes", image_size=16, examples_per_shard=40, vocab_size=90)
LAUNCH = (
    "import sys; from imagen_jax.beam.build import build_corpus; "
    "from tests.beam.test_buckets import CONFIG, drawn; build_corpus(drawn(), sys.argv[1], CONFIG, [])"
)


def drawn() -> Source:
    """110 drawings in three parts and two splits."""
    return shapes_source({"train": 100, "val": 10}, seed=5, image_size=16)


def in_bucket(bucket, folder: str) -> dict[str, bytes]:
    return {name.removeprefix(f"{folder}/"): bucket.content(name) for name in bucket.names() if name.startswith(folder)}


def test_a_folder_of_pictures_becomes_a_corpus_without_leaving_the_bucket(bucket, tmp_path, run_script) -> None:
    (tmp_path / "raw").mkdir()
    for i in range(120):
        picture = io.BytesIO()
        Image.fromarray(np.full((12, 10, 3), i, np.uint8)).save(picture, "PNG")
        for name, content in ((f"{i:03d}.png", picture.getvalue()), (f"{i:03d}.txt", b"picture number %d" % i)):
            (tmp_path / "raw" / name).write_bytes(content)
            write_bytes(f"gs://bucket-a/raw/{name}", content)
    flags = ["--image_size=8", "--val_fraction=0.2", "--vocab_size=40"]
    assert main(["build_corpus", "--images", str(tmp_path / "raw"), *flags, "--output", str(tmp_path / "here")]) == 0
    built = run_script("beam_build.py", "--images=gs://bucket-a/raw", *flags, f"--output={URL}", *TWO_THREADS)
    assert built == 0
    assert in_bucket(bucket, "made") == files(tmp_path / "here")


def test_a_store_in_a_bucket_is_that_of_one_process(bucket, cache_config: CacheConfig, tmp_path) -> None:
    cache_corpus(dataclasses.replace(cache_config, store_dir=str(tmp_path / "here")))
    for name, content in files(cache_config.corpus_dir).items():
        write_bytes(f"gs://bucket-a/corpus/{name}", content)
    text = dataclasses.replace(cache_config.text, vocabulary_path="gs://bucket-a/corpus/vocabulary.model")
    config = dataclasses.replace(cache_config, text=text, corpus_dir="gs://bucket-a/corpus", store_dir=URL)
    cache_text(config, TWO_PROCESSES)
    assert in_bucket(bucket, "made") == files(tmp_path / "here")


@pytest.mark.parametrize("moment", ["recurring", "rewriteTo"], ids=["between pipelines", "as shards take their place"])
def test_a_launch_that_was_killed_is_whole_when_it_is_started_again(bucket, tmp_path, moment) -> None:
    launched: list[subprocess.Popen[bytes]] = []

    def kill_it(method: str, path: str) -> int | None:
        if launched and moment in path:
            os.kill(launched[0].pid, signal.SIGKILL)
        return None

    bucket.fault = kill_it
    launched.append(subprocess.Popen([sys.executable, "-c", LAUNCH, URL], stderr=subprocess.DEVNULL))
    assert launched[0].wait() == -signal.SIGKILL
    launched.clear()
    with pytest.raises(UserError, match="holds no whole corpus"):
        Corpus(URL)
    assert not build_corpus(drawn(), URL, CONFIG, []).reused
    builder.build_corpus(drawn(), tmp_path / "here", CONFIG)
    assert in_bucket(bucket, "made") == files(tmp_path / "here")


def test_failures_that_pass_and_lost_answers_change_nothing(bucket, tmp_path) -> None:
    answered = [0]

    def one_in_nine(method: str, path: str) -> int | None:
        answered[0] += 1
        return (429, 500, -503)[answered[0] % 3] if answered[0] % 9 == 0 else None

    builder.build_corpus(drawn(), tmp_path / "here", CONFIG)
    bucket.fault, bucket.delay_s = one_in_nine, 0.02
    build_corpus(drawn(), URL, CONFIG, [])
    assert in_bucket(bucket, "made") == files(tmp_path / "here")


def test_a_failing_worker_leaves_an_older_corpus_whole(bucket) -> None:
    build_corpus(drawn(), URL, CONFIG, [])
    before = in_bucket(bucket, "made")
    failing = Source(parts=[functools.partial(json.loads, "{")], num_examples=0, settings={})
    with pytest.raises(RuntimeError, match="JSONDecodeError"):
        build_corpus(failing, URL, CONFIG, [], overwrite=True)
    assert in_bucket(bucket, "made") == before


@pytest.mark.parametrize("act", ["read", "write"])
def test_what_a_bucket_refuses_a_worker_is_told_in_one_line(bucket, run_script, capsys, act) -> None:
    write_bytes("gs://bucket-a/raw/list.jsonl", b'{"image": "none.png", "caption": "x"}\n')
    at_work: list[str] = []

    def refuse(method: str, path: str) -> int | None:
        if "%2Fparts?" in path and "alt=media" in path:
            at_work.append(path)
            return 403 if act == "read" else None
        return 403 if at_work and method == "POST" else None

    bucket.fault = refuse
    flags = ["--images=gs://bucket-a/raw/list.jsonl", "--image_size=8"]
    assert run_script("beam_build.py", *flags, f"--output={URL}") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and "403" in error
    bucket.fault = lambda method, path: None
    assert run_script("beam_build.py", *flags, "--output=gs://no-such-bucket/x") == 2
    assert "no-such-bucket does not exist" in capsys.readouterr().err
    assert list(in_bucket(bucket, "made")) == []
