"""The report's scores: alignment with the caption by guidance weight, held-out pairs against seen ones."""

from imagen_jax.report.charts import Chart, Series, render
from imagen_jax.report.data import Evaluation
from imagen_jax.report.markup import Child, Html, join, number, percent, table, tag

CATEGORIES = {
    "single_colour": "Colour of one object",
    "single_shape": "Shape of one object",
    "single_both": "Colour and shape",
    "two_colour_binding": "Colours of two objects",
    "two_relation": "Relation of two objects",
    "count": "Count",
    "heldout_both": "Colour and shape, held out",
}


def at_best(score: Evaluation | None, category: str) -> float | None:
    """A category's score at the best guidance weight; None where it was not scored."""
    if score is None or score.best_guidance_weight not in score.guidance_weights:
        return None
    values = score.alignment.get(category)
    return values[score.guidance_weights.index(score.best_guidance_weight)] if values else None


def alignment(score: Evaluation) -> Html:
    """Chart and table of every category by guidance weight, with the unconditional score and chance."""
    references = [(name, value) for name, value in _levels(score) if value is not None]
    chart = Chart(
        title="Pictures that show what the caption asks, by category",
        x_label="guidance weight",
        y_label="share right",
        x=score.guidance_weights,
        series=[
            Series(label=CATEGORIES.get(name, name), values=values, colour=f"c{index % 8}")
            for index, (name, values) in enumerate(score.alignment.items())
        ],
        percentages=True,
        markers=True,
        references=references,
        best_x=score.best_guidance_weight,
        width=920,
        height=400,
    )
    names = list(score.alignment)
    rows: list[list[Child]] = []
    best = frozenset(i for i, w in enumerate(score.guidance_weights) if w == score.best_guidance_weight)
    for index, weight in enumerate(score.guidance_weights):
        badge = tag("span", "best", class_="badge") if index in best else None
        rows.append([join(number(weight), badge), *(percent(score.alignment[name][index]) for name in names)])
    for label, value in _levels(score):
        empty = "not measured" if value is None else percent(value)
        rows.append([label.capitalize(), *(empty if name == "single_both" else "" for name in names)])
    header: list[Child] = ["Guidance weight", *(_wrapped(CATEGORIES.get(name, name)) for name in names)]
    prompts = "" if score.num_prompts is None else f" {number(score.num_prompts)} prompts."
    return join(
        tag(
            "p",
            "Share of pictures in which the asked attributes are found. Guidance weight 1 is no guidance. "
            f"The unconditional score and chance are for colour and shape together.{prompts}",
        ),
        render(chart),
        table("Alignment by guidance weight and category", header, rows, best),
    )


def _wrapped(label: str) -> Html:
    """A column heading that may break in two lines, so that the table stays narrow."""
    words = label.split()
    half = (len(words) + 1) // 2
    return join(" ".join(words[:half]), tag("br"), " ".join(words[half:])) if len(words) > 1 else join(label)


def _levels(score: Evaluation) -> list[tuple[str, float | None]]:
    return [("unconditional", score.unconditional), ("chance", score.chance)]


def held_out(score: Evaluation) -> Html:
    """Chart and table of colour and shape on pairs seen in training and held out of it."""
    unseen = score.alignment["heldout_both"]
    seen = score.alignment.get("single_both", [None] * len(unseen))
    chart = Chart(
        title="Colour and shape right",
        x_label="guidance weight",
        y_label="share right",
        x=score.guidance_weights,
        series=[
            Series(label="seen in training", values=seen, colour="c0"),
            Series(label="held out", values=unseen, colour="c1"),
        ],
        percentages=True,
        markers=True,
        best_x=score.best_guidance_weight,
    )
    rows: list[list[Child]] = []
    for weight, a, b in zip(score.guidance_weights, seen, unseen, strict=True):
        gap = "–" if a is None or b is None else f"{100 * (b - a):+.1f} points".replace("-", "−")
        rows.append([number(weight), percent(a), percent(b), gap])
    best = frozenset(i for i, w in enumerate(score.guidance_weights) if w == score.best_guidance_weight)
    header: list[Child] = ["Guidance weight", "Seen", "Held out", "Difference"]
    return join(
        tag("p", "Pairs of colour and shape that training never showed, beside those that it did."),
        tag(
            "div",
            render(chart),
            table("Held-out against seen pairs by guidance weight", header, rows, best),
            class_="charts",
        ),
    )
