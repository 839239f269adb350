"""The training part of the report: curves, summary and previews of each stage."""

import math
import re
from collections.abc import Sequence
from typing import TypeVar

from imagen_jax.report.charts import Chart, Series, ramp, render, smooth, thin
from imagen_jax.report.data import Picture, Record, StageRun
from imagen_jax.report.markup import Child, Html, join, number, percent, table, tag

_MOST_POINTS = 240
_MOST_PREVIEWS = 8
_NUMBER = r"(-?inf|-?\d+(?:\.\d+)?)"
_BUCKET = re.compile(rf"loss(?:_by_log_snr/|/log_snr_){_NUMBER}(?:\.\.|_){_NUMBER}")

T = TypeVar("T")


def pick(items: Sequence[T], most: int) -> list[T]:
    """At most `most` items spread evenly, first and last among them."""
    return [items[index] for index in thin(len(items), most)]


def training(stages: Sequence[StageRun]) -> Html:
    """Summary of all stages, then each stage's curves and previews."""
    header: list[Child] = [
        "Stage",
        "Steps",
        "First loss",
        "Last loss",
        "Images per second",
        "Waiting for data",
    ]
    rows = [_summary(stage) for stage in stages if stage.records]
    parts: list[Child] = []
    if rows:
        parts.append(tag("p", "Losses here are means over a twentieth of the run, images per second its median."))
        parts.append(table("Training of each stage", header, rows))
    parts += [_stage(stage) for stage in stages]
    return join(*parts)


def data_share(records: Sequence[Record]) -> float | None:
    """Share of the step time spent waiting for data, 0..1; None where it was not measured."""
    timed = [(r["data_s"], r["compute_s"]) for r in records if "data_s" in r and "compute_s" in r]
    total = sum(data + compute for data, compute in timed)
    return sum(data for data, _ in timed) / total if total > 0 else None


def _window(count: int) -> int:
    """An odd number of positions, about a twentieth of the run."""
    return 2 * (count // 40) + 1


def _column(records: Sequence[Record], key: str) -> list[float | None]:
    return [record.get(key) for record in records]


def _summary(stage: StageRun) -> list[Child]:
    losses = [v for v in smooth(_column(stage.records, "loss"), _window(len(stage.records))) if v is not None]
    speeds = sorted(v for r in stage.records if (v := r.get("images_per_s")) is not None and math.isfinite(v))
    return [
        stage.name,
        number(stage.records[-1]["step"]),
        number(losses[0]) if losses else "not measured",
        number(losses[-1]) if losses else "not measured",
        number(speeds[len(speeds) // 2]) if speeds else "not measured",
        percent(share) if (share := data_share(stage.records)) is not None else "not measured",
    ]


def _stage(stage: StageRun) -> Html:
    parts: list[Child] = [tag("h3", f"Stage {stage.name}")]
    if stage.cut_short:
        note = f"The last line of {stage.name}/metrics.jsonl was cut short, as by a killed run, and is left out."
        parts.append(tag("p", note, class_="soft"))
    charts = [render(chart) for chart in _charts(stage) if any(_has_values(s) for s in chart.series)]
    if charts:
        parts.append(tag("div", *charts, class_="charts"))
    else:
        parts.append(tag("p", f"No metrics recorded in {stage.name}/metrics.jsonl.", class_="soft"))
    if stage.previews:
        parts.append(_previews(stage))
    return join(*parts)


def _has_values(series: Series) -> bool:
    return any(value is not None for value in series.values)


def bucket_label(key: str) -> str | None:
    """A metric's log-SNR bucket in words ("below −6", "−6 to −3"); None for any other metric."""
    found = _BUCKET.fullmatch(key)
    if found is None:
        return None
    low, high = (text.replace("-", "−") for text in found.groups())
    if low == "−inf":
        return f"below {high}"
    return f"above {low}" if high == "inf" else f"{low} to {high}"


def _bucket_start(key: str) -> float:
    found = _BUCKET.fullmatch(key)
    return float(found[1]) if found else math.inf


def _charts(stage: StageRun) -> list[Chart]:
    records = stage.records
    chosen = thin(len(records), _MOST_POINTS)
    steps = [records[index]["step"] for index in chosen]
    window = _window(len(records))

    def chart(title: str, y_label: str, series: Sequence[Series], log: bool = False) -> Chart:
        return Chart(title=f"{title}, {stage.name}", x_label="step", y_label=y_label, x=steps, series=series, log=log)

    def raw(key: str, label: str, colour: str, faint: bool = False) -> Series:
        values = _column(records, key)
        return Series(label=label, values=[values[i] for i in chosen], colour=colour, faint=faint)

    def smoothed(key: str, label: str, colour: str) -> Series:
        values = smooth(_column(records, key), window)
        return Series(label=label, values=[values[i] for i in chosen], colour=colour)

    names = {key: label for record in records for key in record if (label := bucket_label(key))}
    buckets = sorted(names, key=_bucket_start)
    by_bucket = [smoothed(key, names[key], ramp(i, len(buckets))) for i, key in enumerate(buckets)]
    return [
        chart("Loss", "loss", [raw("loss", "raw", "c0", True), smoothed("loss", "smoothed", "c0")], log=True),
        chart("Loss by log-SNR", "loss", by_bucket, log=True),
        chart(
            "Gradient norm",
            "norm",
            [raw("grad_norm", "raw", "c2", True), smoothed("grad_norm", "smoothed", "c2")],
            log=True,
        ),
        chart("Learning rate", "rate", [raw("learning_rate", "learning rate", "c3")]),
        chart("Speed", "images per second", [raw("images_per_s", "images per second", "c6")]),
        chart(
            _split_title(records),
            "seconds per step",
            [raw("data_s", "waiting for data", "c1"), raw("compute_s", "computing", "c0")],
        ),
    ]


def _split_title(records: Sequence[Record]) -> str:
    share = data_share(records)
    return "Data and compute" if share is None else f"Data and compute ({percent(share)} waiting for data)"


def _previews(stage: StageRun) -> Html:
    chosen = pick(stage.previews, _MOST_PREVIEWS)
    left_out = f", {len(chosen)} of {len(stage.previews)}" if len(chosen) < len(stage.previews) else ""
    cards = [
        tag("figure", _grid(image, stage.name, step), tag("figcaption", f"step {step:,}", class_="soft"))
        for step, image in chosen
    ]
    return join(
        tag("p", f"Samples over training{left_out}", class_="soft"),
        tag("div", *cards, class_="gallery wide"),
    )


def _grid(image: Picture, stage: str, step: int) -> Html:
    if not image.uri:
        return tag("div", f"Not readable: {image.problem}", class_="unread")
    alt = f"Samples of stage {stage} at step {step:,}"
    return tag("img", src=image.uri, alt=alt, width=image.width, height=image.height, class_="pixels")
