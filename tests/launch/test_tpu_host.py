"""The script of Cloud TPU's hosts, run for real with stand-ins for docker and gcloud."""

import os
import subprocess

import pytest

from launch.jobs.job import State
from tests.launch.gcloud import found, hosts, job_for
from tests.launch.shells import check_shell
from tests.launch.transcripts import Transcript


@pytest.mark.parametrize("phase", ["cache_text", "train_base", "draw"])
@pytest.mark.parametrize("image", ["", "us-docker.pkg.dev/mine/imagen/imagen_jax:1"])
def test_the_script_is_good_bash(phase, image):
    word = 'NOTE=it\'s a="b" $(id)'
    check_shell(
        job_for(Transcript(), phase, image=image, secrets=("WANDB_API_KEY",), overrides=(word,)).startup_script()
    )


STUBS = {
    # Copies nothing; a secret's value comes from it alone.
    "gcloud": 'echo "gcloud $*" >>"$CALLS"\nif [[ $1 = secrets ]]; then echo s3cr3t; fi',
    "docker": (
        'echo "docker $1" >>"$CALLS"\n[[ $1 = run ]] || exit 0\nwhile [[ $1 != bash ]]; do shift; done\nexec "$@"'
    ),
    # The program: notes its words, and ends with the next code of a list.
    "imagen_jax": (
        'printf "%s\\n" "$@" >"$IMAGEN_JAX_FOLDER/words"\necho "it sees ${WANDB_API_KEY:+a key}"\n'
        'read -r code <"$IMAGEN_JAX_FOLDER/codes"\nsed -i 1d "$IMAGEN_JAX_FOLDER/codes"\nexit "$code"'
    ),
}


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A host whose programs are stubs; returns what runs a startup script there."""
    programs, folder = tmp_path / "bin", tmp_path / "host"
    programs.mkdir()
    folder.mkdir()
    for name, text in STUBS.items():
        (programs / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (programs / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "IMAGEN_JAX_FOLDER": str(folder),
        "CALLS": str(tmp_path / "calls"),
    }

    def boot(script, codes):
        (folder / "codes").write_text("".join(f"{code}\n" for code in codes))
        subprocess.run(["bash", "-c", script], env=environment, check=False, timeout=30)
        return folder

    return boot


def test_a_host_sets_up_and_starts_again_until_it_is_done(host, tmp_path):
    word = 'NOTE=it\'s a="b" $(id)'
    job = job_for(Transcript(), image="r/p/i:1", secrets=("WANDB_API_KEY",), overrides=(word,))
    folder = host(job.startup_script(), [75, 137, 0])
    assert (folder / "ended").read_text().startswith("0 ")
    assert (folder / "codes").read_text() == ""
    # Through metadata, bash, docker and bash again.
    assert f"--gin.{word}" in (folder / "words").read_text().splitlines()
    log, calls = (folder / "log").read_text(), (tmp_path / "calls").read_text()
    assert "restart 1 of 2" in log and "it sees a key" in log and "s3cr3t" not in log + calls
    assert "docker pull" in calls and f"cp {folder}/log gs://bucket/run/launch/logs/imagen-train-sr256-" in calls
    # A reboot after the end changes nothing.
    (tmp_path / "calls").unlink()
    host(job.startup_script(), [0])
    assert not (tmp_path / "calls").exists() and (folder / "codes").read_text() == "0\n"


@pytest.mark.parametrize(("codes", "last"), [([2, 0], 2), ([75, 75, 75, 0], 75), ([1], 1), ([127], 127)])
def test_a_host_gives_up_at_errors_and_after_its_restarts(host, codes, last):
    folder = host(job_for(Transcript(), image="r/p/i:1").startup_script(), codes)
    assert (folder / "ended").read_text().split()[0] == str(last)


def test_hosts_tell_how_they_are(host):
    """The question to the hosts runs for real, and its answer is read as gcloud hands it on."""
    runner = Transcript(("describe", found("ACTIVE")), ("ssh .*--node=all --worker=all", hosts()))
    job_for(runner).status()
    ask = runner.called[-1][-1].removeprefix("--command=")
    folder = host(job_for(Transcript(), image="r/p/i:1").startup_script(), [2])
    told = subprocess.run(
        ["bash", "-c", ask], env={**os.environ, "IMAGEN_JAX_FOLDER": str(folder)}, capture_output=True, text=True
    ).stdout
    status = job_for(Transcript(("describe", found("ACTIVE")), ("ssh", hosts(told)))).status()
    assert status.state is State.FAILED and "ended with code 2" in status.reason
