"""Records a second that one process reads from a bucket whose every answer comes late.

    python -m benchmarks.bucket_reads [--delay_ms 30] [--records 4000] [--kilobytes 12] [--seconds 10]

A server of the protocol runs in a process of its own on this machine (tests/gcs.py). Batches of 64 random records, each
read once, are read by as many threads as the input pipeline has batches in the making. Besides, the server is asked as
fast as it can answer without a delay, which is what it could give at best: it is Python and shares the cores.
"""

import argparse
import multiprocessing
import os
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax.data.records import FORMAT_VERSION, Corpus, Record, SplitWriter, encode_record
from imagen_jax.files import move_file, write_json

URL = "gs://bucket-a/corpus"
BATCH, THREADS = 64, 4


def serve(pipe: Any, delay_s: float) -> None:
    """Runs the server until it is told to end; a number that it is sent is the new delay."""
    from tests import gcs

    with gcs.running() as server:
        pipe.send(server.environment())
        while (told := pipe.recv()) is not None:
            server.delay_s = told
            pipe.send(len(server.requests))


def write_corpus(count: int, num_bytes: int) -> None:
    """A corpus of records of random bytes in the bucket, 500 a shard."""
    with tempfile.TemporaryDirectory() as name:
        writer, rng = SplitWriter(Path(name), "train", 500), np.random.default_rng(0)
        for number in range(count):
            record = Record(key=f"{number:08d}".encode(), image=rng.bytes(num_bytes), caption="c", height=1, width=1)
            writer.write(encode_record(record))
        splits = {"train": writer.finish()}
        write_json(
            Path(name, "corpus.json"),
            {"format_version": FORMAT_VERSION, "image_size": 1, "num_rejected": 0, "splits": splits},
        )
        for path in sorted(Path(name).iterdir(), key=lambda path: path.name == "corpus.json"):
            move_file(path, f"{URL}/{path.name}")


def rate(count: int, seconds: float) -> float:
    """Records a second, each read once and none from this machine's disk."""
    corpus = Corpus(URL)
    corpus.read("train", list(range(0, count, 500)))  # The indices.
    order = iter(np.random.default_rng(1).permutation(count).reshape(-1, BATCH).tolist())
    done, lock, start = [0], threading.Lock(), time.perf_counter()

    def work() -> None:
        while time.perf_counter() - start < seconds:
            with lock:
                batch = next(order, None)
            if batch is None:
                return
            corpus.read("train", batch)
            with lock:
                done[0] += len(batch)

    with ThreadPoolExecutor(THREADS) as threads:
        for one in [threads.submit(work) for _ in range(THREADS)]:
            one.result()
    return done[0] / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--delay_ms", type=float, default=30.0)
    parser.add_argument("--records", type=int, default=64 * 300)
    parser.add_argument("--kilobytes", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=10.0)
    args = parser.parse_args()
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs, 0.0), daemon=True)
    server.start()
    os.environ.update(ours.recv())
    write_corpus(args.records // BATCH * BATCH, args.kilobytes * 1000)
    for delay in (args.delay_ms, 0.0):
        with tempfile.TemporaryDirectory() as copies:
            os.environ["IMAGEN_JAX_CACHE_DIR"] = copies
            ours.send(delay / 1000)
            ours.recv()
            found = rate(args.records // BATCH * BATCH, args.seconds)
        print(f"| {delay:g} ms | {found:.0f} records/s | {found * args.kilobytes / 1000:.1f} MB/s |", flush=True)
    ours.send(None)


if __name__ == "__main__":
    main()
