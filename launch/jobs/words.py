"""Words of commands: fields of a config put in, quoted for a shell, and nothing secret among them."""

import itertools
import re
import shlex
import string
from collections.abc import Mapping, Sequence
from typing import Any

from imagen_jax.errors import UserError

SETTING = re.compile("[A-Z_]+=")
# Names that people give to secrets, and how the tokens of well-known services begin.
_SECRET_NAME = re.compile(r"(?i)(^|[_.-])(token|secret|password|api_?key|credentials?)$")
_SECRET_VALUE = re.compile(r"\b(hf_|ghp_|github_pat_|glpat-|sk-|AIza|ya29\.|AKIA)[\w-]{16}|-----BEGIN ")


def expand(command: str, fields: Mapping[str, Any]) -> list[str]:
    """The argument list of a command; a field's value with spaces in it stays one word.

    Args:
      command: words between spaces. In a word {field}, or {part.field}, stands for the config's field. A word with the
        field of a tuple comes once for each of its items, so not at all for an empty one.
      fields: the config.

    Raises:
      UserError: a field is not there, or is still empty.
    """
    return [word for template in command.split() for word in _expand_word(template, fields)]


def _expand_word(template: str, fields: Mapping[str, Any]) -> list[str]:
    values = {name: _field(name, fields) for _, name, _, _ in string.Formatter().parse(template) if name}
    for name, value in values.items():
        if isinstance(value, tuple | list):
            items = [template.replace(f"{{{name}}}", "{item}").format_map({**fields, "item": item}) for item in value]
            return items
        if value == "" and not SETTING.match(template):
            raise UserError(f"the config's {name} is empty, and {template} needs it; give --config.{name}=VALUE")
    return [template.format_map(fields)]


def _field(name: str, fields: Mapping[str, Any]) -> Any:
    try:
        return string.Formatter().get_field(name, (), fields)[0]
    except (AttributeError, KeyError) as error:
        raise UserError(f"the config has no setting {name}, which {{{name}}} in a phase asks for") from error


def split_settings(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The NAME=VALUE words that lead a command, and the command."""
    settings = list(itertools.takewhile(SETTING.match, words))
    return dict(word.split("=", 1) for word in settings), list(words[len(settings) :])


def shell_line(words: Sequence[str]) -> str:
    """A command as one line of a shell, in which every word, also of settings, arrives as it is."""
    settings, command = split_settings(words)
    return shlex.join([*(["env"] if settings else []), *words[: len(settings)], *command])


def refuse_secrets(words: Sequence[str]) -> None:
    """Refuses words that look like a token or password: commands are printed, kept and shown to others.

    Raises:
      UserError: one does; it is named, not shown.
    """
    for word in words:
        name, equals, value = word.partition("=")
        if (equals and value and _SECRET_NAME.search(name)) or _SECRET_VALUE.search(word):
            shown = name if equals else word[:4] + "…"
            raise UserError(
                f"{shown} looks like a secret, and commands are written to logs; take it out of the config and name "
                "the variable in --config.secrets (docs/launch.md)"
            )
