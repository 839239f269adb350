"""Markdown and YAML that hold other people's texts as they are: no tag, table cell or field of theirs gets out.

As in `markup`, plain strings are escaped and only `Markdown` passes. Texts never begin a line, where more characters
would mean something.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from imagen_jax.errors import printable

# An underscore between letters or digits is none of Markdown's.
_MARKS = re.compile(r"[\\`*\[\]|~$]|(?<!\w)_|_(?!\w)")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


class Markdown(str):
    """Markdown that is already escaped."""

    __slots__ = ()


Part: TypeAlias = str | int | float | None
"""None is left out; numbers and strings are escaped; `Markdown` is a str that is not."""


def plain(text: str) -> str:
    """A text on one line, without what would steer a terminal or break a line."""
    return printable(re.sub(r"\s+", " ", text))


def text(part: Part) -> Markdown:
    """Escapes one part, unless it is Markdown already."""
    if isinstance(part, Markdown):
        return part
    escaped = _MARKS.sub(r"\\\g<0>", "" if part is None else plain(str(part)))
    return Markdown(re.sub("[&<>]", lambda match: _ENTITIES[match[0]], escaped))


def line(*parts: Part) -> Markdown:
    """A paragraph of parts side by side."""
    return Markdown("".join(map(text, parts)))


def table(header: Sequence[Part], rows: Sequence[Sequence[Part]]) -> Markdown:
    """A table; every row as long as the header."""
    lines = [header, ["---"] * len(header), *rows]
    return Markdown("\n".join(f"| {' | '.join(map(text, cells))} |" for cells in lines))


def code(content: str) -> Markdown:
    """A block of commands as they are; its fence is longer than any that stands in them."""
    lines = [printable(one) for one in content.split("\n")]
    longest = max((len(run) for one in lines for run in re.findall("`+", one)), default=0)
    fence = "`" * max(3, longest + 1)
    return Markdown("\n".join([fence, *lines, fence]))


def front_matter(fields: Mapping[str, Any]) -> str:
    """The YAML header of a Markdown file: block style, every text quoted as in JSON.

    Args:
      fields: JSON-able, with finite numbers; keys are plain words.
    """
    return "\n".join(["---", *_yaml(fields), "---"])


def _yaml(value: Mapping[str, Any] | Sequence[Any]) -> list[str]:
    """The lines of a mapping or a list."""
    found: list[str] = []
    named = isinstance(value, Mapping)
    for key, one in value.items() if isinstance(value, Mapping) else enumerate(value):
        mark = f"{key}:" if named else "-"
        if not isinstance(one, Mapping | list | tuple):
            found.append(f"{mark} {_scalar(one)}")
            continue
        inner = _yaml(one)
        found += [mark, *(f"  {row}" for row in inner)] if named else [f"- {inner[0]}", *(f"  {r}" for r in inner[1:])]
    return found


def _scalar(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(plain(value), ensure_ascii=False)
    written = json.dumps(value, allow_nan=False)
    # YAML 1.1 takes 1e-07 for a text.
    return re.sub(r"^(-?\d+)e", r"\1.0e", written)
