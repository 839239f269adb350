"""Compiled steps kept in a run's directory: found again, and never where they were changed."""

import json
import os

import jax
import jax.numpy as jnp
import pytest
from jax import monitoring
from jax.experimental.compilation_cache import compilation_cache

from imagen_jax.train.programs import DIGESTS, FOLDER, kept_programs

HITS: list[str] = []


def _count(name: str, **more: object) -> None:
    if name == "/jax/compilation_cache/cache_hits":
        HITS.append(name)


monitoring.register_event_listener(_count)


@pytest.fixture
def no_cache():
    """As in a user's process: jax has no cache of its own."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


def compile_in(model_dir) -> int:
    """Compiles a program as a new process would; how many were found."""
    jax.clear_caches()
    HITS.clear()
    with kept_programs(model_dir):
        compiled = jax.jit(lambda x: jnp.sin(x) @ x).lower(jax.ShapeDtypeStruct((8, 8), jnp.float32)).compile()
    assert compiled(jnp.eye(8))[0, 0] == pytest.approx(0.84147, abs=1e-4)
    assert jax.config.jax_compilation_cache_dir is None
    return len(HITS)


@pytest.mark.usefixtures("no_cache")
def test_a_program_is_compiled_once_and_a_changed_one_is_not_run(tmp_path):
    assert compile_in(tmp_path) == 0
    assert compile_in(tmp_path) == 1
    (folder,) = (tmp_path / FOLDER).iterdir()
    (name,) = json.loads((folder / DIGESTS).read_text())
    content = (folder / name).read_bytes()
    # Cut short by a kill, changed, or left by a process that ended before it vouched for it.
    for damaged in (content[: len(content) // 2], content[:-9] + b"\0" + content[-8:]):
        (folder / name).write_bytes(damaged)
        assert compile_in(tmp_path) == 0
        assert compile_in(tmp_path) == 1
    for text in ("", "[3]", '{"a/../../b": "c"}', json.dumps({name: "0" * 64})):
        (folder / DIGESTS).write_text(text)
        assert compile_in(tmp_path) == 0


@pytest.mark.usefixtures("no_cache")
def test_a_run_that_is_moved_keeps_its_programs(tmp_path):
    assert compile_in(tmp_path / "here") == 0
    (tmp_path / "here").rename(tmp_path / "there")
    assert compile_in(tmp_path / "there") == 1


@pytest.mark.usefixtures("no_cache")
def test_programs_lie_in_buckets_too(bucket):
    assert [compile_in("gs://bucket-a/run") for _ in range(2)] == [0, 1]
    assert any(name.endswith(DIGESTS) for name in bucket.names())


@pytest.mark.usefixtures("no_cache")
def test_another_users_programs_are_not_run(tmp_path, monkeypatch, capsys):
    compile_in(tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert compile_in(tmp_path) == 0
    assert "belongs to another user" in capsys.readouterr().err


def test_the_users_own_cache_and_switch_win(tmp_path):
    assert jax.config.jax_compilation_cache_dir
    with kept_programs(tmp_path):
        pass
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        with kept_programs(tmp_path):
            assert jax.config.jax_compilation_cache_dir is None
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
        jax.config.update("jax_compilation_cache_dir", before)
    assert not (tmp_path / FOLDER).exists()
