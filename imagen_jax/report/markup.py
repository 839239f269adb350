"""HTML built from tags, safe by construction: plain strings are escaped, only `Html` passes as it is."""

import math
from html import escape
from typing import TypeAlias

_VOID = frozenset({"br", "hr", "img", "meta"})


class Html(str):
    """Markup that is already escaped."""

    __slots__ = ()


Child: TypeAlias = str | int | float | None
"""None is left out; numbers and strings are escaped; `Html` is a str that is not."""


def text(child: Child) -> Html:
    """Escapes one child, unless it is markup already."""
    if child is None:
        return Html("")
    return child if isinstance(child, Html) else Html(escape(str(child)))


def join(*children: Child) -> Html:
    """Concatenates children, escaping those that are not markup."""
    return Html("".join(text(child) for child in children))


def tag(name: str, /, *children: Child, **attributes: Child | bool) -> Html:
    """One element with its children.

    Args:
        name: element name, HTML or SVG.
        children: what stands inside; must be empty for void elements such as img.
        attributes: `class_` becomes class, an underscore becomes a hyphen; None and False leave the
            attribute out, True writes it bare.
    """
    parts = [name]
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            parts.append(key)
        elif value is not None and value is not False:
            parts.append(f'{key}="{escape(str(value))}"')
    opening = f"<{' '.join(parts)}>"
    if name in _VOID:
        if children:
            raise ValueError(f"<{name}> is a void element and takes no children")
        return Html(opening)
    return Html(f"{opening}{join(*children)}</{name}>")


def scroll_box(label: str, *children: Child) -> Html:
    """A box that scrolls by itself, by keyboard too, so that the page never scrolls sideways."""
    return tag("div", *children, class_="scroll", role="region", tabindex=0, aria_label=label)


def table(label: str, header: list[Child], rows: list[list[Child]], marked: frozenset[int] = frozenset()) -> Html:
    """A data table whose first column names the row.

    Args:
        label: what the table holds; becomes its caption for screen readers.
        header: one cell a column.
        rows: cells; every row as long as the header.
        marked: indices of rows to set off.
    """
    head = tag("tr", *(tag("th", cell, scope="col") for cell in header))
    body = [
        tag(
            "tr",
            tag("th", row[0], scope="row"),
            *(tag("td", cell) for cell in row[1:]),
            class_="marked" if index in marked else None,
        )
        for index, row in enumerate(rows)
    ]
    caption = tag("caption", label, class_="hidden")
    return scroll_box(label, tag("table", caption, tag("thead", head), tag("tbody", *body)))


# Sums and differences of smaller numbers are floats.
LARGEST = 1e300


def number(value: float | int | None) -> str:
    """Four significant digits: "12,345", "0.1235", "1.5e-4"; None reads "–"."""
    if value is None:
        return "–"
    if math.isfinite(value) and (abs(value) >= 1000 or value == round(value)):
        return f"{value:,.0f}"
    if 0 < abs(value) < 0.001:
        mantissa, exponent = f"{value:.3e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.4g}"


def percent(value: float | None) -> str:
    """A fraction 0..1 as a percentage with one decimal; None reads "–"."""
    return "–" if value is None else f"{100 * value:.1f}%"


def duration(seconds: float | int) -> str:
    """Seconds for a reader: "4.2 s", "12 min 03 s", "1 h 02 min"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"
