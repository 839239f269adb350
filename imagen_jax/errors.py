"""The one exception meant for people, and how a program ends on it."""

import contextlib
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from imagen_jax.streams import outlive_readers


class UserError(ValueError):
    """Bad input or configuration: the message says what, got, expected and how to fix it.

    The command line prints it without a traceback and exits with code 2.
    """


@contextlib.contextmanager
def file_errors() -> Iterator[None]:
    """Around a writer that is no Python: its RuntimeError, such as a full disk's, becomes an OSError as elsewhere."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(str(error)) from error


class Terminated(BaseException):
    """SIGTERM, as an exception: what is being written is cleaned up on its way out."""


INTERRUPTED, TERMINATED = 130, 143
_ENDINGS: dict[int, type[BaseException]] = {signal.SIGTERM: Terminated, signal.SIGINT: KeyboardInterrupt}
_AGAIN_AFTER_S = 0.05


def _end(number: int, frame: FrameType | None) -> None:
    """Raises the signal's exception; where Python would swallow it, sends the signal again a little later."""
    # Not by its name: a library's callback may be a lambda, and so may be what called this program.
    callbacks = {getattr(callback, "__code__", None) for callback in gc.callbacks}
    where = frame
    while where is not None:
        if where.f_code in callbacks or where.f_code.co_name == "__del__":
            # An exception in a callback of the garbage collector or in a destructor is printed and forgotten.
            _send_again(number)
            return
        where = where.f_back
    raise _ENDINGS[number]


def _send_again(number: int) -> None:
    threading.Timer(_AGAIN_AFTER_S, os.kill, (os.getpid(), number)).start()


@contextlib.contextmanager
def _none_forgotten() -> Iterator[None]:
    """Sends a signal again whose exception Python has to forget after all, such as in the callback of a weakref."""
    numbers = {error: number for number, error in _ENDINGS.items()}
    before = sys.unraisablehook

    def hook(unraisable: "sys.UnraisableHookArgs") -> None:
        if unraisable.exc_type in numbers:
            _send_again(numbers[unraisable.exc_type])
        else:
            before(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


@contextlib.contextmanager
def _handlers(handler: Any) -> Iterator[None]:
    # Python allows signal handlers in the main thread only.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in _ENDINGS}
    try:
        yield
    finally:
        for number, old in before.items():
            if old is not None:  # What a library set in C, Python cannot set again.
                signal.signal(number, old)


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """A block in which SIGTERM raises Terminated, and Ctrl-C KeyboardInterrupt wherever it strikes.

    Without it SIGTERM would end the program on the spot and leave what is half-written.
    """
    with _none_forgotten(), _handlers(_end):
        yield


def ended_at_once() -> contextlib.AbstractContextManager[None]:
    """A block in which SIGTERM and Ctrl-C end the program on the spot: a long call that writes nothing.

    Python calls its own handlers only when a call into a library returns, and compiling takes minutes.
    """
    return _handlers(signal.SIG_DFL)


def exit_code(program: Callable[[], object]) -> int:
    """Runs a program, which goes on where nobody reads its output any more.

    Returns:
      0, or, told on stderr in plain words, 2 after a UserError or a file that fails, 130 after Ctrl-C, 143 after
      SIGTERM.
    """
    outlive_readers()
    try:
        with terminable():
            program()
    except UserError as error:
        problem = str(error)
    except KeyboardInterrupt:
        print("interrupted; nothing is half-written: give the same command again", file=sys.stderr, flush=True)
        return INTERRUPTED
    except Terminated:
        print("ended by SIGTERM; nothing is half-written: give the same command again", file=sys.stderr, flush=True)
        return TERMINATED
    except OSError as error:
        # A full or read-only disk can strike at any write; whatever was being written has no final name yet.
        problem = f"{error}. Free space or fix the permissions, then run the same command again"
    else:
        return 0
    print(f"error: {problem}", file=sys.stderr, flush=True)
    return 2
