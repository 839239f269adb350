"""stdout and stderr that outlive whoever reads them: a pipe to `head`, a terminal that is closed."""

import contextlib
import errno
import io
import os
import sys
from typing import Any, NoReturn

_NOBODY_READS = (errno.EPIPE, errno.EIO)
_NUMBERS = {"stdin": 0, "stdout": 1, "stderr": 2}


def outlive_readers() -> None:
    """Makes this process go on in silence once nobody reads its output, and open what it was started without.

    A run of days would otherwise end by a line that it tells. Characters that the terminal cannot show are written as
    \\uXXXX. For console programs, at their start: streams that a caller has replaced stay as they are.
    """
    for number in _NUMBERS.values():
        # A stream that is closed gives its number to the next file, and what libraries tell would go into that file.
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or stream is getattr(sys, f"__{name}__"):
            setattr(sys, name, _lasting(_NUMBERS[name], stream))


def leave_at_once(code: int) -> NoReturn:
    """Ends this process without taking down what libraries hold; what was printed is shown, what is open is lost."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # Closed, or none.
            stream.flush()
    os._exit(code)


class _Lasting(io.FileIO):
    """A stream's bytes, from the first failure on to nowhere: also those that libraries write past Python."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in _NOBODY_READS:
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return super().write(data)


def _lasting(number: int, old: Any) -> io.TextIOWrapper:
    if old is not None:
        old.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Lasting(number, "w", closefd=False)),
        encoding=old.encoding if old is not None else "utf-8",
        errors="backslashreplace",
        line_buffering=number == 2 or os.isatty(number),
    )
