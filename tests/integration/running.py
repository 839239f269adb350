"""How tests call the console command on a tiny cascade."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from imagen_jax.main import main

REPOSITORY = Path(__file__).resolve().parents[2]


def flags_of(root: Path | str, **macros: object) -> list[str]:
    corpus = f"{root}/corpus"
    paths = {"CORPUS_DIR": corpus, "STORE_DIR": f"{root}/store", "VOCABULARY_PATH": f"{corpus}/vocabulary.model"}
    return [f"--gin.{name}={value}" for name, value in {**paths, **macros}.items()]


def train_stage(root: Path, stage: str, **macros: object) -> int:
    flags = flags_of(root, **{"MODEL_DIR": root / stage, **macros})
    return main(["train", f"--gin_file=tests/integration/tiny_{stage}.gin", *flags])


def one_error(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert "Traceback" not in error and "error:" in error
    return error


def on_two_hosts(mode: str, root: Path | str, **macros: object) -> list[str]:
    """Runs a mode in two processes of two devices each; returns what each said on stderr."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", "imagen_jax.main", mode, "--gin_file=tests/integration/tiny_base.gin"),
        *flags_of(root, **macros),
        *(f"--coordinator_address=localhost:{port}", "--num_processes=2"),
    ]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "2"}
    hosts = [
        subprocess.Popen([*command, f"--process_id={index}"], env=environment, stderr=subprocess.PIPE, text=True)
        for index in range(2)
    ]
    try:
        errors = [host.communicate(timeout=300)[1] for host in hosts]
    finally:
        for host in hosts:
            host.kill()
    assert [host.returncode for host in hosts] == [0, 0], errors
    return errors
