"""The console command from corpus to report on a cascade of two tiny stages, and the bad input people give it."""

import contextlib
import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from imagen_jax import gin_config
from imagen_jax.data.corpora import build_shapes
from imagen_jax.data.pipeline import BatchIterator
from imagen_jax.data.records import Corpus
from imagen_jax.errors import UserError
from imagen_jax.main import main
from imagen_jax.sampling.cascade import Cascade
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.text.store import EmbeddingStore
from imagen_jax.train import checkpoints
from imagen_jax.train.config import TrainConfig
from imagen_jax.train.loop import train


def _flags(root: Path, **macros: object) -> list[str]:
    corpus = root / "corpus"
    paths = {"CORPUS_DIR": corpus, "STORE_DIR": root / "store", "VOCABULARY_PATH": corpus / "vocabulary.model"}
    return [f"--gin.{name}={value}" for name, value in {**paths, **macros}.items()]


def _train(root: Path, stage: str, **macros: object) -> int:
    flags = _flags(root, **{"MODEL_DIR": root / stage, **macros})
    return main(["train", f"--gin_file=tests/integration/tiny_{stage}.gin", *flags])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained two-stage cascade with its corpus and store."""
    root = tmp_path_factory.mktemp("cascade")
    build_shapes(root / "corpus", num_train=48, num_val=4, seed=0, vocab_size=200)
    assert main(["cache_text", "--gin_file=tests/integration/tiny_base.gin", *_flags(root)]) == 0
    assert _train(root, "base") == 0
    assert _train(root, "sr") == 0
    return root


def test_run_directories_hold_what_they_should(root: Path) -> None:
    for stage in ("base", "sr"):
        run = root / stage
        steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert steps == [2, 4]
        assert checkpoints.saved_steps(run) == [2, 4]
        assert (run / "samples" / "step_4.png").is_file() and (run / "model-info.txt").is_file()
        assert "NUM_STEPS = 4" in (run / "config.gin").read_text()


def test_sampling_writes_pictures_that_carry_their_origin(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "drawn"
    draw = ["sample", "--checkpoint", str(root), "--output", str(out), "--seed", "3", "--guidance_weight", "2.5"]
    assert main([*draw, "a red cube", "a blue ring"]) == 0
    with Image.open(out / "00001.png") as image:
        assert image.size == (64, 64)
        assert image.text["prompt"] == "a blue ring" and image.text["seed"] == "3"
        assert json.loads(image.text["guidance_weight"]) == [2.5, 1.0]
    with Image.open(out / "00001_base.png") as image:
        assert image.size == (16, 16)
    assert (tmp_path / "drawn.png").is_file()
    assert main([*draw, "a red cube"]) == 2  # Nothing is overwritten unasked.
    assert main([*draw, "--overwrite", "--stage", "base", "a red cube"]) == 0
    with Image.open(out / "00000.png") as image:
        assert image.size == (16, 16)


def test_captions_may_be_encoded_as_they_are_read(root: Path, tmp_path: Path, capsys) -> None:
    """STORE_DIR = None: the batches, and so the whole run, are those of the store."""
    bindings, _ = gin_config.split_gin_flags(_flags(root, MODEL_DIR=tmp_path / "base", STORE_DIR=None))
    config = gin_config.load(TrainConfig, ["tests/integration/tiny_base.gin"], bindings)
    assert config.data.store_dir is None
    options = {"batch_size": 16, "seed": 3, "start_step": 2, "encoder": TextEncoder(config.text)}
    stored = dataclasses.replace(config.data, store_dir=str(root / "store"))
    batches = [BatchIterator(data, **options) for data in (config.data, stored)]
    for one in batches:
        with contextlib.closing(one):
            one.rows = [next(one) for _ in range(2)]
    for live, cached in zip(*(one.rows for one in batches), strict=True):
        np.testing.assert_array_equal(live["text_mask"], cached["text_mask"])
        np.testing.assert_allclose(live["text"], cached["text"], atol=2e-5)
        np.testing.assert_array_equal(live["x0"], cached["x0"])
    train(config)
    runs = (root / "base", tmp_path / "base")
    losses = [[json.loads(line)["loss"] for line in (run / "metrics.jsonl").open()] for run in runs]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    with pytest.raises(UserError, match="there is no encoder"):
        BatchIterator(config.data, **options | {"encoder": None})
    with pytest.raises(UserError, match="max_length \\(24\\) must be at most"):
        short = {"stage": dataclasses.replace(config.stage, max_text_length=9)}
        dataclasses.replace(config, data=dataclasses.replace(config.data, max_text_length=9), **short)


def test_null_text_may_be_the_embedding_of_no_words_and_negative_prompts_take_its_place(
    root: Path, tmp_path: Path, capsys
) -> None:
    flags = {"MODEL_DIR": tmp_path / "base", "stage.Stage.null_text": "empty", "Stage.cond_drop_rate": 0.9}
    assert _train(root, "base", **flags) == 0
    runs = (root / "base", tmp_path / "base")
    losses = [json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["loss"] for run in runs]
    assert losses[0] != losses[1]
    cascade = Cascade.load(str(tmp_path / "base")).configure(lambda _, s: dataclasses.replace(s, guidance_weight=3.0))
    prompts = ["a red cube", "a red cube"]
    (plain,) = cascade.sample(prompts, seed=1)
    (empty,) = cascade.sample(prompts, seed=1, negative_prompts=["", ""])
    np.testing.assert_array_equal(plain, empty)
    unguided = cascade.configure(lambda _, s: dataclasses.replace(s, guidance_weight=1.0))
    (same,) = cascade.sample(prompts, seed=1, negative_prompts=prompts)
    assert np.abs(same.astype(int) - unguided.sample(prompts, seed=1)[0]).max() <= 1
    with pytest.raises(UserError, match="guidance_weight 1"):
        unguided.sample(prompts, negative_prompts=prompts)
    out = tmp_path / "drawn"
    draw = ["sample", "--checkpoint", str(tmp_path / "base"), "--output", str(out), "--negative_prompt", "a blue ring"]
    assert main([*draw, "--guidance_weight", "3", "a red cube"]) == 0
    with Image.open(out / "00000.png") as image:
        assert image.text["negative_prompt"] == "a blue ring"
    assert _train(root, "base", **flags | {"stage.Stage.null_text": "nothing"}) == 2
    assert "one of ('zeros', 'empty')" in _error(capsys)


def test_an_image_depends_on_seed_and_place_alone(root: Path) -> None:
    cascade = Cascade.load(str(root))
    prompts = ["a red cube", "a blue ring", "a green star"]
    together = cascade.sample(prompts, seed=1, batch_size=3)
    in_pairs = cascade.sample(prompts, seed=1, batch_size=2)
    for a, b in zip(together, in_pairs, strict=True):
        assert np.abs(a.astype(int) - b).max() <= 1
    other = cascade.sample(prompts, seed=2, batch_size=3)
    assert np.abs(together[-1].astype(int) - other[-1]).max() > 1


def test_super_resolution_alone_takes_the_users_images(root: Path) -> None:
    cascade = Cascade.load(str(root / "sr"))
    low_res = np.zeros((2, 16, 16, 3), np.float32)
    (drawn,) = cascade.sample(["a red cube", ""], low_res=low_res)
    assert drawn.shape == (2, 64, 64, 3)
    assert main(["sample", "--checkpoint", str(root / "sr"), "--output", str(root / "none"), "a red cube"]) == 2


def test_evaluation_and_report(root: Path) -> None:
    flags = [f"--gin.RUN_DIR={root}", "--gin.GUIDANCE_WEIGHTS=(1.0, 2.0)"]
    small = [f"--gin.Alignment.num_{kind}=2" for kind in ("single", "two", "count", "heldout")]
    assert main(["eval", "--gin_file=configs/experiments/demo_eval.gin", *flags, *small]) == 0
    result = json.loads((root / "eval.json").read_text())
    assert set(result["alignment"]) == {"1", "2"} and result["num_prompts"] == 8
    assert set(result["alignment"]["1"]) >= {"single_both", "two_colour_binding", "two_relation", "heldout_both"}
    assert main(["report", "--run_dir", str(root)]) == 0
    assert "Alignment" in (root / "report.html").read_text()


def test_finished_run_started_again_changes_nothing(root: Path) -> None:
    before = (root / "base" / "checkpoints" / "checkpoint_4" / "digests.json").read_bytes()
    assert _train(root, "base") == 0
    assert (root / "base" / "checkpoints" / "checkpoint_4" / "digests.json").read_bytes() == before


def test_a_run_stopped_half_way_ends_bit_identical_to_the_undisturbed_one(root: Path, tmp_path: Path) -> None:
    """Same seed, second run: parameters, average and data order are those of the first."""
    bindings, _ = gin_config.split_gin_flags(_flags(root, MODEL_DIR=tmp_path / "halved"))
    config = gin_config.load(TrainConfig, ["tests/integration/tiny_base.gin"], bindings)
    train(config, stop_at=3)
    train(config)
    runs = (root / "base", tmp_path / "halved")
    positions = [json.loads((run / "checkpoints" / "checkpoint_4" / "position.json").read_text()) for run in runs]
    assert positions[0] == positions[1]
    for ema in (True, False):
        whole, halved = (checkpoints.load_params(run, ema=ema) for run in runs)
        jax.tree.map(np.testing.assert_array_equal, whole, halved)


def _on_two_hosts(mode: str, root: Path, **macros: object) -> list[str]:
    """Runs a mode in two processes of two devices each; returns what each said on stderr."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", "imagen_jax.main", mode, "--gin_file=tests/integration/tiny_base.gin"),
        *_flags(root, **macros),
        *(f"--coordinator_address=localhost:{port}", "--num_processes=2"),
    ]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "2"}
    hosts = [
        subprocess.Popen([*command, f"--process_id={index}"], env=environment, stderr=subprocess.PIPE, text=True)
        for index in range(2)
    ]
    try:
        errors = [host.communicate(timeout=300)[1] for host in hosts]
    finally:
        for host in hosts:
            host.kill()
    assert [host.returncode for host in hosts] == [0, 0], errors
    return errors


def test_two_hosts_fill_one_store(root: Path, tmp_path: Path) -> None:
    macros = {"STORE_DIR": tmp_path / "store", "cache.CacheConfig.shard_size": 10, "CacheConfig.batch_size": 8}
    _on_two_hosts("cache_text", root, **macros)
    one, two = (EmbeddingStore.open(str(path)) for path in (root / "store", tmp_path / "store"))
    two.verify()
    assert (two.num_keys, two.num_embeddings, two.num_tokens) == (one.num_keys, one.num_embeddings, one.num_tokens)
    keys = [key for key, _ in Corpus(root / "corpus").captions()]
    for here, there in zip(one.lookup(keys), two.lookup(keys), strict=True):
        np.testing.assert_allclose(here, there, atol=2e-5)
    checked = ["validate_cache", "--gin_file=tests/integration/tiny_base.gin", *_flags(root, **macros)]
    assert main(checked) == 0


def test_two_hosts_train_as_one_does(root: Path, tmp_path: Path) -> None:
    """Each reads its own rows of every batch; losses, and the grids that both draw, are those of one host."""
    errors = _on_two_hosts("train", root, MODEL_DIR=tmp_path / "base")
    assert ["4/4 step" in error for error in errors] == [True, False]
    one, two = ([json.loads(line) for line in (run / "base" / "metrics.jsonl").open()] for run in (root, tmp_path))
    assert [line["step"] for line in two] == [2, 4]
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose([line[name] for line in two], [line[name] for line in one], rtol=1e-4)
    grids = [np.asarray(Image.open(run / "base" / "samples" / "step_4.png"), np.int32) for run in (root, tmp_path)]
    assert np.abs(grids[0] - grids[1]).max() <= 2
    assert Cascade.load(str(tmp_path / "base")).sample(["a red cube"])[0].shape == (1, 16, 16, 3)


def _error(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert "Traceback" not in error and "error:" in error
    return error


@pytest.mark.parametrize(
    ("macros", "parts"),
    [
        ({"IMAGE_SIZE": 17}, ["image_size (17)", "divisible by 2", "choose 16 or 18"]),
        ({"BATCH_SIZE": 0}, ["batch_size (0)", "must be an integer >= 1"]),
        ({"LEARNING_RAT": 1}, ["LEARNING_RAT", "LEARNING_RATE"]),
        ({"TrainConfig.num_step": 3}, ["num_step"]),
        ({"STORE_DIR": "/nowhere/store"}, ["/nowhere/store"]),
        ({"t5_encoder.T5Config.mlp_dim": 24}, ["mlp_dim"]),
        ({"encoder.TextConfig.seed": 5}, ["encoder"]),
    ],
)
def test_bad_settings_are_told_in_one_error(root: Path, tmp_path: Path, capsys, macros: dict, parts: list[str]) -> None:
    assert _train(root, "base", MODEL_DIR=tmp_path / "new", **macros) == 2
    error = _error(capsys)
    for part in parts:
        assert part in error
    assert not (tmp_path / "new" / "checkpoints").exists()


def test_a_checkpoint_of_another_model_names_every_difference(root: Path, capsys) -> None:
    assert _train(root, "base", **{"unet.UNet.emb_dim": 24, "NUM_STEPS": 6}) == 2
    error = _error(capsys)
    assert "params.embedder.noise_in.kernel" in error and "params.embedder.noise_out.bias" in error
    assert checkpoints.saved_steps(root / "base")[-1] == 4


def test_a_flipped_byte_in_a_checkpoint_is_named(root: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(root / "base", tmp_path / "base")
    victim = max((tmp_path / "base" / "checkpoints" / "checkpoint_4").rglob("*"), key=lambda p: p.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    assert main(["sample", "--checkpoint", str(tmp_path / "base"), "--output", str(tmp_path / "x"), "a cube"]) == 2
    error = _error(capsys)
    assert victim.name in error and "Delete" in error
    assert not (tmp_path / "x").exists()


def test_stages_that_do_not_fit_are_refused(root: Path, tmp_path: Path, capsys) -> None:
    assert main(["sample", "--checkpoint", str(tmp_path), "--output", str(tmp_path / "x"), "a cube"]) == 2
    assert "no trained stage" in _error(capsys)
    assert main(["train", "--gin_file=configs/experiments/absent.gin"]) == 2
    assert "absent.gin" in _error(capsys)
