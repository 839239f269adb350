"""cache_text: whole stores, resumed stores, refused stores."""

import dataclasses
import functools
import os
import pathlib
import re
import subprocess
import sys

import jax
import jaxtyping
import numpy as np
import pytest

from imagen_jax.errors import UserError
from imagen_jax.text.encoder import TextConfig, TextEncoder
from imagen_jax.text.store import cache, validate
from imagen_jax.text.store.cache import CacheConfig, cache_text
from imagen_jax.text.store.reader import EmbeddingStore, StoreWriter
from imagen_jax.text.store.validate import validate_cache
from tests.text.conftest import two_objects

CAPTIONS = [caption for caption, _ in two_objects()[::40]]
# Every caption twice, under different keys, and one too long.
EXAMPLES = [(f"{i:05d}".encode(), caption) for i, caption in enumerate([*CAPTIONS, *CAPTIONS, "red " * 20])]


# Equal configs share one encoder and its compiled programs.
encoder_of = functools.cache(TextEncoder)


@pytest.fixture(autouse=True)
def shared_encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "TextEncoder", encoder_of)
    monkeypatch.setattr(validate, "TextEncoder", encoder_of)


def run(config: CacheConfig, examples=EXAMPLES, corpus_id: str = "corpus-1") -> None:
    cache_text(config, iter(examples), num_examples=len(examples), corpus_id=corpus_id)


@pytest.fixture
def config(text_config: TextConfig, tmp_path: pathlib.Path) -> CacheConfig:
    store_dir = str(tmp_path / "store")
    return CacheConfig(text=text_config, corpus_dir="corpus", store_dir=store_dir, batch_size=16, shard_size=120)


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
    assert 0 < np.abs(full - rounded.astype(np.float32)).max() <= np.abs(full).max() * 2**-8
    size = {
        name: sum(os.path.getsize(os.path.join(path, f)) for f in os.listdir(path) if f.startswith("text"))
        for name, path in (("full", config.store_dir), ("half", half.store_dir))
    }
    assert size["half"] < 0.6 * size["full"]


def same_files(one: CacheConfig, other: CacheConfig) -> bool:
    names = sorted(os.listdir(one.store_dir))
    assert names == sorted(os.listdir(other.store_dir))
    return all(
        pathlib.Path(one.store_dir, n).read_bytes() == pathlib.Path(other.store_dir, n).read_bytes() for n in names
    )


class Killed(BaseException):
    pass


def test_killed_work_resumes_to_the_same_bytes(config: CacheConfig, tmp_path: pathlib.Path, monkeypatch) -> None:
    run(config)
    killed = dataclasses.replace(config, store_dir=str(tmp_path / "killed"))
    whole_encoded, calls = cache._encoded, []

    def killed_in_third_shard(*args):
        calls.append(args[1])
        for i, embedding in enumerate(whole_encoded(*args)):
            if len(calls) == 3 and i == 20:
                raise Killed
            yield embedding

    monkeypatch.setattr(cache, "_encoded", killed_in_third_shard)
    with pytest.raises(Killed):
        run(killed)
    with pytest.raises(UserError, match="is not finished"):
        EmbeddingStore.open(killed.store_dir)
    done = sum(len(captions) for captions in calls[:2])
    calls.clear()

    def noting(*args):
        calls.append(args[1])
        return whole_encoded(*args)

    monkeypatch.setattr(cache, "_encoded", noting)
    run(killed)
    assert sum(len(captions) for captions in calls) == len(CAPTIONS) + 1 - done
    assert same_files(config, killed)


def test_processes_share_the_work(config: CacheConfig, tmp_path: pathlib.Path, capsys) -> None:
    """Of three, one is killed on the way and two run at once: the files are those of one process."""
    run(config)
    together = dataclasses.replace(config, store_dir=str(tmp_path / "together"))
    program = (
        "import sys\nfrom imagen_jax.text.store.cache import *\nfrom imagen_jax.text.encoders.t5 import T5Config\n"
        "from imagen_jax.sharding.mesh import MeshConfig\n"
        f"cache_text({together!r}, {EXAMPLES!r}, num_examples={len(EXAMPLES)}, corpus_id='corpus-1', "
        "process_index=int(sys.argv[1]), process_count=3)\n"
    )
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(jax.local_device_count())}

    def start(index: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", program, str(index)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)

    killed = start(2)
    assert killed.stdout and b"in 3 process(es)" in killed.stdout.readline()
    killed.kill()
    killed.communicate()
    others = [start(index) for index in range(2)]
    for other in others:
        assert other.communicate(timeout=120) is not None
    assert [other.returncode for other in others] == [0, 0]
    assert same_files(config, together)


def test_whole_store_is_left_alone_and_of_a_damaged_one_the_damaged_shard_is_made_again(
    config: CacheConfig, capsys
) -> None:
    run(config)
    directory = pathlib.Path(config.store_dir)
    before = {f.name: (f.stat().st_mtime_ns, f.read_bytes()) for f in directory.iterdir()}
    capsys.readouterr()
    cache_text(config, iter(()), num_examples=len(EXAMPLES), corpus_id="corpus-1")
    assert "is whole already" in capsys.readouterr().out
    assert {f.name: (f.stat().st_mtime_ns, f.read_bytes()) for f in directory.iterdir()} == before
    shard = next(directory.glob("text-00001-*.array_record"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 4
    shard.write_bytes(content)
    with pytest.raises(UserError, match=f"{shard.name} differ.*cache_text"):
        validate_cache(config, EXAMPLES, num_examples=len(EXAMPLES), corpus_id="corpus-1")
    run(config)
    assert f"is damaged: {shard.name};" in capsys.readouterr().out
    assert {f.name: f.read_bytes() for f in directory.iterdir()} == {name: bytes for name, (_, bytes) in before.items()}
    untouched = {f.name for f in directory.iterdir() if f.stat().st_mtime_ns == before[f.name][0]}
    assert {name for name in before if name.startswith("text")} - untouched == {shard.name, f"{shard.name}.index"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_validation_encodes_again(config: CacheConfig, dtype: str, capsys) -> None:
    config = dataclasses.replace(config, dtype=dtype, num_validated=50)
    run(config)
    validate_cache(config, EXAMPLES, num_examples=len(EXAMPLES), corpus_id="corpus-1")
    found = re.search(r"(\d+) encoded again with a cosine of at least (0\.\d+|1\.0+)", capsys.readouterr().out)
    assert found and int(found[1]) >= 40 and float(found[2]) >= 0.999
    moved = [*EXAMPLES[1:], (EXAMPLES[0][0], EXAMPLES[0][1])]
    moved = [(key, caption) for (key, _), (_, caption) in zip(EXAMPLES, moved, strict=True)]
    with pytest.raises(UserError, match="are not those of their captions"):
        validate_cache(config, moved, num_examples=len(EXAMPLES), corpus_id="corpus-1")
    with pytest.raises(UserError, match="is of corpus 'corpus-1'"):
        validate_cache(config, EXAMPLES, num_examples=len(EXAMPLES), corpus_id="corpus-2")


def test_strange_captions_are_stored(config: CacheConfig, text_encoder: TextEncoder, capsys) -> None:
    """Empty, emoji, right-to-left, 10 000 words."""
    captions = ["", "🟥🔵 red", "مربع أحمر فوق دائرة", "red " * 10_000]
    examples = [(f"{i}".encode(), caption) for i, caption in enumerate(captions)]
    run(config, examples)
    lengths = [len(e) for e in EmbeddingStore.open(config.store_dir).lookup([key for key, _ in examples])]
    assert lengths[0] == 1 and lengths[3] == config.text.max_length and all(1 < n <= 12 for n in lengths[1:3])
    counts = text_encoder.count_tokens(captions)
    assert f"{sum(n > 12 for n in counts)} of 4 captions were longer" in capsys.readouterr().out


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
    fingerprint = TextEncoder(config.text).fingerprint()
    writer = StoreWriter(config.store_dir, fingerprint=fingerprint, embed_dim=128, num_shards=2, corpus_id="dogs")
    writer.write_shard(0, TextEncoder(config.text).encode_unpadded(["red"]), [b"1"], [0], num_truncated=0)
    with pytest.raises(UserError, match="another plan: num_shards.*; corpus.id: got dogs"):
        run(config)
    with pytest.raises(UserError, match="another process is writing"):
        run(dataclasses.replace(config, overwrite=True))
    del writer
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
        ({"batch_size": 0}, r"batch_size \(0\) must be an integer >= 1"),
        ({"shard_size": 1.5}, r"shard_size \(1.5\) must be an integer >= 1"),
        ({"store_dir": ""}, r"store_dir \(''\) must be the path of a file or folder"),
        ({"text": None}, "text must be a TextConfig"),
        ({"overwrite": "yes"}, "overwrite must be True or False"),
    ],
)
def test_config_refuses(config: CacheConfig, change: dict, message: str, monkeypatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as when gin fills the fields
    with pytest.raises(UserError, match=message):
        dataclasses.replace(config, **change)
