"""Compiled programs are kept for the session: these tests build the same tiny step again and again."""

import os
from collections.abc import Iterator

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

SETTINGS = {
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}


@pytest.fixture(scope="session", autouse=True)
def keep_compiled_programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    directory = str(tmp_path_factory.mktemp("compiled"))
    settings = SETTINGS | {"jax_compilation_cache_dir": directory}
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
