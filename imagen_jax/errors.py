"""The one exception meant for people, and how a program ends on it."""

import contextlib
import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

from imagen_jax.streams import outlive_readers


class UserError(ValueError):
    """Bad input or configuration: the message says, on one line, what, got, expected and how to fix it.

    The command line prints it without a traceback and exits with code 2.

    Args:
      message: lines in it, as libraries' own messages have, are joined.
    """

    def __init__(self, message: str):
        super().__init__(one_line(message))


def listed(parts: Sequence[str]) -> str:
    """Parts of a message with semicolons between: of many, the first ones and how many more."""
    more = f"; and {len(parts) - MAX_LISTED} more" if len(parts) > MAX_LISTED else ""
    return "; ".join(parts[:MAX_LISTED]) + more


def one_line(text: str) -> str:
    """A library's message on one line, without the marks that it sets below another."""
    lines = (line.strip() for line in text.split("\n"))
    return "; ".join(line for line in lines if line.strip("^ "))


@contextlib.contextmanager
def file_errors() -> Iterator[None]:
    """Around a writer that is no Python: its RuntimeError, such as a full disk's, becomes an OSError as elsewhere."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(str(error)) from error


class Terminated(BaseException):
    """SIGTERM, as an exception: what is being written is cleaned up on its way out."""


class StoppedError(Exception):
    """Ends a program that saved its work because a signal asked it to; it has said so.

    Args:
      name: of the signal.
    """

    def __init__(self, name: str):
        super().__init__(name)
        self.name = name


INTERRUPTED, TERMINATED = 130, 143
# Of a program that wants to be started again (EX_TEMPFAIL of sysexits.h).
RETRY = 75
MAX_LISTED = 10
_ENDINGS: dict[int, type[BaseException]] = {signal.SIGTERM: Terminated, signal.SIGINT: KeyboardInterrupt}
_AGAIN_AFTER_S = 0.05
_interruption: list[BaseException] = []


def _end(number: int, frame: FrameType | None) -> None:
    raise _ENDINGS[number]


def _send_again(unraisable: Any, otherwise: Callable[[Any], object]) -> None:
    """Sends a signal again a little later, when its exception struck where Python prints and forgets them.

    Such places are destructors and callbacks of weak references or of the garbage collector.
    """
    for number, error in _ENDINGS.items():
        if unraisable.exc_type is error:
            threading.Timer(_AGAIN_AFTER_S, os.kill, (os.getpid(), number)).start()
            return
    otherwise(unraisable)


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
    before = sys.unraisablehook
    with _handlers(_end):
        sys.unraisablehook = functools.partial(_send_again, otherwise=before)
        try:
            yield
        finally:
            sys.unraisablehook = before


def ended_at_once() -> contextlib.AbstractContextManager[None]:
    """A block in which SIGTERM and Ctrl-C end the program on the spot: a long call that writes nothing.

    Python calls its own handlers only when a call into a library returns, and compiling takes minutes.
    """
    return _handlers(signal.SIG_DFL)


def exit_code(program: Callable[[], object]) -> int:
    """Runs a program, which goes on where nobody reads its output any more.

    Returns:
      0, or, told on stderr in plain words, 2 after a UserError, a file that fails or too little memory, 130 after
      Ctrl-C, 143 after SIGTERM, and 75 where SIGTERM found time to save and the same command goes on from there.
    """
    outlive_readers()
    try:
        with terminable():
            program()
    except UserError as error:
        problem = str(error)
    except StoppedError as error:
        return INTERRUPTED if error.name == signal.SIGINT.name else RETRY
    except (KeyboardInterrupt, Terminated) as error:
        # Its frames hold the program that a thread of jax's may still be compiling: freed, it would crash that thread.
        _interruption[:] = [error]
        by_hand = isinstance(error, KeyboardInterrupt)
        code, told = (INTERRUPTED, "interrupted") if by_hand else (TERMINATED, "ended by SIGTERM")
        print(f"{told}; nothing is half-written: give the same command again", file=sys.stderr, flush=True)
        return code
    except MemoryError as error:
        problem = f"this machine has too little memory{f' ({error})' if str(error) else ''}; ask for less at a time"
    except OSError as error:
        # A full or read-only disk can strike at any write; whatever was being written has no final name yet.
        problem = f"{error}. Free space or fix the permissions, then run the same command again"
    else:
        return 0
    print(f"error: {printable(problem)}", file=sys.stderr, flush=True)
    return 2


def printable(text: str) -> str:
    """Text on one line, without what would steer a terminal: it quotes files and arguments that come from anywhere."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)
