"""Signals to the console command while jax is at work."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

COMPILES = """
import sys, types
sys.modules["imagen_jax.commands.parts.sample_run"] = stand_in = types.ModuleType("sample_run")
def draw(checkpoint, captions, options):
    import jax, jax.numpy as jnp
    def slow(x):
        for i in range(400):
            x = jnp.sin(x[::-1]) @ x + jnp.cumsum(x * i, 1)
        return x
    lowered = jax.jit(slow).lower(jnp.ones((64, 64)))
    print("compiling", flush=True)
    lowered.compile()
    print("compiled", flush=True)
stand_in.draw_to_files = draw
from imagen_jax.main import main
sys.argv[1:] = ["sample", "--checkpoint=x", "--output=y", "a cube"]
sys.exit(main())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_jax_compiles_ends_in_plain_words(tmp_path, number):
    """Not in a segmentation fault: jax compiles in a thread, which goes on while Python takes jax down.

    With a cache of programs, which that thread would write.
    """
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", **cache}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    child = subprocess.Popen([sys.executable, "-c", COMPILES], env=environment, cwd=REPOSITORY, **pipes)
    assert child.stdout.readline() == "compiling\n"
    time.sleep(0.2)
    child.send_signal(number)
    out, told = child.communicate(timeout=60)
    assert child.returncode == 128 + number, told
    assert out == "" and told.count("nothing is half-written") == 1 and "Traceback" not in told
