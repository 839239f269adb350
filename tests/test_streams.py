"""Programs go on when nobody reads what they say."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
# Tells, waits until the reader is gone, tells by both ways, works on, and says so in a file.
PROGRAM = """
import os, sys
from imagen_jax.errors import exit_code
from imagen_jax.progress import Progress
def program():
    print("first", file=sys.stderr, flush=True)
    print("first", flush=True)
    sys.stdin.readline()
    with Progress(3, "work") as progress:
        for _ in range(3):
            progress.update()
            print("more" * 10000, flush=True)
            print("more", file=sys.stderr, flush=True)
            os.write(2, b"a library")
    open(sys.argv[1], "w").write("done")
    print("last words")
sys.exit(exit_code(program))
"""


@pytest.mark.parametrize("who", ["stdout", "stderr", "both"])
def test_a_program_outlives_its_readers(tmp_path, who):
    """As under `| head -1`; 0 is its exit code, not 120, which Python gives where its last words are lost."""
    child = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "done")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if who != "stdout" else subprocess.DEVNULL,
        text=True,
        cwd=REPOSITORY,
    )
    assert child.stdout.readline() == "first\n"
    if who in ("stdout", "both"):
        child.stdout.close()
    if who in ("stderr", "both"):
        assert child.stderr.readline() == "first\n"
        child.stderr.close()
    child.stdin.write("\n")
    child.stdin.close()
    if who == "stderr":
        assert child.stdout.read().endswith("more\nlast words\n")
    assert child.wait(30) == 0
    assert (tmp_path / "done").read_text() == "done"


def test_a_program_outlives_its_terminal(tmp_path):
    """After nohup: writing to a terminal that is gone is an input/output error."""
    ours, terminal = pty.openpty()
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "done")]
    child = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=terminal, stderr=terminal, cwd=REPOSITORY, start_new_session=True
    )
    os.close(terminal)
    assert os.read(ours, 5) == b"first"
    os.close(ours)
    child.communicate(b"\n", timeout=30)
    assert child.returncode == 0 and (tmp_path / "done").read_text() == "done"


def test_streams_that_were_closed_at_the_start_are_nobody_elses(tmp_path):
    """`>&- 2>&-`: a file that is opened first would get the number 1, and what is printed."""
    program = "from imagen_jax.errors import exit_code\nimport os, sys\n" + (
        "def program():\n"
        "    with open(sys.argv[1], 'w') as file:\n"
        "        print('told'); print('told', file=sys.stderr); os.write(1, b'told'); os.write(2, b'told')\n"
        "        file.write(f'{file.fileno() > 2}')\n"
        "sys.exit(exit_code(program))\n"
    )
    shell = 'exec "$0" -c "$1" "$2" <&- >&- 2>&-'
    done = subprocess.run(["sh", "-c", shell, sys.executable, program, str(tmp_path / "file")], cwd=REPOSITORY)
    assert done.returncode == 0 and (tmp_path / "file").read_text() == "True"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_what_a_terminal_cannot_show_is_spelt_out(encoding):
    program = (
        "from imagen_jax.errors import UserError, exit_code\n"
        "def program():\n    print('a → b: 赤い')\n    raise UserError('赤い')\n"
        "raise SystemExit(exit_code(program))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONIOENCODING": encoding},
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout == b"a \\u2192 b: \\u8d64\\u3044\n" and done.stderr == b"error: \\u8d64\\u3044\n"
