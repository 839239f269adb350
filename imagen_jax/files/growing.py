"""Files that grow while a program runs: lines of metrics, events."""

import os
import tempfile
import time

from imagen_jax.files.places import StrPath, file_system, is_remote
from imagen_jax.files.whole import write_bytes

SEND_S = 30.0


class GrowingFile:
    """A file that is appended to; one in a bucket grows on this machine and is sent whole from time to time.

    Args:
      path: the file. What it holds already stays.

    Attributes:
      local: path on this machine to append to; `grown` afterwards.

    Raises:
      OSError: it cannot be read or made.
    """

    def __init__(self, path: StrPath):
        self._path = os.fspath(path)
        self._unsent, self._sent_at = False, time.monotonic()
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self.local = self._path
        if is_remote(path):
            self._folder = tempfile.TemporaryDirectory()
            self.local = os.path.join(self._folder.name, os.path.basename(self._path))
            if file_system(path).exists(self._path):
                file_system(path).get_file(self._path, self.local)

    def grown(self) -> None:
        """Sends what was appended if the last time is `SEND_S` seconds ago."""
        self._unsent = True
        if time.monotonic() - self._sent_at >= SEND_S:
            self.send()

    def send(self) -> None:
        """Sends what was appended and not sent yet."""
        if self._folder is not None and self._unsent:
            with open(self.local, "rb") as file:
                write_bytes(self._path, file.read())
        self._unsent, self._sent_at = False, time.monotonic()

    def close(self) -> None:
        """Sends the rest; nothing may be appended afterwards."""
        self.send()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None
