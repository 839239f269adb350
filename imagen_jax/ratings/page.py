"""The page that raters see: one HTML document that loads nothing but the study's images."""

import base64
import hashlib
import json

from imagen_jax.ratings.page_script import SCRIPT
from imagen_jax.ratings.page_style import STYLE
from imagen_jax.ratings.study import LONGEST_NAME, Study
from imagen_jax.report.markup import Html, join, tag
from imagen_jax.report.style import style_sheet


def rating_page(study: Study) -> str:
    """The whole document of a study. It works from a folder, and from `imagen_jax serve_study`."""
    # JSON in a script element ends at "</": no < stands in it.
    content = json.dumps(study.plain()).replace("<", "\\u003c")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy()),
        tag("meta", name="referrer", content="no-referrer"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", "Image ratings"),
        tag("style", Html(_style())),
    )
    body = tag(
        "body",
        tag("div", _top(), tag("main", _welcome(), _turn(), _end(), id="main"), class_="rating"),
        tag("script", Html(content), type="application/json", id="study"),
        tag("script", Html(SCRIPT)),
    )
    return join(Html("<!doctype html>\n"), tag("html", head, body, lang="en"), "\n")


def policy() -> str:
    """The page's content security policy: this very script and style sheet, the study's images, its server."""
    return (
        f"default-src 'none'; script-src {_digest(SCRIPT)}; style-src {_digest(_style())}; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'"
    )


def _style() -> str:
    return f"{style_sheet()}\n{STYLE.strip()}\n"


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _top() -> Html:
    return tag(
        "div",
        tag("span", "", id="place"),
        tag("progress", value=0, max=1, id="progress", aria_label="Answered so far"),
        tag("button", "Download ratings", type="button", id="download", hidden=True),
        class_="top",
    )


def _welcome() -> Html:
    keys = tag("p", "By keyboard: ", _key("1"), " ", _key("2"), " ", _key("3"), " answer the marked question, ",
               _key("Backspace"), " goes back to the question before, ", _key("Enter"), " goes on.")  # fmt: skip
    return tag(
        "section",
        tag("h1", "Image ratings"),
        tag(
            "p",
            "You will see images and answer short questions about them. There are no right answers: say what you "
            "see. You may close the page at any time and go on later, under the same name and in the same browser.",
            class_="lede",
        ),
        keys,
        tag(
            "form",
            tag("label", "Your name, or any word that is yours alone", for_="name"),
            _input(),
            tag("button", "Start", type="submit", class_="go"),
            id="form",
        ),
        id="welcome",
    )


def _input() -> Html:
    return Html(
        f'<input id="name" maxlength="{LONGEST_NAME}" autocomplete="off" spellcheck="false" required '
        'aria-describedby="status">'
    )


def _turn() -> Html:
    return tag(
        "section",
        tag("h1", "", id="heading", class_="hidden", tabindex=-1),
        tag("p", "", id="prompt"),
        tag("div", "", id="sides"),
        tag("div", "", id="questions"),
        tag("div", tag("button", "Next ", _key("Enter"), type="button", id="next", class_="go"), class_="go-on"),
        id="turn",
        hidden=True,
    )


def _end() -> Html:
    return join(
        tag(
            "section",
            tag("h1", "Thank you", id="thanks", tabindex=-1),
            tag("p", "", id="outcome", class_="lede"),
            id="end",
            hidden=True,
        ),
        tag("p", "", id="status", role="status"),
    )


def _key(name: str) -> Html:
    return tag("kbd", name)
