"""The image of launch/Dockerfile: linted, and its commands run by the shell it will have, with pip only noted."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "launch" / "Dockerfile"


def test_hadolint_finds_nothing():
    beside = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([beside, DOCKERFILE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("extra", "asked"), [("", ""), ("tpu", "[tpu]"), ("tpu,s3", "[tpu,s3]")])
def test_it_installs_the_wheel_with_the_lock_file_and_the_extra(tmp_path, extra, asked):
    copied, run = re.findall(r"^(?:COPY|RUN) ((?:.*\\\n)*.*)$", DOCKERFILE.read_text(), re.M)
    sources, place = copied.split()[:-1], tmp_path / "imagen_jax"
    assert sources == ["constraints-3.12.txt", "dist/imagen_jax-*.whl"] and copied.split()[-1] == "/tmp/imagen_jax/"
    place.mkdir()
    shutil.copy(ROOT / sources[0], place)
    (place / "imagen_jax-0.1.0-py3-none-any.whl").write_text("")
    (tmp_path / "bin").mkdir()
    for program in ("pip", "imagen_jax"):
        (tmp_path / "bin" / program).write_text(f'#!/bin/sh\nprintf "%s\\n" {program} "$@" >> {tmp_path}/calls\n')
        (tmp_path / "bin" / program).chmod(0o755)
    command = run.replace("\\\n", " ").replace("/tmp/imagen_jax", str(place))
    environment = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "EXTRA": extra}
    subprocess.run(["sh", "-c", command], env=environment, check=True)
    wheel = f"{place}/imagen_jax-0.1.0-py3-none-any.whl{asked}"
    calls = ["pip", "install", "--no-cache-dir", "-c", f"{place}/constraints-3.12.txt", wheel, "imagen_jax", "--help"]
    assert (tmp_path / "calls").read_text().splitlines() == calls
    assert not place.exists()
