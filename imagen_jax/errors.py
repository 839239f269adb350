"""The one exception meant for people, and how a program ends on it."""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType


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


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """A block in which SIGTERM raises Terminated, where it would end the program on the spot and leave a mess."""
    # Python allows signal handlers in the main thread only.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def exit_code(program: Callable[[], object]) -> int:
    """Runs a program.

    Returns:
      0, or, told on stderr in plain words, 2 after a UserError or a file that fails, 130 after Ctrl-C, 143 after
      SIGTERM.
    """
    try:
        with terminable():
            program()
    except UserError as error:
        problem = str(error)
    except KeyboardInterrupt:
        print("interrupted; nothing is half-written: give the same command again", file=sys.stderr, flush=True)
        return 130
    except Terminated:
        print("ended by SIGTERM; nothing is half-written: give the same command again", file=sys.stderr, flush=True)
        return 143
    except OSError as error:
        # A full or read-only disk can strike at any write; whatever was being written has no final name yet.
        problem = f"{error}. Free space or fix the permissions, then run the same command again"
    else:
        return 0
    print(f"error: {problem}", file=sys.stderr, flush=True)
    return 2
