"""Start to first step: a fresh run of the demo's base stage, and the same command again after its first update.

    python -m benchmarks.restart [--repeats 3]

Each start is a process of its own, timed from outside until its first metrics line and then stopped by SIGTERM. The
fresh ones have directories of their own; the others are the same command once more, which goes on there with the step
that the fresh one compiled.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from imagen_jax.data.corpora import build_shapes
from imagen_jax.errors import RETRY
from imagen_jax.train.ledger import TOLD, read_ledger


def start(command: list[str], folder: Path) -> tuple[float, dict[str, float]]:
    """Seconds from the start of a training until its next metrics line; and what its ledger says of them."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment |= {"JAX_PLATFORMS": "cpu"}
    lines = folder / "metrics.jsonl"
    before, began = lines.stat().st_size if lines.exists() else 0, time.monotonic()
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    while process.poll() is None and (not lines.exists() or lines.stat().st_size <= before):
        time.sleep(0.01)
    took = time.monotonic() - began
    process.terminate()  # It saves, and ends with the retry code.
    _, error = process.communicate()
    if process.returncode != RETRY:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}\n{error.decode()}")
    ledger = read_ledger(folder)
    mine = [one for one in ledger if one.run == ledger[-1].run]
    return took, {name: mine[0].seconds[name] for name in TOLD}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="fresh starts and restarts (default 3)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        build_shapes(root / "corpus", {"train": 512, "val": 8}, seed=0, vocab_size=256)
        imagen = [sys.executable, "-m", "imagen_jax.main"]
        run = ["--gin_file=configs/experiments/demo_base.gin", f"--gin.CORPUS_DIR={root}/corpus"]
        run += [f"--gin.STORE_DIR={root}/store", f"--gin.VOCABULARY_PATH={root}/corpus/vocabulary.model"]
        subprocess.run([*imagen, "cache_text", *run], check=True, stderr=subprocess.DEVNULL)
        fresh, again = [], []
        for number in range(args.repeats):
            folder = root / f"base_{number}"
            train = [*imagen, "train", *run, f"--gin.MODEL_DIR={folder}", "--gin.TrainConfig.log_every=1"]
            for kind, times in (("fresh", fresh), ("again", again)):
                took, parts = start([*train, "--gin.TrainConfig.previews=None"], folder)
                times.append(took)
                told = ", ".join(f"{part} {seconds:.1f}" for part, seconds in parts.items() if seconds >= 0.05)
                print(f"{kind} {took:.1f} s; of it in train(): {told}", flush=True)
        one, two = statistics.median(fresh), statistics.median(again)
        print(f"median: fresh {one:.1f} s, again {two:.1f} s, 1/{one / two:.1f}")


if __name__ == "__main__":
    main()
