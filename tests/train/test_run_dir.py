"""One trainer a run directory."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from imagen_jax.errors import UserError
from imagen_jax.train.run_dir import only_trainer

REPOSITORY = Path(__file__).resolve().parents[2]
HOLD = (
    "import sys, time\n"
    "from imagen_jax.train.run_dir import only_trainer\n"
    "with only_trainer(sys.argv[1]):\n"
    "    open(sys.argv[1] + '/kept', 'w').close()\n"
    "    print('holds', flush=True)\n"
    "    time.sleep(60)\n"
)


def test_a_second_trainer_is_refused_until_the_first_ends_however_it_ends(tmp_path):
    run = str(tmp_path / "run")
    first = subprocess.Popen([sys.executable, "-c", HOLD, run], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    try:
        assert first.stdout is not None and first.stdout.readline() == "holds\n"
        with pytest.raises(UserError, match=f"is being trained by process {first.pid} on host {os.uname().nodename}"):
            with only_trainer(run):
                pass
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    with only_trainer(run):
        assert (tmp_path / "run" / "kept").exists()
    assert (tmp_path / "run" / "kept").exists()


def test_a_refused_run_leaves_no_directory(tmp_path):
    with pytest.raises(RuntimeError), only_trainer(tmp_path / "a" / "run"):
        raise RuntimeError
    assert not (tmp_path / "a" / "run").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"), only_trainer(tmp_path / "file" / "run"):
        pass
