"""Tiny corpora and stores whose pixels and embeddings tell the example's number."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from imagen_jax.data.builder import BuildConfig, build_corpus
from imagen_jax.data.raw import RawExample, Source
from imagen_jax.text.store.reader import StoreWriter

EMBED_DIM = 4


@pytest.fixture
def source_of() -> Callable[[list[RawExample]], Source]:
    return lambda examples: Source(
        parts=[lambda: iter(examples)], num_examples=len(examples), settings={"kind": "test"}
    )


@pytest.fixture
def numbered_corpus(tmp_path: Path, source_of) -> Callable[..., str]:
    """Builds a corpus of `count` images of one grey level each, the number of the example."""

    def build(count: int, image_size: int = 8, name: str = "numbered") -> str:
        examples = [
            RawExample(
                key=f"example-{i:03d}",
                image=np.full((image_size, image_size, 3), i, np.uint8),
                caption=f"number {i}",
                split="train" if i < count else "val",
            )
            for i in range(count + 2)
        ]
        config = BuildConfig(name=name, image_size=image_size, examples_per_shard=3)
        build_corpus(source_of(examples), tmp_path / name, config)
        return str(tmp_path / name)

    return build


@pytest.fixture
def numbered_store(tmp_path: Path) -> Callable[..., str]:
    """Writes a store in which example i has 1 + i % 3 tokens, every number of them i."""

    def write(count: int, name: str = "store", dtype: str = "float32") -> str:
        directory = str(tmp_path / name)
        num_shards = -(-count // 4)
        writer = StoreWriter(directory, fingerprint={"dtype": dtype}, embed_dim=EMBED_DIM, num_shards=num_shards)
        for shard in range(num_shards):
            mine = range(4 * shard, min(4 * shard + 4, count))
            values = [np.full((1 + i % 3, EMBED_DIM), i, np.float32) for i in mine]
            writer.write_shard(shard, values, [f"example-{i:03d}".encode() for i in mine], range(len(mine)))
        writer.finish(np.full((1, EMBED_DIM), -1, np.float32))
        return directory

    return write
