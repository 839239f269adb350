"""A drawn corpus, an encoder for it, and two workers."""

import os
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import pytest

from imagen_jax.data.builder import BuildConfig, build_corpus
from imagen_jax.data.sources import shapes_source
from imagen_jax.text.encoder import TextConfig
from imagen_jax.text.encoders.t5 import T5Config
from imagen_jax.text.store.cache import CacheConfig

SCRIPTS = Path(__file__).parents[2] / "data"
TWO_WORKERS = ["--runner=DirectRunner", "--direct_num_workers=2", "--default_sdk_harness_log_level=WARNING"]
# Workers that share nothing but files, as on machines of their own; each imports everything anew, for ten seconds.
TWO_PROCESSES = [*TWO_WORKERS, "--direct_running_mode=multi_processing"]
# The same division of the work, and everything still pickled and sent to the workers.
TWO_THREADS = [*TWO_WORKERS, "--direct_running_mode=multi_threading"]


@pytest.fixture(autouse=True, scope="session")
def workers_have_as_many_devices() -> Iterator[None]:
    """Batches are divided over the devices, which changes the last bits."""
    os.environ["JAX_NUM_CPU_DEVICES"] = str(jax.local_device_count())
    yield
    del os.environ["JAX_NUM_CPU_DEVICES"]


@pytest.fixture
def run_script(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    def run(script: str, *arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(SCRIPTS / script), run_name="__main__")
        return ended.value.code

    return run


@pytest.fixture(scope="session")
def corpus_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 drawn examples in shards of 90; some captions recur."""
    directory = tmp_path_factory.mktemp("corpora") / "shapes"
    config = BuildConfig(name="shapes", image_size=16, examples_per_shard=90, vocab_size=100)
    build_corpus(shapes_source({"train": 370, "val": 30}, seed=3, image_size=16), directory, config)
    return directory


@pytest.fixture
def cache_config(corpus_dir: Path, tmp_path: Path) -> CacheConfig:
    encoder = T5Config(vocab_size=128, embed_dim=64, num_heads=4, head_dim=16, num_layers=2, mlp_dim=64)
    vocabulary_path = str(corpus_dir / "vocabulary.model")
    return CacheConfig(
        text=TextConfig(encoder=encoder, vocabulary_path=vocabulary_path, max_length=12),
        corpus_dir=str(corpus_dir),
        store_dir=str(tmp_path / "store"),
        batch_size=16,
        shard_size=64,
    )


def files(directory: str | Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(directory).iterdir()}
