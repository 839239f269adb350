"""How programs end: signals that strike in awkward places, and what is left behind."""

import gc
import os
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest

from imagen_jax.errors import Terminated, UserError, ended_at_once, exit_code, listed, terminable

REPOSITORY = Path(__file__).resolve().parent.parent


def test_sigterm_is_told_and_cleans_up(capsys):
    cleaned = []

    def program():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        finally:
            cleaned.append(True)

    before = signal.getsignal(signal.SIGTERM)
    assert exit_code(program) == 143 and cleaned == [True]
    assert capsys.readouterr().err.startswith("ended by SIGTERM; nothing is half-written")
    assert signal.getsignal(signal.SIGTERM) == before


def test_an_error_is_one_line_whatever_it_quotes(capsys):
    def program():
        raise UserError("no file a\rb\x1b[31m\u2028c é (a library: wrong\n  x = (\n       ^\n)")

    assert exit_code(program) == 2
    error = "error: no file a\\rb\\x1b[31m\\u2028c é (a library: wrong; x = (; )\n"
    assert capsys.readouterr().err == error


def test_a_lack_of_memory_is_told(capsys):
    assert exit_code(lambda: bytes(1 << 62)) == 2
    error = capsys.readouterr().err
    assert error == "error: this machine has too little memory; ask for less at a time\n"


def test_parts_of_a_message_are_joined_and_the_first_of_many_named():
    assert listed(["a", "b"]) == "a; b"
    assert listed([str(n) for n in range(12)]) == "0; 1; 2; 3; 4; 5; 6; 7; 8; 9; and 2 more"


class Slow:
    """Takes its time to be destroyed, and the signal comes meanwhile."""

    def __init__(self, number):
        self.number = number

    def __del__(self):
        os.kill(os.getpid(), self.number)
        time.sleep(0.01)


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
@pytest.mark.parametrize("where", ["a destructor", "a weak reference", "the garbage collector"])
def test_a_signal_is_not_swallowed(number, error, where):
    """Python prints and forgets an exception there."""
    sent = []

    def callback(phase, info):
        if phase == "start" and not sent:
            sent.append(True)
            os.kill(os.getpid(), number)
            time.sleep(0.01)

    with pytest.raises(error), terminable():
        if where == "a destructor":
            Slow(number)
        elif where == "a weak reference":
            referent = {1}
            reference = weakref.ref(referent, lambda _: callback("start", {}))
            del referent
            assert sent and reference() is None
        else:
            gc.callbacks.append(callback)
            try:
                gc.collect()
            finally:
                gc.callbacks.remove(callback)
            assert sent
        time.sleep(5)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_long_call_ends_at_once(number):
    """A call into a library, here one that holds the interpreter, does not keep the signal waiting."""
    script = (
        "import re\n"
        "from imagen_jax.errors import ended_at_once, terminable\n"
        "with terminable(), ended_at_once():\n"
        "    print('begun', flush=True)\n"
        "    re.match('(a|a)*b', 'a' * 60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    assert child.stdout is not None and child.stdout.readline() == "begun\n"
    time.sleep(0.2)
    child.send_signal(number)
    assert child.wait(timeout=10) == -number


def test_handlers_are_given_back():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with terminable():
        inner = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
        with ended_at_once():
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == inner
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
