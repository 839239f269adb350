"""Checks of generated shell text: bash itself, and shellcheck where it is installed."""

import shutil
import subprocess
import sys
from pathlib import Path


def check_shell(text: str) -> None:
    """Fails on text that bash cannot read, or that shellcheck warns of."""
    read = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    assert read.returncode == 0, f"{read.stderr}\n{text}"
    beside = Path(sys.executable).with_name("shellcheck")
    program = str(beside) if beside.exists() else shutil.which("shellcheck")
    if program:
        # SC2016: what single quotes hold is not to be expanded here.
        command = [program, "--shell=bash", "--exclude=SC2016", "-"]
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{done.stdout}\n{text}"
