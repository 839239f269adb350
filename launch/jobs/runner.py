"""Other programs, called for what they say: gcloud, kubectl, sbatch. Tests put transcripts in their place."""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from imagen_jax.errors import UserError

TIMEOUT_S = 600
TIMED_OUT = 124


@dataclass(frozen=True)
class Answer:
    """A program's exit code and what it wrote."""

    code: int
    out: str = ""
    err: str = ""


class Runner:
    """Calls programs of this machine."""

    def call(self, command: Sequence[str], given: str = "") -> Answer:
        """Runs a command to its end.

        Args:
          command: program and arguments; no shell reads them.
          given: what it reads from stdin.

        Raises:
          UserError: this machine has no such program.
        """
        try:
            done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        except FileNotFoundError as error:
            raise UserError(f"{command[0]} is not installed here; install it, or look first with --dry_run") from error
        except subprocess.TimeoutExpired:
            return Answer(TIMED_OUT, err=f"{command[0]} timed out after {TIMEOUT_S} s")
        return Answer(done.returncode, done.stdout, done.stderr)
