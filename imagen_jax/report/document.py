"""The HTML document around a page: its head with the style sheet, and one column."""

from imagen_jax.report.markup import Html, join, tag
from imagen_jax.report.style import style_sheet


def document(title: str, *parts: Html) -> str:
    """A whole HTML document that loads nothing from elsewhere.

    Args:
      title: in the window's bar.
      parts: the page from top to bottom.
    """
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", Html(style_sheet())),
    )
    body = tag("body", tag("div", *parts, class_="page"))
    return join(Html("<!doctype html>\n"), tag("html", head, body, lang="en"), "\n")
