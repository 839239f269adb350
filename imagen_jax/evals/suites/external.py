"""A suite's own scorer: a command of the user's, run on the samples, and the JSON that it writes or prints."""

import dataclasses
import json
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from imagen_jax.errors import UserError
from imagen_jax.files import is_remote

# What a command may hold, and what stands there in the end.
PLACEHOLDERS = ("{samples}", "{suite}", "{output}")
STDOUT, STDERR = "scorer_stdout.txt", "scorer_stderr.txt"
_PLACEHOLDER = re.compile(r"\{[a-z_]+\}")
_LAST_LINES = 3
_LAST_BYTES = 1 << 14


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scorer:
    """A command that scores samples. No shell reads it: an argument is one word, whatever it holds.

    Args:
      command: program and arguments. In them {samples} stands for what the scorer is given, {suite} for the suite's
        file and {output} for the JSON that it is to write; without {output} it prints its JSON.
      directory: where the command runs; None: where this program does.
      output: name of the file of {output} in the suite's folder; a scorer with a place of its own for its JSON, such as
        annotation_blip/vqa_result.json, is told none.

    Raises:
      UserError: the command is empty, holds another placeholder, or `output` leads out of the folder.
    """

    command: Sequence[str]
    directory: str | None = None
    output: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "command", () if isinstance(self.command, str) else tuple(self.command))
        if not self.command or not all(self.command):
            raise UserError(
                "Scorer.command must be a program and its arguments, e.g. ('python', 'score.py', '{samples}')"
            )
        unknown = [found for word in self.command for found in _PLACEHOLDER.findall(word) if found not in PLACEHOLDERS]
        if unknown:
            raise UserError(f"Scorer.command holds {unknown[0]}; it may hold {', '.join(PLACEHOLDERS)}")
        if self.output is not None and (os.path.isabs(self.output) or ".." in self.output.split("/")):
            raise UserError(f"Scorer.output ({self.output!r}) must be the name of a file in the suite's folder")

    @property
    def writes(self) -> str | None:
        """Name of the file with its JSON in the suite's folder; None: it prints it."""
        told = any("{output}" in word for word in self.command)
        return self.output or ("scorer.json" if told else None)


def check_places(scorer: Scorer, folder: str, suite: str) -> None:
    """Refuses a suite's folder or file in a bucket, which no scorer can open.

    Raises:
      UserError: names it.
    """
    for path in (folder, *([suite] if any("{suite}" in word for word in scorer.command) else [])):
        if is_remote(path):
            raise UserError(f"{path} lies in a bucket, which Scorer.command cannot read; give a folder of this machine")


def run_scorer(scorer: Scorer, folder: str, samples: str, suite: str) -> Any:
    """Runs a scorer and reads its JSON.

    Args:
      scorer: what to run.
      folder: of the suite, on this machine; what the scorer prints is kept there.
      samples, suite: what stands for {samples} and {suite}.

    Returns:
      The JSON object or list; of JSON lines, their list. NaN in it is None.

    Raises:
      UserError: it does not start, fails, or gives no JSON; the message has its exit code and its last lines.
    """
    output = None if scorer.writes is None else os.path.join(os.path.abspath(folder), scorer.writes)
    words = {"{samples}": os.path.abspath(samples), "{suite}": os.path.abspath(suite), "{output}": output or ""}
    command = [_PLACEHOLDER.sub(lambda found: words[found[0]], word) for word in scorer.command]
    if output is not None:
        # What an earlier run wrote is no answer of this one.
        if os.path.isfile(output):
            os.remove(output)
        os.makedirs(os.path.dirname(output), exist_ok=True)
    name = " ".join(command[:2])
    stdout, stderr = (os.path.join(folder, one) for one in (STDOUT, STDERR))
    try:
        with open(stdout, "wb") as out, open(stderr, "wb") as err:
            code = subprocess.run(
                command, cwd=scorer.directory, stdin=subprocess.DEVNULL, stdout=out, stderr=err, check=False
            ).returncode
    except OSError as error:
        raise UserError(
            f"the scorer {name!r} does not start ({error}); mend Scorer.command; the samples are in {folder}"
        ) from error
    if code:
        how = f"ended with exit code {code}" if code > 0 else f"was ended by signal {-code}"
        raise UserError(f"the scorer {name!r} {how}; {_last_lines(stderr)}; the samples are in {folder}")
    if output is not None and not os.path.isfile(output):
        raise UserError(
            f"the scorer {name!r} ended with exit code 0 and wrote no {output}; {_last_lines(stderr)}; "
            f"the samples are in {folder}"
        )
    found = _read_json(output or stdout)
    if found is None:
        what = f"wrote no JSON into {output}" if output else f"printed no JSON ({stdout})"
        raise UserError(
            f"the scorer {name!r} ended with exit code 0 and {what}; {_last_lines(stderr)}; the samples are in {folder}"
        )
    return found


def _read_json(path: str) -> Any:
    """The JSON object or list in a file, the list of its JSON lines, or what its last line holds; None: neither."""
    with open(path, encoding="utf-8", errors="replace") as file:
        text = file.read().strip()
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        return None
    for attempt in (lambda: _parsed(text), lambda: [_parsed(line) for line in lines], lambda: _parsed(lines[-1])):
        try:
            return attempt()
        except (ValueError, RecursionError):
            continue
    return None


def _parsed(text: str) -> Any:
    """An object or list; Python's NaN and infinity, which JSON has not, are None."""
    found = json.loads(text, parse_constant=lambda name: None)
    if not isinstance(found, Mapping | list):
        raise ValueError("neither an object nor a list")
    return found


def _last_lines(path: str) -> str:
    """The last lines of what a program printed."""
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - _LAST_BYTES))
        lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    return (
        "its last lines: " + " | ".join(line.strip() for line in lines[-_LAST_LINES:]) if lines else "it said nothing"
    )
