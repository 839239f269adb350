"""Settings of every test: checked array shapes and types, eight CPU devices, no accelerator."""

import gc
import importlib.metadata
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # TensorFlow and jax both look for one.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Tests compile far longer than they compute: unoptimised code and no fusion emitters halve their time each, one piece
# of code a program takes a tenth more away. Also for processes that tests start. XLA ends a process at a flag that it
# does not know, and since jaxlib 0.11 fusion emitters cannot be switched off.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_backend_optimization_level=0",
        "--xla_cpu_use_fusion_emitters=false" if importlib.metadata.version("jaxlib").startswith("0.10.") else "",
        "--xla_cpu_parallel_codegen_split_count=1",
    ]
)

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from jaxtyping import install_import_hook

if TYPE_CHECKING:
    from tests import gcs, s3

# Meshes of up to eight devices are tested on one machine.
jax.config.update("jax_num_cpu_devices", 8)

# Every annotation of the package is checked at each call; must come before the package's first import. `make fuzz` sees
# what users see, who have no such checks.
if "UNCHECKED_TYPES" not in os.environ:
    install_import_hook("imagen_jax", "beartype.beartype")

CACHE_SETTINGS = {
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of tests/fuzz."""
    parser.addoption("--cases", type=int, default=50, help="inputs that tests/fuzz tries at each door (default 50)")
    parser.addoption("--first", type=int, default=0, help="number of the first of them (default 0)")
    parser.addoption("--case", type=int, help="the only input that tests/fuzz tries, by its number")


def pytest_collection_finish() -> None:
    """What the imports made lives to the end: to walk it again and again took a tenth of the tests' time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000)


@pytest.fixture(scope="session", autouse=True)
def keep_compiled_programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests build the same tiny programs again and again, some in processes of their own: each compiles once."""
    root = tmp_path_factory.getbasetemp()
    # The processes that share the tests of one run share what they compile too.
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    directory = str(root / "compiled")
    settings = CACHE_SETTINGS | {"jax_compilation_cache_dir": directory}
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
        # For the processes that tests start.
        os.environ[name.upper()] = str(value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
        del os.environ[name.upper()]
    compilation_cache.reset_cache()


@pytest.fixture(scope="session")
def bucket_server() -> "Iterator[gcs.Server]":
    """One server for all tests of a process: libraries ask once where it is."""
    from tests import gcs  # Beam's environment has no such server.

    with gcs.running() as server:
        yield server


@pytest.fixture
def bucket(bucket_server: "gcs.Server", tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "gcs.Server":
    """An empty bucket at gs://bucket-a, whose files have their copies in tmp_path/copies."""
    bucket_server.forget()
    monkeypatch.setenv("IMAGEN_JAX_CACHE_DIR", str(tmp_path / "copies"))
    return bucket_server


@pytest.fixture(scope="session")
def s3_server() -> "Iterator[s3.Server]":
    """One server for all tests of a process."""
    from tests import s3

    with s3.running() as server:
        yield server


@pytest.fixture
def s3_bucket(s3_server: "s3.Server", tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "s3.Server":
    """An empty bucket at s3://bucket-a, whose files have their copies in tmp_path/copies."""
    s3_server.forget()
    monkeypatch.setenv("IMAGEN_JAX_CACHE_DIR", str(tmp_path / "copies"))
    return s3_server
