"""Processes of a tiny run on this machine, for tests and the soak."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
# Of a machine that does other things, too.
START_S = 240


class Hosts:
    """Processes of one run, with what they say in files."""

    def __init__(self, folder: Path, fault: str, num: int = 2, counts: tuple[int, ...] = ()):
        with socket.create_server(("localhost", 0)) as server:
            port = server.getsockname()[1]
        self.model_dir, self.logs = folder / "run", [folder / f"host_{number}.txt" for number in range(num)]
        self.processes = []
        for number, log in enumerate(self.logs):
            place = {
                "JAX_PLATFORMS": "cpu",
                "JAX_NUM_CPU_DEVICES": "1",
                "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                "JAX_NUM_PROCESSES": str(num),
                "JAX_PROCESS_ID": str(number),
                "PYTHONPATH": str(REPOSITORY),
            }
            command = [sys.executable, "-m", "tests.faults.host", str(self.model_dir), fault, *map(str, counts)]
            with log.open("w") as stream:
                one = subprocess.Popen(command, env=os.environ | place, cwd=REPOSITORY, stderr=stream, stdout=stream)
            self.processes.append(one)

    def __enter__(self) -> "Hosts":
        return self

    def __exit__(self, *_: object) -> None:
        for one in self.processes:
            one.kill()
            one.wait()

    def said(self) -> list[str]:
        return [log.read_text() for log in self.logs]

    def wait_for_lines(self, step: int) -> None:
        """Waits for the metrics line of a step; those of an earlier start do not count."""
        path, end = self.model_dir / "metrics.jsonl", time.monotonic() + START_S
        started = "steps to go"
        while started not in self.said()[0] or not path.exists() or f'"step": {step},' not in path.read_text():
            assert time.monotonic() < end, self.said()
            assert all(one.poll() is None for one in self.processes), self.said()
            time.sleep(0.02)

    def wait(self, number: int, seconds: float) -> int:
        try:
            return self.processes[number].wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"process {number} goes on after {seconds} s: {self.said()}") from None
