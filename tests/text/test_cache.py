"""cache_text: whole stores, resumed stores, refused stores."""

import dataclasses
import functools
import os
import pathlib

import jaxtyping
import numpy as np
import pytest

from imagen_jax.errors import UserError
from imagen_jax.text import cache
from imagen_jax.text.cache import CacheConfig, cache_text
from imagen_jax.text.encoder import TextConfig, TextEncoder
from imagen_jax.text.store import EmbeddingStore, StoreWriter
from tests.text.conftest import two_objects

CAPTIONS = [caption for caption, _ in two_objects()[::40]]
# Every caption twice, under different keys, and one too long.
EXAMPLES = [(f"{i:05d}".encode(), caption) for i, caption in enumerate([*CAPTIONS, *CAPTIONS, "red " * 20])]


# Equal configs share one encoder and its compiled programs.
encoder_of = functools.cache(TextEncoder)


@pytest.fixture(autouse=True)
def shared_encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "TextEncoder", encoder_of)


def run(config: CacheConfig, examples=EXAMPLES, corpus_id: str = "corpus-1") -> None:
    cache_text(config, iter(examples), num_examples=len(examples), corpus_id=corpus_id)


@pytest.fixture
def config(text_config: TextConfig, tmp_path: pathlib.Path) -> CacheConfig:
    store_dir = str(tmp_path / "store")
    return CacheConfig(text=text_config, corpus_dir="corpus", store_dir=store_dir, batch_size=16, shard_size=40)


def test_store_holds_each_captions_embedding_once(config: CacheConfig, text_encoder: TextEncoder, capsys) -> None:
    run(config)
    store = EmbeddingStore.open(config.store_dir)
    store.check(text_encoder.fingerprint())
    store.verify()
    assert (store.num_keys, store.num_embeddings) == (len(EXAMPLES), len(CAPTIONS) + 1)
    chosen = [0, 7, len(CAPTIONS) + 7, len(EXAMPLES) - 1]
    got = store.lookup([EXAMPLES[i][0] for i in chosen])
    for embedding, i in zip(got, chosen, strict=True):
        text, mask = text_encoder.encode([EXAMPLES[i][1]])
        np.testing.assert_allclose(embedding, text[0][mask[0]], atol=2e-5)
    np.testing.assert_array_equal(got[1], got[2])
    out = capsys.readouterr().out
    size = store.num_tokens * 128 * 4 / 1e6
    assert f"{len(EXAMPLES)} captions, {len(CAPTIONS) + 1} distinct" in out and f"{size:.4g} MB in" in out
    assert f"1 of {len(EXAMPLES)} captions were longer than max_length (12)" in out


def test_bfloat16_halves_the_bytes(config: CacheConfig, tmp_path: pathlib.Path) -> None:
    config = dataclasses.replace(config, shard_size=1000)  # a shard's file is padded to blocks of 64 KiB
    half = dataclasses.replace(config, dtype="bfloat16", store_dir=str(tmp_path / "half"))
    run(config)
    run(half)
    full_store, half_store = EmbeddingStore.open(config.store_dir), EmbeddingStore.open(half.store_dir)
    full, rounded = (store.lookup([EXAMPLES[0][0]])[0] for store in (full_store, half_store))
    assert 0 < np.abs(full - rounded).max() <= np.abs(full).max() * 2**-8
    size = {
        name: sum(os.path.getsize(os.path.join(path, f)) for f in os.listdir(path) if f.startswith("text"))
        for name, path in (("full", config.store_dir), ("half", half.store_dir))
    }
    assert size["half"] < 0.6 * size["full"]


class Killed(BaseException):
    pass


def test_killed_work_resumes_to_the_same_bytes(config: CacheConfig, tmp_path: pathlib.Path, monkeypatch) -> None:
    run(config)
    killed = dataclasses.replace(config, store_dir=str(tmp_path / "killed"))
    whole_encoded, calls = cache._encoded, []

    def killed_in_third_shard(*args):
        calls.append(args[2])
        for i, embedding in enumerate(whole_encoded(*args)):
            if len(calls) == 3 and i == 20:
                raise Killed
            yield embedding

    monkeypatch.setattr(cache, "_encoded", killed_in_third_shard)
    with pytest.raises(Killed):
        run(killed)
    with pytest.raises(UserError, match="is not finished"):
        EmbeddingStore.open(killed.store_dir)
    calls.clear()

    def noting(*args):
        calls.append(args[2])
        return whole_encoded(*args)

    monkeypatch.setattr(cache, "_encoded", noting)
    run(killed)
    assert calls[0] == range(80, 120)
    assert sorted(os.listdir(killed.store_dir)) == sorted(os.listdir(config.store_dir))
    for name in os.listdir(config.store_dir):
        one, other = (pathlib.Path(c.store_dir, name).read_bytes() for c in (config, killed))
        assert one == other, name


def test_whole_store_is_left_alone(config: CacheConfig, capsys) -> None:
    run(config)
    before = {f.name: f.stat().st_mtime_ns for f in pathlib.Path(config.store_dir).iterdir()}
    capsys.readouterr()
    cache_text(config, iter(()), num_examples=len(EXAMPLES), corpus_id="corpus-1")
    assert "is whole already" in capsys.readouterr().out
    assert {f.name: f.stat().st_mtime_ns for f in pathlib.Path(config.store_dir).iterdir()} == before
    shard = next(pathlib.Path(config.store_dir).glob("text-00000-*"))
    shard.write_bytes(shard.read_bytes()[::-1])
    with pytest.raises(UserError, match=f"{shard.name} differ"):
        run(config)


def test_store_of_another_encoder_or_corpus_is_refused_or_overwritten(config: CacheConfig) -> None:
    run(config)
    with pytest.raises(UserError, match="corpus.id: got corpus-1, expected corpus-2"):
        run(config, corpus_id="corpus-2")
    other = dataclasses.replace(config, text=dataclasses.replace(config.text, max_length=9))
    with pytest.raises(UserError, match="fingerprint.max_length: got 12, expected 9"):
        run(other)
    assert EmbeddingStore.open(config.store_dir).fingerprint["max_length"] == 12
    run(dataclasses.replace(other, overwrite=True))
    assert EmbeddingStore.open(config.store_dir).fingerprint["max_length"] == 9


def test_unfinished_store_of_other_captions_is_refused_or_overwritten(config: CacheConfig) -> None:
    encoder = TextEncoder(config.text)
    StoreWriter(
        config.store_dir,
        fingerprint=encoder.fingerprint(),
        embed_dim=128,
        num_embeddings=2,
        corpus_sha256="0",
    ).write_shard(0, encoder.encode_unpadded(["red", "blue"]))
    with pytest.raises(UserError, match="unfinished embedding store of another plan"):
        run(config)
    run(dataclasses.replace(config, overwrite=True))
    assert EmbeddingStore.open(config.store_dir).num_keys == len(EXAMPLES)


@pytest.mark.parametrize(
    ("examples", "num_examples", "message"),
    [
        ([], 0, "gave 0 examples"),
        (EXAMPLES[:3], 4, "gave 3 examples; expected 4"),
        ([*EXAMPLES[:3], EXAMPLES[0]], 4, "1 example keys recur, the first is b'00000'"),
    ],
)
def test_bad_examples_leave_nothing(config: CacheConfig, examples, num_examples: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        cache_text(config, iter(examples), num_examples=num_examples, corpus_id="c")
    assert not os.path.exists(config.store_dir)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "float16"}, "float16 is not offered"),
        ({"batch_size": 0}, "batch_size must be a positive integer"),
        ({"shard_size": 1.5}, "shard_size must be a positive integer"),
        ({"store_dir": ""}, "store_dir must be a directory name"),
        ({"text": None}, "text must be a TextConfig"),
        ({"overwrite": "yes"}, "overwrite must be True or False"),
    ],
)
def test_config_refuses(config: CacheConfig, change: dict, message: str, monkeypatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as when gin fills the fields
    with pytest.raises(UserError, match=message):
        dataclasses.replace(config, **change)
