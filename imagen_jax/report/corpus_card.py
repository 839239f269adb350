"""A corpus's data card as one page: what is in it, where that came from, what was left out. It loads nothing."""

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

from imagen_jax.report.document import document
from imagen_jax.report.markup import Child, Html, join, number, percent, table, tag

# (key, caption, JPEG) of a picture.
Thumbnails = Sequence[tuple[str, str, bytes]]
_LONGEST_CAPTION = 160


def corpus_page(facts: Mapping[str, Any], thumbnails: Thumbnails) -> str:
    """The whole HTML document of a data card.

    Args:
      facts: what card.json holds.
      thumbnails: the contact sheet.
    """
    title = f"Corpus: {facts['name']}"
    settings = json.dumps({name: facts[name] for name in ("build", "extra")}, indent=1, sort_keys=True)
    sections: list[tuple[str, Html | None]] = [
        ("Pictures", _gallery(thumbnails)),
        ("Origin and rights", _origin(facts)),
        ("What was left out", _left_out(facts)),
        ("Captions", _captions(facts)),
        ("Pictures as they were found", _bars("Shorter side, in pixels", facts["shorter_sides"])),
        ("Scores", _scores(facts["numbers"])),
        ("Settings", tag("pre", settings)),
    ]
    return document(
        title,
        tag("header", tag("p", "imagen_jax data card", class_="eyebrow"), tag("h1", title), _tiles(facts)),
        tag("main", *(tag("section", tag("h2", name), content) for name, content in sections if content)),
        tag("footer", "This page loads nothing from elsewhere. card.json holds its figures."),
    )


def _tiles(facts: Mapping[str, Any]) -> Html:
    tiles = [(f"in split {split}", number(count)) for split, count in facts["num_examples"].items()]
    tiles += [
        ("side of the pictures, in pixels", number(facts["image_size"])),
        ("inputs refused", number(facts["num_rejected"])),
        ("licence", facts["source"].get("licence", "not stated")),
        ("consent", facts["source"].get("consent", "not stated")),
    ]
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in tiles), class_="facts")


def _gallery(thumbnails: Thumbnails) -> Html:
    figures = []
    for key, caption, jpeg in thumbnails:
        source = f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
        shown = caption if len(caption) <= _LONGEST_CAPTION else f"{caption[:_LONGEST_CAPTION]}…"
        figures.append(tag("figure", tag("img", src=source, alt=shown, title=key), tag("figcaption", shown)))
    return join(tag("p", "Pictures at equal distances in the corpus, with their captions."),
                tag("div", *figures, class_="gallery"))  # fmt: skip


def _origin(facts: Mapping[str, Any]) -> Html:
    rows: list[list[Child]] = [
        [name, value if isinstance(value, str) else json.dumps(value, sort_keys=True)]
        for name, value in sorted(facts["source"].items())
    ]
    counted = [_bars(f"{name.capitalize()}, as the examples state it", one) for name, one in facts["values"].items()]
    return join(table("The source", ["Setting", "Value"], rows), *counted)


def _left_out(facts: Mapping[str, Any]) -> Html:
    other = facts["num_rejected"] - sum(facts["num_dropped"].values())
    rows: list[list[Child]] = [[name, number(count)] for name, count in facts["num_dropped"].items()]
    rows.append(["unusable or recurring inputs", number(other)])
    rows.append(["kept in spite of a flaw", number(facts["num_repaired"])])
    return join(
        tag("p", "Inputs by what dropped them: conditions of filters, near-duplicates, what is kept for evaluation."),
        table("What was left out", ["Dropped by", "Inputs"], rows),
    )


def _captions(facts: Mapping[str, Any]) -> Html:
    rows = [_row("characters", facts["caption_characters"]), _row("words", facts["caption_words"])]
    share = percent(facts["num_boilerplate"] / facts["num_described"])
    return join(
        tag("p", f"Measured on {number(facts['num_described'])} examples. Boilerplate: {share} of the captions."),
        table("Lengths of the captions", _HEADER, rows),
        _bars("Length, in characters", facts["caption_characters"]["histogram"]),
        _bars("Script of most letters", facts["caption_scripts"]),
    )


def _scores(numbers: Mapping[str, Mapping[str, float | int]]) -> Html | None:
    return table("Scores", _HEADER, [_row(name, summary) for name, summary in numbers.items()]) if numbers else None


_HEADER: list[Child] = ["", "Examples", "Least", "Median", "Mean", "Greatest"]


def _row(name: str, summary: Mapping[str, Any]) -> list[Child]:
    return [name, *(number(summary[key]) for key in ("count", "least", "median", "mean", "greatest"))]


def _bars(label: str, counts: Mapping[str, int]) -> Html:
    total = sum(counts.values())
    rows: list[list[Child]] = [
        [
            name,
            number(count),
            percent(count / total),
            tag("span", tag("span", style=f"width:{100 * count / total:.2f}%"), class_="bar"),
        ]
        for name, count in counts.items()
    ]
    return join(tag("h3", label), table(label, ["", "Examples", "Part", ""], rows))
