"""A run started again, stopped half way or shared by two hosts is the undisturbed run."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from imagen_jax import gin_config
from imagen_jax.checkpoints import checkpoints
from imagen_jax.data.records import Corpus
from imagen_jax.main import main
from imagen_jax.sampling.cascade import Cascade
from imagen_jax.text.store.reader import EmbeddingStore
from imagen_jax.train.config import TrainConfig
from imagen_jax.train.loop import train
from tests.integration.running import flags_of, on_two_hosts, train_stage


def test_finished_run_started_again_changes_nothing(root: Path) -> None:
    before = (root / "base" / "checkpoints" / "checkpoint_4" / "digests.json").read_bytes()
    assert train_stage(root, "base") == 0
    assert (root / "base" / "checkpoints" / "checkpoint_4" / "digests.json").read_bytes() == before


@pytest.mark.slow
def test_a_run_stopped_half_way_ends_bit_identical_to_the_undisturbed_one(root: Path, tmp_path: Path) -> None:
    """Same seed, second run: parameters, average and data order are those of the first."""
    bindings, _ = gin_config.split_gin_flags(flags_of(root, MODEL_DIR=tmp_path / "halved"))
    config = gin_config.load(TrainConfig, ["tests/integration/tiny_base.gin"], bindings)
    train(config, stop_at=3)
    train(config)
    runs = (root / "base", tmp_path / "halved")
    positions = [json.loads((run / "checkpoints" / "checkpoint_4" / "position.json").read_text()) for run in runs]
    assert positions[0] == positions[1]
    for ema in (True, False):
        whole, halved = (checkpoints.load_params(run, ema=ema) for run in runs)
        jax.tree.map(np.testing.assert_array_equal, whole, halved)


@pytest.mark.slow
def test_two_hosts_fill_one_store(root: Path, tmp_path: Path) -> None:
    macros = {"STORE_DIR": tmp_path / "store", "cache.CacheConfig.shard_size": 10, "CacheConfig.batch_size": 8}
    on_two_hosts("cache_text", root, **macros)
    one, two = (EmbeddingStore.open(str(path)) for path in (root / "store", tmp_path / "store"))
    two.verify()
    assert (two.num_keys, two.num_embeddings, two.num_tokens) == (one.num_keys, one.num_embeddings, one.num_tokens)
    keys = [key for key, _ in Corpus(root / "corpus").captions()]
    for here, there in zip(one.lookup(keys), two.lookup(keys), strict=True):
        np.testing.assert_allclose(here, there, atol=2e-5)
    checked = ["validate_cache", "--gin_file=tests/integration/tiny_base.gin", *flags_of(root, **macros)]
    assert main(checked) == 0


@pytest.mark.slow
def test_two_hosts_train_as_one_does(root: Path, tmp_path: Path) -> None:
    """Each reads its own rows of every batch; losses, and the grids that both draw, are those of one host.

    On a mesh of two by two, so that the rows of the hosts must stand in the order of one.
    """
    errors = on_two_hosts("train", root, **{"MODEL_DIR": tmp_path / "base", "MeshConfig.fsdp": 2})
    assert ["4/4 step" in error for error in errors] == [True, False]
    one, two = ([json.loads(line) for line in (run / "base" / "metrics.jsonl").open()] for run in (root, tmp_path))
    assert [line["step"] for line in two] == [2, 4]
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose([line[name] for line in two], [line[name] for line in one], rtol=1e-4)
    grids = [np.asarray(Image.open(run / "base" / "samples" / "step_4.png"), np.int32) for run in (root, tmp_path)]
    assert np.abs(grids[0] - grids[1]).max() <= 2
    assert Cascade.load(str(tmp_path / "base")).sample(["a red cube"])[0].shape == (1, 16, 16, 3)
