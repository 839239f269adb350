"""The page ratings.html: what raters preferred, as one page that loads nothing."""

from collections.abc import Mapping
from typing import Any

from imagen_jax.report.document import document
from imagen_jax.report.markup import Child, Html, join, number, percent, table, tag


def results_page(results: Mapping[str, Any]) -> str:
    """The whole document of what `analyse` found."""
    first, second = results["models"]
    title = f"Ratings: {first} and {second}"
    sections = [tag("section", tag("h2", name), _question(results, one)) for name, one in results["questions"].items()]
    return document(
        title,
        tag("header", tag("p", "imagen_jax ratings", class_="eyebrow"), tag("h1", title), _tiles(results)),
        tag("main", *sections, tag("section", tag("h2", "Raters"), _raters(results))),
        tag("footer", "Intervals of 95 %: bootstrap over prompts. This page loads nothing from elsewhere."),
    )


def _tiles(results: Mapping[str, Any]) -> Html:
    tiles: list[tuple[str, Child]] = [
        ("raters", number(results["num_raters"])),
        ("answers", number(results["num_ratings"])),
        ("of the choices of a side were left", percent(results["left_share"])),
        ("second answers, left out", number(results["num_repeated"])),
    ]
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in tiles), class_="facts")


def _question(results: Mapping[str, Any], found: Mapping[str, Any]) -> Html:
    alpha = tag("p", "Agreement of the raters, Krippendorff's alpha: ", number(found["alpha"]), ".", class_="soft")
    if found["kind"] == "score":
        header: list[Child] = ["Category", "Images", "Answers", "Score", "95 %", ""]
        rows: list[list[Child]] = [
            [name, number(one["num_prompts"]), number(one["num_votes"]), f"{one['score']['value']:.1f}",
             f"{one['score']['low']:.1f} – {one['score']['high']:.1f}", _bar(one["score"]["value"] / 100)]
            for name, one in found["categories"].items()
        ]  # fmt: skip
        return join(alpha, table("Mean score, yes 100, somewhat 50, no 0", header, rows, frozenset({0})))
    first, second = results["models"]
    choices = [("first", first), ("indifferent", "indifferent"), ("second", second)]
    if all(not one["indifferent"]["value"] for one in found["categories"].values()):
        choices = [choices[0], choices[2]]
    header = ["Category", "Prompts", "Answers"]
    for _, name in choices:
        header += [name, "95 %", "Majorities"]
    header += ["Undecided", ""]
    rows = []
    for name, one in found["categories"].items():
        row: list[Child] = [name, number(one["num_prompts"]), number(one["num_votes"])]
        for choice, _ in choices:
            figure = one[choice]
            row += [percent(figure["value"]), f"{percent(figure['low'])} – {percent(figure['high'])}",
                    number(figure["majorities"])]  # fmt: skip
        rows.append([*row, number(one["undecided"]), _bar(one["first"]["value"])])
    return join(alpha, table("Shares of the votes", header, rows, frozenset({0})))


def _bar(share: float) -> Html:
    return tag("span", tag("span", style=f"width:{100 * share:.2f}%"), class_="bar")


def _raters(results: Mapping[str, Any]) -> Html:
    rows: list[list[Child]] = [[name, number(count)] for name, count in results["raters"].items()]
    return table("Answers by rater", ["Rater", "Answers"], rows)
