"""A pipeline wholly in a bucket, killed again and again, against one that nothing disturbed.

    python -m benchmarks.kills [--kills 20] [--seed 0] [--faults]

Corpus, embeddings, base stage, super-resolution stage and samples of a tiny cascade (tests/integration) are made by one
process with every directory in a bucket of a server of the protocol (tests/gcs.py). It is killed with SIGKILL at
moments drawn from the seed: as many in each phase, each some time after it was entered, at most as long as the phase
took undisturbed. Each time the same command is started again, until it ends by itself. Then pictures, parameters,
corpus, store and the lines of metrics, without times, must be those of a run in a folder of this machine. With --faults
one answer in 37 is a 429, 500, 503 or lost, and each waits 20 ms.
"""

import argparse
import io
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from imagen_jax.checkpoints import checkpoints, folders
from imagen_jax.data.corpora import build_shapes
from imagen_jax.files import as_path, files_under
from imagen_jax.main import main as imagen_jax
from tests import gcs

URL = "gs://bucket-a/cascade"
PHASES = ("corpus", "embeddings", "base", "sr", "samples")
TIMES = ("images_per_s", "step_time_s", "data_s", "compute_s", "mfu", "own_s", "step_p50_s", "step_p90_s", "step_p99_s")
PROMPTS = ("a red circle", "two blue squares", "a green star", "a yellow ring")


def work(root: str) -> None:
    """Makes what is not there yet; tells each phase as it begins."""
    corpus = f"{root}/corpus"
    places = {"CORPUS_DIR": corpus, "STORE_DIR": f"{root}/store", "VOCABULARY_PATH": f"{corpus}/vocabulary.model"}
    flags = [f"--gin.{name}={value}" for name, value in places.items()]

    def begin(phase: str) -> None:
        print(f"phase {phase}", flush=True)

    begin("corpus")
    build_shapes(corpus, {"train": 48, "val": 4}, seed=0, vocab_size=200)
    begin("embeddings")
    code = imagen_jax(
        ["cache_text", "--gin_file=tests/integration/tiny_base.gin", *flags, "--gin.CacheConfig.shard_size=8"]
    )
    for stage in ("base", "sr"):
        begin(stage)
        own = [
            f"--gin_file=tests/integration/tiny_{stage}.gin",
            f"--gin.MODEL_DIR={root}/{stage}",
            "--gin.NUM_STEPS=12",
        ]
        code = code or imagen_jax(["train", *own, *flags])
    begin("samples")
    sys.exit(
        code or imagen_jax(["sample", "--checkpoint", root, "--output", f"{root}/samples", "--seed", "3", *PROMPTS])
    )


def start(root: str) -> subprocess.Popen[str]:
    """Starts `work` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.kills", "--work", root]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def follow(process: subprocess.Popen[str]) -> dict[str, float]:
    """Seconds of each phase of a process that nothing disturbs."""
    assert process.stdout is not None
    began = [(line.split()[1], time.monotonic()) for line in process.stdout if line.startswith("phase ")]
    assert process.stderr is not None
    error = process.stderr.read()
    if process.wait():
        raise SystemExit(f"the undisturbed pipeline ended with {process.returncode}: {error}")
    ends = [at for _, at in began[1:]] + [time.monotonic()]
    return {phase: end - at for (phase, at), end in zip(began, ends, strict=True)}


def run_until(root: str, phase: str, after_s: float) -> bool:
    """Starts the pipeline and kills it some time after it entered a phase; False if it was done before.

    Raises:
      SystemExit: it ended with an error.
    """
    process = start(root)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("phase ") and PHASES.index(line.split()[1]) >= PHASES.index(phase):
            break
    try:
        process.communicate(timeout=after_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return True
    if process.returncode:
        raise SystemExit(f"the pipeline ended with {process.returncode}")
    return False


def outcome(root: str) -> dict[str, object]:
    """All that must be the same: pixels of the pictures, parameters, lines of metrics, names of corpus and store."""
    place = as_path(root)
    found: dict[str, object] = {}
    for path in sorted((place / "samples").iterdir()):
        if path.suffix == ".png":
            found[f"pixels of {path.name}"] = np.asarray(Image.open(io.BytesIO(path.read_bytes()))).tolist()
    for stage in ("base", "sr"):
        leaves = jax.tree.leaves(checkpoints.load_params(f"{root}/{stage}"))
        found[f"parameters of {stage}"] = [np.asarray(leaf).tobytes() for leaf in leaves]
        found[f"checkpoints of {stage}"] = folders.saved_steps(f"{root}/{stage}")
        lines = map(json.loads, (place / stage / "metrics.jsonl").read_text().splitlines())
        found[f"metrics of {stage}"] = [{k: v for k, v in line.items() if k not in TIMES} for line in lines]
    for folder in ("corpus", "store"):
        found[f"files of {folder}"] = {
            name: (place / folder / name).read_bytes() for name in files_under(place / folder)
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="how often it is killed (default 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default 0)")
    parser.add_argument("--faults", action="store_true", help="the server fails now and then, and is slow")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args.work)
    rng, answered = random.Random(args.seed), [0]

    def fault(method: str, path: str) -> int | None:
        answered[0] += 1
        return (429, 500, 503, -503)[answered[0] // 37 % 4] if answered[0] % 37 == 0 else None

    with gcs.running() as server, tempfile.TemporaryDirectory() as name:
        os.environ["IMAGEN_JAX_CACHE_DIR"] = str(Path(name, "copies"))
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(name, "compiled"))
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
        started, here = time.monotonic(), str(Path(name, "cascade"))
        follow(start(here))
        # Once more, with its programs compiled, to know how long its phases are in a bucket.
        took = follow(start(f"{URL}-undisturbed"))
        print("undisturbed:", ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in took.items()), flush=True)
        if args.faults:
            server.fault, server.delay_s = fault, 0.02
        done = 0
        for number in range(args.kills):
            phase = PHASES[number * len(PHASES) // args.kills]
            after_s = rng.uniform(0, took[phase])
            killed = run_until(URL, phase, after_s)
            done += killed
            told = "killed" if killed else "had ended"
            print(f"{number + 1}: {phase} + {after_s:.2f} s: {told}", flush=True)
        follow(start(URL))
        server.fault, server.delay_s = lambda method, path: None, 0.0
        wanted, got = outcome(here), outcome(URL)
        differ = [what for what in wanted.keys() | got.keys() if wanted.get(what) != got.get(what)]
        left = [name for name in server.names() if name.startswith("cascade/") and "lock" in name]
        print(f"killed {done} times, {time.monotonic() - started:.0f} s, {len(server.requests)} requests")
        print(f"locks left: {left or 'none'}; different: {sorted(differ) or 'nothing'} of {len(wanted)}")
        sys.exit(bool(differ or left))


if __name__ == "__main__":
    main()
