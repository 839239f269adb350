"""Manifests: corpus.json of a corpus, store.json of an embedding store, and what they say of the files beside them."""

from pathlib import Path

import numpy as np
import pytest

from imagen_jax.data.builder import BuildConfig, build_corpus
from imagen_jax.data.raw import RawExample, Source
from imagen_jax.data.records import Corpus
from imagen_jax.text.store.reader import EmbeddingStore, StoreWriter
from tests.fuzz.folders import Folder
from tests.fuzz.running import fuzz

_CONFIG = BuildConfig(name="mine", image_size=8, examples_per_shard=2)


def _examples() -> list[RawExample]:
    pixels = np.zeros((8, 8, 3), np.uint8)
    return [RawExample(key=str(i), image=pixels + i, caption=f"number {i}", split="vt"[i % 2] + "x") for i in range(5)]


_SOURCE = Source(parts=[_examples], num_examples=5, settings={"kind": "test"})


@pytest.fixture
def corpus(tmp_path) -> Path:
    build_corpus(_SOURCE, tmp_path / "corpus", _CONFIG)
    return tmp_path / "corpus"


def _writer(folder: Path) -> StoreWriter:
    return StoreWriter(str(folder), fingerprint={"dtype": "float32", "vocabulary": "v"}, embed_dim=4, num_shards=2)


def _write_shard(writer: StoreWriter, shard: int) -> None:
    embeddings = [np.full((n + 1, 4), n, np.float32) for n in range(3)]
    writer.write_shard(shard, embeddings, [f"{shard}/{n}".encode() for n in range(3)], [0, 1, 2], num_truncated=0)


@pytest.fixture
def store(tmp_path) -> Path:
    writer = _writer(tmp_path / "store")
    for shard in range(2):
        _write_shard(writer, shard)
    writer.finish(np.zeros((1, 4), np.float32))
    return tmp_path / "store"


def test_corpora(pytestconfig, corpus):
    def attempt(case: tuple[str, bytes]) -> None:
        found = Corpus(corpus)
        assert isinstance(found.image_size, int)
        found.verify()
        assert all(record.caption for split in found.splits for record in found.records(split))

    fuzz(pytestconfig, "corpus.json", Folder(corpus, "corpus.json", 0.8).spoil, attempt)


def test_corpora_that_nobody_verified(pytestconfig, corpus):
    def attempt(case: tuple[str, bytes]) -> None:
        found = Corpus(corpus)
        for split in found.splits:
            list(found.records(split))

    fuzz(pytestconfig, "corpus", Folder(corpus, "corpus.json", 0.8).spoil, attempt)


@pytest.mark.parametrize("overwrite", [False, True])
def test_building_where_a_corpus_is(pytestconfig, corpus, overwrite):
    (corpus.parent / "beside").write_text("not of this corpus")

    def attempt(case: tuple[str, bytes]) -> None:
        (corpus / "notes.txt").write_text("the user's own")
        try:
            build_corpus(_SOURCE, corpus, _CONFIG, overwrite=overwrite)
        finally:
            assert (corpus / "notes.txt").read_text() == "the user's own"
            assert not list(corpus.glob(".building-*"))
        if overwrite:
            Corpus(corpus).verify()

    fuzz(
        pytestconfig, f"rebuild {overwrite}", Folder(corpus, "corpus.json", 0.8).spoil, attempt,
        writes=corpus,
    )  # fmt: skip


def test_stores(pytestconfig, store):
    keys = [f"{shard}/{n}".encode() for shard in range(2) for n in range(3)]

    def attempt(case: tuple[str, bytes]) -> None:
        found = EmbeddingStore.open(str(store))
        found.check({"dtype": "float32", "vocabulary": "v"})
        assert all(one.shape[1] == found.embed_dim for one in found.lookup(keys))
        assert found.null_text.shape[1] == found.embed_dim
        found.verify()

    fuzz(pytestconfig, "store.json", Folder(store, "store.json", 0.8).spoil, attempt)


def test_finishing_a_store(pytestconfig, store):
    """One shard is there, noted as whole, and the other is not; notes, plan and shard are spoilt."""
    writer = _writer(store.parent / "begun")
    _write_shard(writer, 0)
    del writer

    def attempt(case: tuple[str, bytes]) -> None:
        writer = _writer(store.parent / "begun")
        for shard in writer.missing_shards():
            with writer.claim(shard) as mine:
                assert mine
                _write_shard(writer, shard)
        writer.finish(np.zeros((1, 4), np.float32))
        found = EmbeddingStore.open(str(store.parent / "begun"))
        found.verify()
        assert [one[0, 0] for one in found.lookup([b"0/1", b"1/2"])] == [1, 2]

    fuzz(
        pytestconfig, "plan.json", Folder(store.parent / "begun", "plan.json", 0.3).spoil, attempt,
        writes=store.parent / "begun",
    )  # fmt: skip
