"""The store of two Beam workers is that of `imagen_jax cache_text`, byte for byte, and refused in the same words."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

# `make beam-test` installs it.
pytest.importorskip("apache_beam")

from imagen_jax.beam.cache_text import cache_text
from imagen_jax.commands.cache_text import cache_corpus
from imagen_jax.data.records import Corpus, Record, SplitWriter, encode_record
from imagen_jax.errors import UserError
from imagen_jax.text.store.cache import CacheConfig, num_shards_of, plan_shards, write_if_free
from imagen_jax.text.store.reader import EmbeddingStore
from imagen_jax.text.store.writer import StoreWriter
from tests.beam.conftest import TWO_PROCESSES, TWO_THREADS, files


@pytest.fixture
def serial(cache_config: CacheConfig, tmp_path: Path) -> CacheConfig:
    """The store as one process writes it."""
    config = dataclasses.replace(cache_config, store_dir=str(tmp_path / "serial"))
    cache_corpus(config)
    return config


def test_bytes_are_those_of_one_process(cache_config: CacheConfig, serial: CacheConfig, capsys) -> None:
    # What a launch that was killed left.
    left = Path(cache_config.store_dir).parent / ".captions-0123"
    left.mkdir()
    (left / "plan-0000000").write_bytes(b"1")
    cache_text(cache_config, TWO_PROCESSES)
    assert files(cache_config.store_dir) == files(serial.store_dir)
    out = capsys.readouterr().out
    assert "400 captions, " in out and "7 of 7 shards" in out and "is whole; " in out
    assert [path.name for path in Path(cache_config.store_dir).parent.iterdir() if path.name.startswith(".")] == []
    store = EmbeddingStore.open(cache_config.store_dir)
    assert store.num_embeddings < store.num_keys == 400
    cache_text(cache_config, TWO_PROCESSES)
    assert "is whole already" in capsys.readouterr().out
    other = dataclasses.replace(cache_config, text=dataclasses.replace(cache_config.text, max_length=9))
    with pytest.raises(UserError, match="fingerprint.max_length: got 12, expected 9"):
        cache_text(other, TWO_PROCESSES)


def test_whole_shards_are_not_encoded_again(cache_config: CacheConfig, serial: CacheConfig, capsys) -> None:
    corpus, encoder = Corpus(cache_config.corpus_dir), cache_config.encoder()
    plans = plan_shards(corpus.captions(), num_shards_of(400, cache_config.shard_size))
    writer = StoreWriter(
        cache_config.store_dir,
        fingerprint=encoder.fingerprint(),
        embed_dim=encoder.sizes.embed_dim,
        num_shards=len(plans),
        corpus_id=corpus.digest,
    )
    done = [shard for shard in (1, 4) if write_if_free(writer, shard, plans[shard], cache_config, encoder)]
    del writer
    kept = [path for shard in done for path in Path(cache_config.store_dir).glob(f"text-{shard:05d}-*.array_record")]
    before = [path.stat().st_mtime_ns for path in kept]
    cache_text(cache_config, TWO_THREADS)
    assert "5 of 7 shards" in capsys.readouterr().out
    assert len(kept) == 2 and [path.stat().st_mtime_ns for path in kept] == before
    assert files(cache_config.store_dir) == files(serial.store_dir)


def test_few_captions_leave_shards_empty(cache_config: CacheConfig, tmp_path: Path) -> None:
    few = dataclasses.replace(cache_config, corpus_dir=str(tmp_path / "few"), shard_size=1)
    write_corpus(tmp_path / "few", [b"1", b"2", b"3"])
    together = dataclasses.replace(few, store_dir=str(tmp_path / "together"))
    cache_corpus(few)
    cache_text(together, [])
    assert files(few.store_dir) == files(together.store_dir)


def write_corpus(directory: Path, keys: list[bytes]) -> None:
    """A corpus of the same caption under keys that the builder might refuse."""
    directory.mkdir()
    writer = SplitWriter(directory, "train", 2)
    for key in keys:
        writer.write(encode_record(Record(key=key, image=b"", caption="a red circle", height=1, width=1)))
    manifest = {"format_version": 1, "image_size": 1, "num_rejected": 0, "splits": {"train": writer.finish()}}
    (directory / "corpus.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("keys", [[b"1", b"2", b"1", b"3", b"3", b"3"], [b"1", b"2\0", b"3"]], ids=["recur", "zero"])
def test_keys_are_refused_before_anything_is_written(cache_config: CacheConfig, tmp_path: Path, keys) -> None:
    config = dataclasses.replace(cache_config, corpus_dir=str(tmp_path / "corpus"))
    write_corpus(tmp_path / "corpus", keys)
    with pytest.raises(UserError) as expected:
        cache_corpus(config)
    with pytest.raises(UserError) as got:
        cache_text(config, [])
    assert str(got.value) == str(expected.value)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


def test_the_script(cache_config: CacheConfig, serial: CacheConfig, tmp_path: Path, run_script, capsys) -> None:
    gin_file = tmp_path / "text.gin"
    gin_file.write_text(
        "from __gin__ import dynamic_registration\n"
        "from imagen_jax.text import encoder\n"
        "from imagen_jax.text.encoders import t5\n"
        "include 'configs/runs/cache_text.gin'\n"
        "encoder.TextConfig.encoder = @t5.T5Config()\n"
        "encoder.TextConfig.max_length = 12\n"
        + "".join(f"t5.T5Config.{name} = {value!r}\n" for name, value in sizes_of(cache_config).items())
    )
    damaged = tmp_path / "corpus"
    shutil.copytree(cache_config.corpus_dir, damaged)
    flags = [
        f"--gin_file={gin_file}",
        f"--gin.STORE_DIR={cache_config.store_dir}",
        f"--gin.TextConfig.vocabulary_path={cache_config.text.vocabulary_path}",
        "--gin.CacheConfig.batch_size=16",
        "--gin.CacheConfig.shard_size=64",
    ]
    assert run_script("beam_cache_text.py", *TWO_THREADS) == 2
    assert "add --gin_file=FILE" in capsys.readouterr().err
    assert run_script("beam_cache_text.py", *flags, f"--gin.CORPUS_DIR={tmp_path / 'absent'}", *TWO_THREADS) == 2
    assert "does not exist; build a corpus there first" in capsys.readouterr().err
    shard = next(damaged.glob("train-00002-*.array_record"))
    shard.write_bytes(bytes(shard.stat().st_size))
    assert run_script("beam_cache_text.py", *flags, f"--gin.CORPUS_DIR={damaged}", *TWO_THREADS) == 2
    error = capsys.readouterr().err
    assert "error: shard " in error and error.strip().splitlines()[-1].endswith("rebuild the corpus")
    assert run_script("beam_cache_text.py", *flags, f"--gin.CORPUS_DIR={cache_config.corpus_dir}", *TWO_THREADS) == 0
    assert files(cache_config.store_dir) == files(serial.store_dir)


def sizes_of(config: CacheConfig) -> dict[str, int]:
    sizes = dataclasses.asdict(config.text.sizes())
    return {name: sizes[name] for name in ("vocab_size", "embed_dim", "num_heads", "head_dim", "num_layers", "mlp_dim")}
