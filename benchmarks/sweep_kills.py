"""A sweep killed again and again, and one that two processes share, against one that nothing disturbed.

    python -m benchmarks.sweep_kills --run_dir DIR [--kills 10] [--seed 0]

DIR is a trained cascade of stages "base" and "sr". The short sweep of the demo is run to its end. It is then begun
anew, killed with SIGKILL at a moment drawn from the seed after its first batch, and gone on with, as often as asked.
Last, two processes begin it at once. Tables must have the same bytes. Each process prints a line for each batch that a
network drew, so that images are counted where they are drawn.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BATCH = 8
CONFIG = "configs/experiments/demo_short_sweep.gin"


def work(run_dir: str, output_dir: str) -> int:
    """Runs the sweep; prints the number of images of each batch as a network has drawn it."""
    from imagen_jax.main import main
    from imagen_jax.sampling.cascade import Cascade

    stream = Cascade.stream

    def told(self: Cascade, *args: Any, **options: Any) -> Iterator[Any]:
        for chosen, images in stream(self, *args, **options):
            print(f"drawn {len(chosen)}", flush=True)
            yield chosen, images

    Cascade.stream = told  # type: ignore[method-assign]
    return main(["sweep", f"--gin_file={CONFIG}", f"--gin.RUN_DIR={run_dir}", f"--gin.OUTPUT_DIR={output_dir}"])


def start(run_dir: str, output_dir: Path) -> subprocess.Popen[str]:
    """A process that runs the sweep."""
    words = [sys.executable, "-u", "-m", "benchmarks.sweep_kills", "--run_dir", run_dir, "--work", str(output_dir)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def drawn_by(process: subprocess.Popen[str], kill_after_s: float | None = None) -> tuple[int, bool]:
    """Images that a process drew, and whether it was killed that long after its first batch."""
    assert process.stdout is not None
    total, killed, first = 0, False, 0.0
    for line in process.stdout:
        if line.startswith("drawn "):
            total += int(line.split()[1])
            first = first or time.monotonic()
        if kill_after_s is not None and first and not killed:
            time.sleep(kill_after_s)
            killed = process.poll() is None
            process.kill()
    process.wait()
    return total, killed


def tables(folder: Path) -> list[bytes]:
    """The bytes that must be the same."""
    return [(folder / name).read_bytes() for name in ("sweep.csv", "sweep.json")]


def measure(run_dir: str, kills: int, seed: int, folder: Path) -> None:
    """Runs the three sweeps and prints a table."""
    begun = time.monotonic()
    whole, _ = drawn_by(start(run_dir, folder / "whole"))
    print(f"undisturbed: {whole} images, {time.monotonic() - begun:.1f} s", flush=True)
    chance, done, total, again = random.Random(seed), 0, 0, 0
    for number in range(10 * kills):
        output = folder / f"killed_{number}"
        count, killed = drawn_by(start(run_dir, output), chance.uniform(0.0, 3.0))
        if not killed:
            continue
        rest, _ = drawn_by(start(run_dir, output))
        done, total, again = done + 1, total + count + rest - whole, max(again, count + rest - whole)
        assert tables(output) == tables(folder / "whole")
        print(f"kill {done}: {count} + {rest} images, {count + rest - whole} drawn again; same bytes", flush=True)
        if done == kills:
            break
    print(f"{done} kills: same bytes each time, at most {again} images drawn again ({BATCH} are a batch)")
    two = [start(run_dir, folder / "shared") for _ in range(2)]
    counts = [drawn_by(process)[0] for process in two]
    assert tables(folder / "shared") == tables(folder / "whole")
    print(f"two processes: {counts[0]} + {counts[1]} images of {whole}; same bytes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run_dir", required=True)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        sys.exit(work(args.run_dir, args.work))
    with tempfile.TemporaryDirectory() as place:
        measure(args.run_dir, args.kills, args.seed, Path(place))
