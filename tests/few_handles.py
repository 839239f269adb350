"""A process that may open few more files."""

import contextlib
import os
import resource
from collections.abc import Iterator


@contextlib.contextmanager
def free_handles(count: int) -> Iterator[None]:
    """Exactly `count` more files can be opened here."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    last = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (last + 1 + count, before[1]))
    fill: list[int] = []
    try:
        with contextlib.suppress(OSError):
            while True:
                fill.append(os.open(os.devnull, os.O_RDONLY))
        for _ in range(count):
            os.close(fill.pop())
        yield
    finally:
        for handle in fill:
            os.close(handle)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
