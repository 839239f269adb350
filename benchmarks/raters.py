"""Raters at once on one rating server, killed in the middle and started again: none lost, none doubled, how fast.

    python -m benchmarks.raters --raters 20 --ratings 1000

Each rater is a thread with a connection of its own, and sends again what was not acknowledged.
"""

import argparse
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imagen_jax.ratings.build import build_study
from imagen_jax.ratings.study import RATINGS_FILE, Study, session

_PAUSE_S = 0.05


def draw(folder: Path, num_prompts: int) -> Path:
    """Pictures of one colour each."""
    folder.mkdir()
    rows = []
    for number in range(num_prompts):
        Image.new("RGB", (8, 8), (number % 256, 0, 0)).save(folder / f"{number:05d}.png")
        rows.append({"name": f"{number:05d}.png", "prompt": f"prompt {number}", "category": ""})
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


class Server:
    """The server's process, which may be killed and come back at the same port."""

    def __init__(self, folder: Path):
        self._folder, self._port = folder, 0
        self.start()

    def start(self) -> None:
        words = ["serve_study", f"--study={self._folder}", f"--port={self._port}"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "imagen_jax.main", *words], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
            if found:
                self._port = int(found.group(1))
                return
        raise SystemExit("the server has ended")

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"


class Rater(threading.Thread):
    """One rater: what the server acknowledged, and how long each answer took."""

    def __init__(self, study: Study, name: str, server: Server):
        super().__init__()
        self._study, self._rater, self._server = study, name, server
        self.acknowledged: list[str] = []
        self.seconds: list[float] = []

    def run(self) -> None:
        connection: http.client.HTTPConnection | None = None
        for turn in session(self._study, self._rater):
            for question in turn.item.questions:
                rating = json.dumps(
                    {
                        "study": self._study.id,
                        "rater": self._rater,
                        "item": turn.item.name,
                        "question": question,
                        "answer": "left",
                        "left": turn.left,
                    }
                )
                while True:
                    connection = connection or http.client.HTTPConnection(self._server.address, timeout=30)
                    start = time.perf_counter()
                    try:
                        connection.request("POST", "/ratings", rating, {"Content-Type": "application/json"})
                        answer = connection.getresponse()
                        answer.read()
                    except (OSError, http.client.HTTPException):
                        connection.close()
                        connection = None
                        time.sleep(_PAUSE_S)
                        continue
                    if answer.status != 200:
                        raise SystemExit(f"refused: {answer.status}")
                    self.seconds.append(time.perf_counter() - start)
                    self.acknowledged.append(rating)
                    break


def main() -> None:
    """Runs it and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--raters", type=int, default=20)
    parser.add_argument("--ratings", type=int, default=1000, help="of each rater, an even number")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folders = [draw(Path(place, name), args.ratings // 2) for name in ("first", "second")]
        study = build_study(folders, Path(place, "study"))
        figures: dict[str, Any] = _rate(study, Path(place, "study"), args.raters, args.raters * args.ratings)
    print(json.dumps(figures, indent=1))


def _rate(study: Study, folder: Path, num_raters: int, wanted: int) -> dict[str, Any]:
    log, server = folder / RATINGS_FILE, Server(folder)
    raters = [Rater(study, f"rater {number}", server) for number in range(num_raters)]
    start = time.perf_counter()
    for rater in raters:
        rater.start()
    while sum(len(rater.acknowledged) for rater in raters) < wanted // 2:
        time.sleep(0.005)
    server.process.send_signal(signal.SIGKILL)
    server.process.wait()
    # What was acknowledged before the file is read must be in it.
    acknowledged = {one for rater in raters for one in list(rater.acknowledged)}
    lost_by_kill = len(acknowledged - set(log.read_text().split("\n")))
    server.start()
    for rater in raters:
        rater.join()
    seconds = time.perf_counter() - start
    server.process.terminate()
    server.process.wait()
    lines = log.read_text().splitlines()
    every = {one for rater in raters for one in rater.acknowledged}
    waits = np.array([one for rater in raters for one in rater.seconds]) * 1000
    return {
        "raters": num_raters,
        "acknowledged": sum(len(rater.acknowledged) for rater in raters),
        "acknowledged_before_kill": len(acknowledged),
        "lost_by_kill": lost_by_kill,
        "lost": len(every - set(lines)),
        "doubled": len(lines) - len(set(lines)),
        "lines": len(lines),
        "seconds": round(seconds, 2),
        "ratings_per_s": round(len(lines) / seconds, 1),
        "median_ms": round(float(np.median(waits)), 2),
        "p99_ms": round(float(np.percentile(waits, 99)), 2),
        "cpus": os.cpu_count(),
    }


if __name__ == "__main__":
    main()
