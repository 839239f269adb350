"""The page of a sweep: figures, table, best and worst samples, protocol, command, versions, hardware, seconds."""

import os
from collections.abc import Sequence
from typing import Any

from imagen_jax.errors import UserError
from imagen_jax.files import as_path, write_text
from imagen_jax.report.charts import Chart, Series, render
from imagen_jax.report.data import read_json, read_picture
from imagen_jax.report.document import document
from imagen_jax.report.markup import Child, Html, duration, join, number, table, tag
from imagen_jax.report.sections import picture

PAGE = "sweep.html"
# Figures that have curves; what stands beside them, such as deviations and shares of a category, is in the table.
_LABELS = {
    "fid": "FID",
    "fid_infinity": "FID at infinity",
    "fd_dinov2": "FD-DINOv2",
    "kid": "KID",
    "cmmd": "CMMD",
    "inception_score": "Inception score",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "vendi": "Vendi score",
    "clip_score": "CLIP score",
    "r_precision": "R-precision",
    "matches": "share of images that match",
}
# Distances to a reference, the first of which that is there stands against CLIP score.
_DISTANCES = ("fid", "fid_infinity", "fd_dinov2", "cmmd", "kid")


def write_sweep_page(output_dir: str) -> str:
    """Writes OUTPUT_DIR/sweep.html from sweep.json and sweep_run.json.

    Args:
      output_dir: folder of a sweep that has ended.

    Returns:
      The path of the page.

    Raises:
      UserError: there is no sweep, or one of its files is malformed.
    """
    folder = as_path(output_dir)
    content, about = (read_json(folder / name, dict) for name in ("sweep.json", "sweep_run.json"))
    if content is None or about is None:
        raise UserError(
            f"{output_dir} holds no sweep.json with sweep_run.json; run `imagen_jax sweep` to its end first"
        )
    try:
        page = sweep_page(content, about, output_dir)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UserError(f"sweep.json in {output_dir} is malformed ({error!r}); run the sweep again") from error
    path = folder / PAGE
    write_text(path, page.encode(errors="replace").decode())
    return os.fspath(path)


def sweep_page(content: dict[str, Any], about: dict[str, Any], output_dir: str) -> str:
    """The whole document.

    Args:
      content: of sweep.json.
      about: of sweep_run.json.
      output_dir: where the images lie.
    """
    points = content["points"]
    title = f"Sweep of {' → '.join(stage['name'] for stage in content['stages'])}"
    lede = f"{len(points)} points, {number(points[0]['images'])} images each"
    sections = [
        ("Figures", join(*(tag("div", *charts(points), class_="charts"),))),
        ("Points", points_table(points)),
        ("Best and worst samples", samples(points, output_dir)),
        ("Protocol and run", facts(content, about)),
    ]
    shown = [
        tag("section", tag("h2", name, id=f"s{i}"), body, aria_labelledby=f"s{i}")
        for i, (name, body) in enumerate(sections)
        if body
    ]
    header = tag("header", tag("p", "imagen_jax sweep", class_="eyebrow"), tag("h1", title), tag("p", lede))
    return document(title, header, tag("main", *shown))


def charts(points: Sequence[dict[str, Any]]) -> list[Html]:
    """FID, or another distance, against CLIP score where both are there; each score along each axis of numbers."""
    drawn = [point for point in points if not point["failed"]]
    there = {name for point in drawn for name in point["scores"]}
    distance = next((name for name in _DISTANCES if name in there), None)
    made = [] if distance is None or "clip_score" not in there else [_pareto(drawn, distance)]
    for stage, settings in points[0]["settings"].items():
        for axis in settings:
            values = [point["settings"][stage][axis] for point in points]
            if len(set(map(str, values))) > 1 and not isinstance(values[0], str):
                made += [_curve(drawn, stage, axis, score) for score in _LABELS if score in there]
    return made


def _pareto(points: Sequence[dict[str, Any]], distance: str) -> Html:
    groups: dict[str, dict[float, float]] = {}
    for point in points:
        kinds = (f"{s['sampler']}, {s['thresholding']}" for s in point["settings"].values())
        scores = point["scores"]
        at = groups.setdefault(" → ".join(kinds), {})
        at[scores["clip_score"]] = min(scores[distance], at.get(scores["clip_score"], float("inf")))
    return _lines(f"{_LABELS[distance]} against CLIP score", "CLIP score", _LABELS[distance], groups)


def _curve(points: Sequence[dict[str, Any]], stage: str, axis: str, score: str) -> Html:
    """A score along one axis, one line for each setting of all else."""
    groups: dict[str, dict[float, float]] = {}
    varied = _varied(points)
    for point in points:
        others = [f"{s} {a} {_shown(point['settings'][s][a])}" for s, a in varied if (s, a) != (stage, axis)]
        groups.setdefault(", ".join(others) or stage, {})[point["settings"][stage][axis]] = point["scores"][score]
    return _lines(f"{_LABELS[score]} by {axis} of {stage}", f"{axis} of {stage}", _LABELS[score], groups)


def _lines(title: str, x_label: str, y_label: str, groups: dict[str, dict[float, float]]) -> Html:
    x = sorted({position for line in groups.values() for position in line})
    series = [
        Series(label=label, values=[line.get(position) for position in x], colour=f"c{index % 8}")
        for index, (label, line) in enumerate(groups.items())
    ]
    return render(Chart(title=title, x_label=x_label, y_label=y_label, x=x, series=series, markers=True, joined=True))


def _varied(points: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """Stages and axes whose values differ between points."""
    axes = [(stage, axis) for stage, settings in points[0]["settings"].items() for axis in settings]
    return [(s, a) for s, a in axes if len({str(point["settings"][s][a]) for point in points}) > 1]


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else number(value)


def points_table(points: Sequence[dict[str, Any]]) -> Html:
    """One row a point: the settings that differ, and the scores."""
    varied = _varied(points)
    names = sorted({name for point in points for name in point["scores"]})
    notes = any(point["failed"] or point["warnings"] for point in points)
    header: list[Child] = ["Point", *(f"{stage} {axis}" for stage, axis in varied)]
    header += [*(_LABELS.get(name, name) for name in names), *(["Notes"] if notes else [])]
    rows: list[list[Child]] = []
    for index, point in enumerate(points):
        cells: list[Child] = [str(index + 1), *(_shown(point["settings"][s][a]) for s, a in varied)]
        cells += [number(point["scores"].get(name)) for name in names]
        told = [point["failed"], *point["warnings"]]
        rows.append([*cells, *(["; ".join(filter(None, told))] if notes else [])])
    return table("Scores of each point", header, rows)


def samples(points: Sequence[dict[str, Any]], output_dir: str) -> Html:
    """Best and worst images of each category, of the point with the best score of images."""
    shown = [point for point in points if point["samples"]]
    if not shown:
        return Html("")
    by = shown[0]["samples_by"]
    best = max(shown, key=lambda point: point["scores"][by])
    told = ", ".join(f"{s} {a} {_shown(best['settings'][s][a])}" for s, a in _varied(points))
    parts: list[Child] = [tag("p", f"By {_LABELS[by]}, of point {list(points).index(best) + 1}: {told}.")]
    folder = as_path(output_dir) / "images" / best["key"]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for sample in best["samples"]:
        groups.setdefault((sample["category"], sample["end"]), []).append(sample)
    for (category, end), found in groups.items():
        figures = []
        for sample in found:
            image = picture(read_picture(folder / sample["image"]), sample["caption"])
            caption = tag("figcaption", f"{sample['caption']} ({number(sample['score'])})")
            figures.append(tag("figure", image, caption))
        parts += [tag("h3", f"{category}, {end}"), tag("div", *figures, class_="gallery")]
    return join(*parts)


def facts(content: dict[str, Any], about: dict[str, Any]) -> Html:
    """Protocol, checkpoints, weights, command, versions, hardware and seconds."""
    rows: list[list[Child]] = [["imagen_jax", content["version"]]]
    rows += [[f"Checkpoint of {stage['name']}", stage["checkpoint"]] for stage in content["stages"]]
    varied = _varied(content["points"])
    for stage, settings in content["points"][0]["settings"].items():
        same = [f"{axis} {_shown(value)}" for axis, value in settings.items() if (stage, axis) not in varied]
        rows += [[f"The same in all points, {stage}", ", ".join(same)]] if same else []
    rows += [[f"Prompts, {name}", value] for name, value in _flat(content["prompts"])]
    rows += [["Metrics", ", ".join(content["metrics"]) or "none"]] if "metrics" in content else []
    rows += [[f"Weights of {name}", value] for name, value in content["weights"].items()]
    rows += [["Devices", ", ".join(about["devices"])]]
    rows += [[f"Drawing {stage}", duration(seconds)] for stage, seconds in about["seconds"].items()]
    rows += [["Scoring", duration(about["scoring_s"])]] if "scoring_s" in about else []
    rows += [[name, value] for name, value in about.get("versions", {}).items()]
    return join(
        table("Protocol and run", ["What", "Value"], rows),
        tag("p", "Command:"),
        tag("pre", about["command"]),
    )


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    found = []
    for name, value in values.items():
        found += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(f"{prefix}{name}", str(value))]
    return found
