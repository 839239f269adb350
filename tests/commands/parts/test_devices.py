"""Devices that jax cannot have, as jax itself tells it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from imagen_jax.commands.parts.devices import device_errors

REPOSITORY = Path(__file__).resolve().parents[3]
SCRIPT = """
import sys
from imagen_jax.commands.parts.devices import device_errors
from imagen_jax.errors import exit_code
import jax
def program():
    with device_errors():
        try:
            jax.devices()
        except Exception as error:
            if sys.argv[1] == "wrapped":
                raise RuntimeError("what a library makes of it") from error
            raise
raise SystemExit(exit_code(program))
"""


@pytest.mark.parametrize(
    ("asked", "how", "reason"),
    [
        ("cuda", "bare", "lacks its plugin"),
        ("tpuu", "bare", "'tpuu' is not in the list of known backends"),
        ("tpuu", "wrapped", "what a library makes of it"),
    ],
)
def test_a_kind_of_device_that_is_not_here_is_told_in_one_line(asked, how, reason):
    command = [sys.executable, "-c", SCRIPT, how]
    environment = {**os.environ, "JAX_PLATFORMS": asked}
    done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert last.startswith(f"error: jax cannot use the devices it is told to use, JAX_PLATFORMS='{asked}' ("), last
    assert reason in last and "unset JAX_PLATFORMS" in last


def test_other_errors_pass():
    with pytest.raises(AssertionError, match="a defect"), device_errors():
        raise AssertionError("a defect")
