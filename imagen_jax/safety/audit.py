"""The audit log: one line of JSON for each request, appended whole."""

import dataclasses
import datetime
import fcntl
import hashlib
import json
import os
import threading
from typing import Any

from imagen_jax.errors import UserError
from imagen_jax.safety.finding import Finding
from imagen_jax.safety.prompt_filter import Match

PROMPTS = ("digest", "text")
# Whoever may read what people asked for is the owner's choice.
_MODE = 0o600


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuditLog:
    """A file that tells what was asked for; threads and processes may append to it at once.

    It is opened for each line, so that it may be moved away while it grows.

    Args:
      path: the file, on this machine.
      prompts: "digest": the SHA-256 of the prompt is noted; "text": the prompt itself.

    Raises:
      UserError: it cannot be written, or `prompts` is neither.
    """

    path: str
    prompts: str = "digest"
    _lock: Any = dataclasses.field(default_factory=threading.Lock, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.prompts not in PROMPTS:
            raise UserError(f"prompts ({self.prompts!r}) must be {' or '.join(PROMPTS)}")
        try:
            os.close(self._open())
        except OSError as error:
            raise UserError(f"the audit log {self.path} cannot be written ({error}); name another file") from error

    def append(self, prompt: str, seed: int, images: int, match: Match | None) -> None:
        """Notes a request before anything is drawn.

        Args:
          prompt: the caption.
          seed: of the first image.
          images: number of them.
          match: why it is refused; None: it is allowed.

        Raises:
          OSError: it could not be written whole.
        """
        entry = self._entry(prompt)
        entry |= {"seed": seed, "images": images, "verdict": "allowed" if match is None else "refused"}
        if match is not None:
            entry["category"] = match.category
            # The entry is a part of the prompt.
            entry |= {"entry": match.entry} if self.prompts == "text" else {}
        self._append((json.dumps(entry) + "\n").encode())

    def append_image(self, prompt: str, seed: int | None, finding: Finding) -> None:
        """Notes an image that is refused.

        Args:
          prompt: the caption.
          seed: of the image; None: it was given, to be edited.
          finding: why.

        Raises:
          OSError: it could not be written whole.
        """
        told = {"verdict": "image refused", "category": finding.category, "score": round(finding.score, 4)}
        self._append((json.dumps({**self._entry(prompt), "seed": seed, **told}) + "\n").encode())

    def _entry(self, prompt: str) -> dict[str, Any]:
        entry: dict[str, Any] = {"time": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")}
        if self.prompts == "text":
            return {**entry, "prompt": prompt}
        return {**entry, "prompt_sha256": hashlib.sha256(prompt.encode()).hexdigest()}

    def _append(self, line: bytes) -> None:
        with self._lock:
            file = self._open()
            try:
                # Others that append would let the last byte be read before it is written.
                fcntl.flock(file, fcntl.LOCK_EX)
                size = os.fstat(file).st_size
                # After a disk that was full, half a line may stand there.
                if size and os.pread(file, 1, size - 1) != b"\n":
                    line = b"\n" + line
                if os.write(file, line) != len(line):
                    raise OSError(f"{self.path} took only a part of a line")
            finally:
                os.close(file)

    def _open(self) -> int:
        return os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _MODE)
