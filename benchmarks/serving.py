"""Load on `imagen_jax serve`: throughput beside drawing offline, a long mixed load, time to the first image.

    python -m benchmarks.serving BUNDLE [--batch_size 16] [--requests 2000] [--clients 50] [--rounds 3]

The server is a process of its own, with one batch size. Throughput: as many images by HTTP, by more clients than a
batch has images, as offline, in turns. Mixed load: each client cancels one request in ten by closing its connection
and sends one in ten malformed; every image that comes is compared with that of its seed drawn offline. First image:
a new process imports, loads and draws, with the programs of an earlier one in jax's compilation cache.
"""

import argparse
import base64
import collections
import concurrent.futures
import contextlib
import functools
import http.client
import io
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import numpy as np
import psutil
from PIL import Image

from imagen_jax import Cascade

PATH = "/v1/images/generations"
MALFORMED = (
    b"{",
    b"[]",
    b'{"prompt": 3}',
    b'{"prompt": "a", "n": 1000}',
    b'{"prompt": "a", "num_steps": 100000}',
    b"\xff" * 99,
)
FIRST = (
    "import sys, time; begun = time.perf_counter(); from imagen_jax import Cascade\n"
    "Cascade.load(sys.argv[1]).sample(['a red circle'], label='')\n"
    "print(time.perf_counter() - begun, 'tensorflow' in sys.modules)"
)


@contextlib.contextmanager
def running(bundle: str, batch_size: int, queue_limit: int) -> Iterator[tuple[psutil.Process, int]]:
    """A server's process and port."""
    words = [
        sys.executable,
        "-m",
        "imagen_jax.main",
        "serve",
        bundle,
        "--port=0",
        "--audit_log=off",
        "--image_filter=off",
    ]
    words += [f"--batch_sizes={batch_size}", f"--queue_limit={queue_limit}"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("http://"):
            port = int(line.split("/")[2].rsplit(":", 1)[1])
            break
    else:
        raise SystemExit("error: the server has ended")
    try:
        yield psutil.Process(process.pid), port
    finally:
        process.terminate()
        process.wait()


def draw(port: int, prompt: str, seed: int) -> np.ndarray:
    """An image by HTTP."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    body = json.dumps({"prompt": prompt, "seed": seed})
    connection.request("POST", PATH, body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    content = response.read()
    connection.close()
    if response.status != 200:
        raise SystemExit(f"error: status {response.status}: {content[:200]!r}")
    (one,) = json.loads(content)["data"]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(one["b64_json"]))))


def throughput(cascade: Cascade, port: int, batch_size: int, rounds: int) -> None:
    """Images a second offline and by HTTP, in turns."""
    count = 8 * batch_size

    def offline() -> None:
        cascade.sample(["a red circle"] * count, seed=list(range(count)), batch_size=batch_size, label="")

    def served() -> None:
        with concurrent.futures.ThreadPoolExecutor(2 * batch_size) as clients:
            list(clients.map(functools.partial(draw, port, "a red circle"), range(count)))

    ways: dict[str, Callable[[], None]] = {"offline": offline, "served": served}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            begun = time.perf_counter()
            way()
            if number:
                seconds[name].append(time.perf_counter() - begun)
    shares = [one / other for one, other in zip(seconds["offline"], seconds["served"], strict=True)]
    for name, values in seconds.items():
        print(f"{name}: {count / statistics.median(values):.2f} images/s")
    print(f"served / offline: {statistics.median(shares):.3f} ({min(shares):.3f} to {max(shares):.3f})")


def mixed(
    known: dict[tuple[str, int], np.ndarray], server: psutil.Process, port: int, requests: int, clients: int
) -> None:
    """Requests from many clients, some cancelled, some malformed."""
    outcomes: collections.Counter[str] = collections.Counter()
    memory: list[int] = []

    def ask(number: int) -> None:
        rng = random.Random(number)
        if number % max(1, requests // 10) == 0:
            memory.append(server.memory_info().rss)
        kind = rng.random()
        prompt, seed = rng.choice(sorted(known))
        if kind < 0.8:
            apart = int(np.abs(draw(port, prompt, seed).astype(int) - known[prompt, seed]).max())
            outcomes["equal" if apart == 0 else "within 1/255" if apart == 1 else "WRONG"] += 1
            return
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        cancelled = kind < 0.9
        body = json.dumps({"prompt": prompt, "seed": seed}).encode() if cancelled else rng.choice(MALFORMED)
        connection.request("POST", PATH, body, {"Content-Type": "application/json"})
        if cancelled:
            time.sleep(rng.random())
            outcomes["cancelled"] += 1
        else:
            outcomes[f"malformed: {connection.getresponse().status}"] += 1
        connection.close()

    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        list(pool.map(ask, range(requests)))
    print(f"{requests} requests by {clients} clients: {dict(sorted(outcomes.items()))}")
    print(f"memory of the server in MB, in the order of time: {', '.join(str(one // 10**6) for one in memory)}")


def first_image(bundle: str) -> None:
    """Seconds to the first image of new processes that share a compilation cache."""
    with tempfile.TemporaryDirectory() as cache:
        more = {
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        for name in ("cold", "warm", "warm", "warm"):
            words = [sys.executable, "-c", FIRST, bundle]
            done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, **more}, check=True)
            seconds, tensorflow = done.stdout.split()
            print(f"first image, {name} cache: {float(seconds):.2f} s; TensorFlow in the process: {tensorflow}")


def main() -> None:
    """Measures all three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    first_image(args.bundle)
    cascade = Cascade.load(args.bundle)
    pairs = [(f"a {colour} circle", seed) for colour in ("red", "blue") for seed in range(args.batch_size)]
    prompts, seeds = zip(*pairs, strict=True)
    images = cascade.sample(prompts, seed=seeds, batch_size=args.batch_size, label="")[-1]
    with running(args.bundle, args.batch_size, 4 * max(args.clients, args.batch_size)) as (server, port):
        throughput(cascade, port, args.batch_size, args.rounds)
        mixed(dict(zip(pairs, images, strict=True)), server, port, args.requests, args.clients)


if __name__ == "__main__":
    main()
