"""The short demo in a folder of this machine and in a bucket, phase by phase side by side.

    python -m benchmarks.demo_bucket [--delay_ms 0]

A server of the protocol (tests/gcs.py) runs in this process on the same cores. Each phase runs in the folder and at
once afterwards in the bucket, so that what else the machine does falls on both. Prints seconds of each phase, the
requests that it made of the server by kind, and whether the pictures are the same.
"""

import argparse
import collections
import io
import os
import tempfile
import urllib.parse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from imagen_jax.files import as_path
from launch import local
from launch.configs import demo_short
from tests import gcs

URL = "gs://bucket-a/demo"


def kind(method: str, path: str) -> str:
    """The kind of a request, in a word or two."""
    place = urllib.parse.urlparse(path)
    query = urllib.parse.parse_qs(place.query)
    if method == "POST":
        return "copy" if "rewriteTo" in place.path else "write"
    if method == "PUT":
        return "write on"
    if method != "GET":
        return method.lower()
    if "alt" in query or "/download/" in place.path:
        return "read"
    return "list" if place.path.endswith("/o") else "metadata"


def phases(out_dir: str) -> dict[str, list[str]]:
    """The demo's commands for a place."""
    config = demo_short.get_config()
    fields = {**config.to_dict(), "out_dir": out_dir}
    return {name: local.expand(command, fields) for name, command in config["phases"]}


def pixels(place: str) -> Mapping[str, np.ndarray]:
    """The pictures drawn in a place, by name."""
    found = sorted(path for path in (as_path(place) / "samples").iterdir() if path.suffix == ".png")
    return {path.name: np.asarray(Image.open(io.BytesIO(path.read_bytes()))) for path in found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--delay_ms", type=float, default=0.0, help="time that each answer waits (default 0)")
    args = parser.parse_args()
    with gcs.running() as server, tempfile.TemporaryDirectory() as name:
        os.environ["IMAGEN_JAX_CACHE_DIR"] = str(Path(name, "copies"))
        server.delay_s = args.delay_ms / 1000
        here = str(Path(name, "demo"))
        os.makedirs(here)
        totals = collections.Counter[str]()
        print("| phase | folder, s | bucket, s | requests |\n|---|---|---|---|", flush=True)
        there = phases(URL)
        for phase, words in phases(here).items():
            code, seconds, _ = local.run_phase(words)
            server.requests.clear()
            code_there, seconds_there, _ = local.run_phase(there[phase])
            if code or code_there:
                raise SystemExit(f"phase {phase} ended with {code} and {code_there}")
            counts = collections.Counter(kind(*request) for request in list(server.requests))
            totals += collections.Counter({"folder": seconds, "bucket": seconds_there, **counts})
            told = ", ".join(f"{count} {what}" for what, count in counts.most_common())
            print(f"| {phase} | {seconds:.1f} | {seconds_there:.1f} | {told} |", flush=True)
        folder, bucket = totals.pop("folder"), totals.pop("bucket")
        told = ", ".join(f"{count} {what}" for what, count in totals.most_common())
        print(f"| all | {folder:.1f} | {bucket:.1f} ({bucket / folder:.2f}x) | {told} |")
        one, other = pixels(here), pixels(URL)
        same = one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)
        print(f"{len(one)} pictures: {'the same' if same else 'NOT the same'}")


if __name__ == "__main__":
    main()
