"""The report's sampler section, by network calls, and its thresholding section, by guidance weight."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from imagen_jax.errors import UserError
from imagen_jax.evals.sampler_study import SAMPLERS_FILE, THRESHOLDS_FILE
from imagen_jax.files import AnyPath
from imagen_jax.report.charts import Chart, Series, render
from imagen_jax.report.data import Picture, finite, optional, read_json, read_picture
from imagen_jax.report.markup import Child, Html, join, number, percent, table, tag

_CALLS = "network calls"


@dataclass(frozen=True, kw_only=True)
class Study:
    """samplers.json or thresholds.json: curves[measure][name] has one value a position, None where there is none."""

    positions: list[float]
    curves: dict[str, dict[str, list[float | None]]]
    about: dict[str, Any]
    picture: Picture | None = None


def read_samplers(run_dir: AnyPath) -> Study | None:
    """samplers.json of a run directory, None where there is none.

    Raises:
        UserError: it is malformed.
    """
    path = run_dir / SAMPLERS_FILE
    content = read_json(path, dict)
    if content is None:
        return None
    try:
        positions = sorted({finite(calls) for rows in content["samplers"].values() for calls in rows["calls"]})
        if not positions or positions[0] <= 0:
            raise ValueError("no numbers of network calls")
        curves: dict[str, dict[str, list[float | None]]] = {"alignment": {}, "image_error": {}}
        for name, rows in content["samplers"].items():
            for measure, by_name in curves.items():
                at = dict(zip(map(float, rows["calls"]), rows[measure], strict=True))
                values = [at.get(position) for position in positions]
                by_name[name] = [None if value is None else finite(value) for value in values]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is malformed ({error!r}); evaluate the run again") from error
    about = {name: optional(content, name) for name in ("guidance_weight", "num_prompts")}
    return Study(positions=positions, curves=curves, about=about)


def read_thresholds(run_dir: AnyPath) -> list[Study]:
    """thresholds.json and thresholds_STAGE.json of a run directory with their pictures, the first stage's first.

    Raises:
        UserError: one of them is malformed.
    """
    first = run_dir / THRESHOLDS_FILE
    others = sorted(run_dir.glob(f"{first.stem}_*{first.suffix}"))
    return [_read_threshold_study(path) for path in (first, *others) if path.is_file()]


def _read_threshold_study(path: AnyPath) -> Study:
    content, drawn = read_json(path, dict), path.parent / "eval" / f"{path.stem}.png"
    try:
        positions = [finite(weight) for weight in content["guidance_weights"]]
        curves: dict[str, dict[str, list[float | None]]] = {
            measure: {rule: [finite(v) for v in rows[measure]] for rule, rows in content["rules"].items()}
            for measure in ("alignment", "saturated")
        }
        if any(len(values) != len(positions) for by_rule in curves.values() for values in by_rule.values()):
            raise ValueError("not one value for each guidance weight")
        if not positions:
            raise ValueError("no guidance weights")
        about = {"stage": str(content["stage"]), "num_prompts": int(finite(content["num_prompts"]))}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is malformed ({error!r}); evaluate the run again") from error
    picture = read_picture(drawn) if drawn.is_file() else None
    return Study(positions=positions, curves=curves, about=about, picture=picture)


def samplers(study: Study) -> Html:
    """Charts and table of alignment and image error by network calls."""
    charts = [
        _chart(study, "alignment", "Alignment by network calls", _CALLS, "share right", percentages=True),
        _chart(study, "image_error", "Difference from the reference", _CALLS, "levels of 255"),
    ]
    rows: list[list[Child]] = []
    for name, scores in study.curves["alignment"].items():
        errors = study.curves["image_error"][name]
        for calls, score, error in zip(study.positions, scores, errors, strict=True):
            if score is not None:
                rows.append([name, number(calls), percent(score), "–" if error is None else f"{error:.2f}"])
    weight, prompts = study.about.get("guidance_weight"), study.about.get("num_prompts")
    return join(
        tag(
            "p",
            f"The base stage drawn by each sampler from the same noise: {number(prompts)} prompts, guidance weight "
            f"{number(weight)}. Alignment is the mean over the categories that decide. The difference is the root mean "
            "square from what the first sampler draws with its most steps; stochastic samplers draw other pictures.",
        ),
        tag("div", *charts, class_="charts"),
        table("Samplers by network calls", ["Sampler", "Network calls", "Alignment", "Difference"], rows),
    )


def thresholds(studies: Sequence[Study]) -> Html:
    """Charts, table and picture of saturation and alignment by guidance weight under each rule, for each stage."""
    return join(*map(_threshold_study, studies))


def _threshold_study(study: Study) -> Html:
    stage = study.about["stage"]
    charts = [
        _chart(study, "alignment", f"Alignment, {stage}", "guidance weight", "share right", percentages=True),
        _chart(study, "saturated", f"Saturated values, {stage}", "guidance weight", "share of all values"),
    ]
    header: list[Child] = ["Guidance weight"]
    rules = list(study.curves["alignment"])
    header += [f"{measure}, {rule}" for measure in ("Alignment", "Saturated") for rule in rules]
    rows: list[list[Child]] = []
    for index, weight in enumerate(study.positions):
        scores = [percent(study.curves["alignment"][rule][index]) for rule in rules]
        saturated = [percent(study.curves["saturated"][rule][index]) for rule in rules]
        rows.append([number(weight), *scores, *saturated])
    parts: list[Child] = [
        tag("h3", f"Stage {stage}"),
        tag(
            "p",
            f"{number(study.about['num_prompts'])} prompts, the same noise at each of this stage's guidance weights; "
            "other stages as configured. A value is saturated at 0 or 255.",
        ),
        tag("div", *charts, class_="charts"),
        table(f"Thresholding by guidance weight of stage {stage}", header, rows),
    ]
    if study.picture is not None and study.picture.uri:
        image = study.picture
        alt = f"Rows: {', '.join(rules)}, for each caption; columns: guidance weights {study.positions}"
        shown = tag("img", src=image.uri, alt=alt, width=image.width, height=image.height)
        caption = tag("figcaption", f"Each caption's rows: {', '.join(rules)}; columns: rising guidance weight.")
        parts.append(tag("figure", shown, caption, class_="frame"))
    return join(*parts)


def _chart(study: Study, measure: str, title: str, x_label: str, y_label: str, percentages: bool = False) -> Html:
    return render(
        Chart(
            title=title,
            x_label=x_label,
            y_label=y_label,
            x=study.positions,
            series=[
                Series(label=name, values=values, colour=f"c{index % 8}")
                for index, (name, values) in enumerate(study.curves[measure].items())
            ],
            percentages=percentages,
            markers=True,
            log_x=x_label == _CALLS,
            joined=True,
        )
    )
