"""Seconds and memory until a corpus and its embedding store are open, at a million pairs and at the paper's 860 M.

    python -m benchmarks.index [--examples 1000000 860000000]

Made up are the manifests, as `build_corpus` and `cache_text` write them (50 000 records a shard, keys of 24 bytes); the
shards and the store's index are files with holes of the right size, for opening reads none of them. Each is opened in a
process of its own, after its imports. Prints a Markdown table.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from imagen_jax.array_records import SUFFIX
from imagen_jax.data.records import FORMAT_VERSION, shard_name
from imagen_jax.text.store import format as store_format

PER_SHARD, KEY_BYTES, RECORD_BYTES, EMBED_DIM = 50_000, 24, 12_000, 4096
OPEN = """
import resource, sys, time
from imagen_jax.data.records import Corpus
from imagen_jax.text.store.reader import EmbeddingStore
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
corpus = Corpus(sys.argv[1] + "/corpus")
middle = time.perf_counter()
store = EmbeddingStore.open(sys.argv[1] + "/store")
end = time.perf_counter()
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(corpus.num_examples("train"), store.num_keys, middle - start, end - middle, grown / 1e6)
"""


def hollow(path: Path, num_bytes: int) -> None:
    """A file of a size that takes no room."""
    with path.open("wb") as file:
        file.truncate(num_bytes)


def hollow_array(path: Path, dtype: np.dtype, count: int) -> int:
    """A .npy file of zeros that takes no room; returns its size."""
    np.lib.format.open_memmap(path, "w+", dtype, (count,)).flush()
    return path.stat().st_size


def make(root: Path, count: int) -> None:
    """A corpus and a store of `count` pairs."""
    num_shards, digest = -(-count // PER_SHARD), "0" * 64
    corpus, store = root / "corpus", root / "store"
    corpus.mkdir()
    store.mkdir()
    of_corpus, of_store = [], []
    for shard in range(num_shards):
        mine = min(PER_SHARD, count - shard * PER_SHARD)
        size = mine * RECORD_BYTES
        name, text = shard_name("train", shard, num_shards), store_format.shard_name(shard, num_shards)
        noted = {"num_bytes": size, "sha256": digest}
        for folder, file in ((corpus, name), (store, text)):
            hollow(folder / file, size)
            hollow(folder / f"{file}{SUFFIX}", 16 * mine)
        of_corpus.append({"file": name, "num_examples": mine, **noted})
        of_store.append({"file": text, "num_embeddings": mine, "num_tokens": 14 * mine, **noted})
    manifest = {"format_version": FORMAT_VERSION, "image_size": 64, "num_rejected": 0}
    splits = {"train": {"num_examples": count, "shards": of_corpus}}
    (corpus / "corpus.json").write_text(json.dumps({**manifest, "splits": splits}))
    files = {
        "keys": (store_format.INDEX_KEYS, np.dtype(f"S{KEY_BYTES}"), count),
        "rows": (store_format.INDEX_ROWS, np.dtype(np.uint32), count),
        "null": (store_format.NULL_TEXT, np.dtype(np.float32), EMBED_DIM),
    }
    entries = {
        part: {"file": name, "num_bytes": hollow_array(store / name, dtype, length), "sha256": digest}
        for part, (name, dtype, length) in files.items()
    }
    header = {
        "format_version": store_format.FORMAT_VERSION,
        "fingerprint": {"dtype": "bfloat16"},
        "embed_dim": EMBED_DIM,
        "num_shards": num_shards,
        "corpus": {"id": digest},
        "num_embeddings": count,
        "num_keys": count,
        "num_tokens": 14 * count,
        "null_text": entries["null"],
        "index": {"keys": entries["keys"], "rows": entries["rows"]},
        "shards": of_store,
    }
    (store / store_format.HEADER).write_text(json.dumps(header))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, nargs="+", default=[1_000_000, 860_000_000])
    print("| pairs | shards | corpus open | store open | memory |\n|---|---|---|---|---|")
    for count in parser.parse_args().examples:
        with tempfile.TemporaryDirectory() as name:
            make(Path(name), count)
            done = subprocess.run(
                [sys.executable, "-c", OPEN, name], capture_output=True, text=True, check=True, env={**os.environ}
            )
            pairs, keys, corpus_s, store_s, gigabytes = map(float, done.stdout.split())
            assert pairs == keys == count
            print(
                f"| {count} | {-(-count // PER_SHARD)} | {corpus_s:.2f} s | {store_s:.2f} s | {gigabytes:.2f} GB |",
                flush=True,
            )


if __name__ == "__main__":
    main()
