"""Records a second that one process reads from a bucket whose every answer comes late.

    python -m benchmarks.bucket_reads [--delay_ms 30] [--records 19200] [--kilobytes 12] [--seconds 10] [--threads 4]

benchmarks/range_server.py answers on this machine, so it and the reader share its cores. Batches of 64 random records,
each read once, are read by several threads. Besides, the server answers without a delay; and records are divided by the
reader's own CPU time too: what one core of a host could read if nothing else ran on it.
"""

import argparse
import multiprocessing
import os
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks.range_server import serving
from imagen_jax.data.records import FORMAT_VERSION, Corpus, Record, SplitWriter, encode_record
from imagen_jax.files import write_json

BUCKET = "bucket-a"
URL = f"gs://{BUCKET}/corpus"
BATCH = 64


def write_corpus(folder: Path, count: int, num_bytes: int) -> None:
    """A corpus of records of random bytes, 500 a shard."""
    folder.mkdir(parents=True)
    writer, rng = SplitWriter(folder, "train", 500), np.random.default_rng(0)
    for number in range(count):
        record = Record(key=f"{number:08d}".encode(), image=rng.bytes(num_bytes), caption="c", height=1, width=1)
        writer.write(encode_record(record))
    manifest = {"format_version": FORMAT_VERSION, "image_size": 1, "num_rejected": 0}
    write_json(folder / "corpus.json", {**manifest, "splits": {"train": writer.finish()}})


def rate(count: int, seconds: float, num_threads: int) -> tuple[float, float]:
    """Records a second, each read once and none from this machine's disk; and records a second of this CPU's time."""
    corpus = Corpus(URL)
    corpus.read("train", list(range(0, count, 500)))  # The indices.
    order = iter(np.random.default_rng(1).permutation(count).reshape(-1, BATCH).tolist())
    done, lock, start, cpu = [0], threading.Lock(), time.perf_counter(), time.process_time()

    def work() -> None:
        while time.perf_counter() - start < seconds:
            with lock:
                batch = next(order, None)
            if batch is None:
                return
            corpus.read("train", batch)
            with lock:
                done[0] += len(batch)

    with ThreadPoolExecutor(num_threads) as threads:
        for one in [threads.submit(work) for _ in range(num_threads)]:
            one.result()
    return done[0] / (time.perf_counter() - start), done[0] / (time.process_time() - cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--delay_ms", type=float, default=30.0)
    parser.add_argument("--records", type=int, default=64 * 300)
    parser.add_argument("--kilobytes", type=int, default=12)
    parser.add_argument("--threads", type=int, default=4, help="batches that are read at once")
    parser.add_argument("--servers", type=int, default=1, help="processes that answer")
    parser.add_argument("--seconds", type=float, default=10.0)
    args = parser.parse_args()
    count = args.records // BATCH * BATCH
    with tempfile.TemporaryDirectory() as folder:
        write_corpus(Path(folder, "corpus"), count, args.kilobytes * 1000)
        for delay in (args.delay_ms, 0.0):
            # A process each: tensorstore keeps the server's address.
            child = multiprocessing.get_context("spawn").Process(target=measure, args=(folder, delay, count, args))
            child.start()
            child.join()


def measure(folder: str, delay: float, count: int, args: argparse.Namespace) -> None:
    """Prints the rates with one delay."""
    with serving(folder, BUCKET, delay / 1000, args.servers) as variables, tempfile.TemporaryDirectory() as copies:
        os.environ.update(variables, IMAGEN_JAX_CACHE_DIR=copies)
        found, per_core = rate(count, args.seconds, args.threads)
    megabytes = found * args.kilobytes / 1000
    print(f"| {delay:g} ms | {found:.0f} records/s | {megabytes:.1f} MB/s | {per_core:.0f} a core |", flush=True)


if __name__ == "__main__":
    main()
