"""Cost of mixing three corpora instead of reading one of them.

    python -m benchmarks.mixing [--rounds 40] [--batches 40] [--size 64]

Both kinds of batches are read in turns by one process. Its CPU time of all threads is compared, which other work on the
machine hardly touches, and the time on the clock. A turn ends when the threads that read ahead have come to rest.
"""

import argparse
import functools
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from imagen_jax.data.builder import BuildConfig, build_corpus
from imagen_jax.data.config import CorpusShare, DataConfig
from imagen_jax.data.pipeline import BatchIterator
from imagen_jax.data.raw import RawExample, Source
from imagen_jax.text.store.writer import StoreWriter

BATCH, EXAMPLES, WIDTH = 32, 1000, 512


def pictures(size: int) -> Iterator[RawExample]:
    """Pictures of 8 x 8 squares, about as large in bytes as drawings are."""
    rng = np.random.default_rng(0)
    for number in range(EXAMPLES):
        small = rng.integers(0, 256, (8, 8, 3), np.uint8)
        image = small.repeat(size // 8, 0).repeat(size // 8, 1)
        yield RawExample(key=f"{number:06d}", image=image, caption=f"picture {number}", split="train")


def share(folder: Path, size: int, rate: float) -> CorpusShare:
    """A corpus and its store."""
    source = Source(parts=[functools.partial(pictures, size)], num_examples=EXAMPLES, settings={"size": size})
    build_corpus(source, folder / "corpus", BuildConfig(name=folder.name, image_size=size))
    keys = [f"{number:06d}".encode() for number in range(EXAMPLES)]
    store = StoreWriter(str(folder / "store"), fingerprint={"dtype": "bfloat16"}, embed_dim=WIDTH)
    store.write_shard(0, [np.ones((14, WIDTH), np.float32)] * EXAMPLES, keys, list(range(EXAMPLES)))
    store.finish(np.zeros((1, WIDTH), np.float32))
    return CorpusShare(corpus_dir=str(folder / "corpus"), store_dir=str(folder / "store"), rate=rate, name=folder.name)


def turn(batches: BatchIterator, count: int) -> tuple[float, float]:
    """CPU and clock seconds of some batches."""
    cpu, clock = time.process_time(), time.perf_counter()
    for _ in range(count):
        next(batches)
    clock = time.perf_counter() - clock
    used = time.process_time()
    while True:
        time.sleep(0.05)
        if time.process_time() - used < 0.002:
            return used - cpu, clock
        used = time.process_time()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--size", type=int, default=64)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shares = [share(Path(folder, name), args.size, rate) for name, rate in (("a", 0.5), ("b", 0.3), ("c", 0.2))]
        one, three = (
            BatchIterator(
                DataConfig(mixture=tuple(mixed), image_size=args.size, max_text_length=64),
                batch_size=BATCH,
                seed=0,
                start_step=0,
            )  # fmt: skip
            for mixed in (shares[:1], shares)
        )
        turn(one, args.batches), turn(three, args.batches)
        found = []
        for number in range(args.rounds):
            # Who goes first changes, so that neither always meets the other's caches.
            pair = [turn(batches, args.batches) for batches in ((one, three) if number % 2 else (three, one))]
            found.append(pair if number % 2 else pair[::-1])
        one.close()
        three.close()
    for name, index in (("CPU", 0), ("clock", 1)):
        ratios = [mixed[index] / alone[index] for alone, mixed in found]
        low, middle, high = statistics.quantiles(ratios, n=4)
        total = sum(mixed[index] for _, mixed in found) / sum(alone[index] for alone, _ in found)
        alone_ms = 1000 * statistics.median(alone[index] for alone, _ in found) / args.batches
        print(
            f"| {name} | {alone_ms:.2f} ms a batch of one | three / one {middle:.4f} (quartiles {low:.4f} to "
            f"{high:.4f}), of the sums {total:.4f} |"
        )


if __name__ == "__main__":
    main()
