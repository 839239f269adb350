"""Phases of a pipeline as its config lists them: what each runs, after which others, on which kind of machine."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from imagen_jax.errors import UserError
from launch.jobs import words

REPORT = "report"
# As Kubernetes and Google Cloud want the names of what they make; ours are part of longer ones.
_NAME = re.compile("[a-z]([-a-z0-9]{0,38}[a-z0-9])?")


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A step of a pipeline.

    Args:
      name: its name in the config.
      commands: words of each command, run one after the other; NAME=VALUE words may lead.
      after: names of the phases that must be done before.
      machine: the field of the config's `machines` that says what it runs on; "" where a pipeline has none.
    """

    name: str
    commands: tuple[tuple[str, ...], ...]
    after: tuple[str, ...] = ()
    machine: str = ""

    def line(self) -> str:
        """The whole phase as one line of a shell, which ends with the code of the first command that fails."""
        return " && ".join(words.shell_line(command) for command in self.commands)


def read_phases(config: Mapping[str, Any]) -> list[Phase]:
    """The phases of a config, each after those that it waits for.

    An entry is (name, command), which waits for the one before it, or (name, command, after, machine) with names
    between spaces in `after`. A command may be several, with && between.

    Raises:
      UserError: an entry is something else, a field is missing or empty, a name occurs twice, `after` names no earlier
        phase, or a word looks like a secret.
    """
    found: list[Phase] = []
    for entry in _entries(config):
        name, command, *rest = entry
        known = [phase.name for phase in found]
        after, machine = (tuple(rest[0].split()), rest[1]) if rest else (tuple(known[-1:]), "")
        if name in known:
            raise UserError(f"two phases have the name {name!r}; give each its own")
        for other in after:
            if other not in known:
                raise UserError(f"phase {name!r} comes after {other!r}, which is no phase before it in the list")
        commands = tuple(_expanded(part, config) for part in command.split(" && "))
        for one in commands:
            words.refuse_secrets(one)
        found.append(Phase(name=name, commands=commands, after=after, machine=machine))
    return found


def _expanded(command: str, config: Mapping[str, Any]) -> tuple[str, ...]:
    try:
        found = tuple(words.expand(command, config))
        if words.split_settings(found)[1]:
            return found
        problem = "a command is empty"
    except (IndexError, ValueError) as error:  # Braces that hold no field's name.
        problem = f"{command!r}: {error}"
    raise _no_phases(problem)


def _no_phases(problem: str) -> UserError:
    return UserError(
        f"the config's phases cannot be run ({problem}); write pairs of a name and a command, as "
        "launch/configs/demo.py does, or (name, command, after, machine)"
    )


def _entries(config: Mapping[str, Any]) -> Sequence[Sequence[str]]:
    entries = config.get("phases", ())
    texts = isinstance(entries, (tuple, list)) and all(
        isinstance(entry, (tuple, list)) and len(entry) in (2, 4) and all(isinstance(one, str) for one in entry)
        for entry in entries
    )
    if not texts or not entries:
        raise _no_phases(repr(entries))
    return entries


def job_name(config: Mapping[str, Any], phase: Phase) -> str:
    """The name of a phase's job, machine or object where others can see it.

    Raises:
      UserError: clouds would not take it.
    """
    name = f"{config['name']}-{phase.name}".replace("_", "-")
    if not _NAME.fullmatch(name):
        raise UserError(
            f"--config.name ({config['name']!r}) must be lower-case letters, digits and hyphens, at most 40 characters "
            f"with the name of a phase ({name!r} has {len(name)})"
        )
    return name


def earlier(phase: Phase, phases: Sequence[Phase]) -> list[Phase]:
    """The phases that another waits for."""
    return [one for one in phases if one.name in phase.after]
