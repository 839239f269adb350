"""Line charts as inline SVG: axes, ticks, legend, tooltips by <title>, no script.

A value x of the domain [a, b] stands at pixel p + (x - a) / (b - a) * (q - p); on a logarithmic axis at the
same place of log x. Colours are classes (c0..c7 for kinds, r0..r6 for an ordered family), so that the page's
style sheet can give each theme its own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

from imagen_jax.report.markup import LARGEST, Html, join, number, percent, tag

NUM_COLOURS = 8
NUM_RAMP = 7
MARGIN_LEFT, MARGIN_RIGHT, MARGIN_TOP, MARGIN_BOTTOM = 66, 18, 18, 50
_DASHES = ("", "7 3", "2 3", "9 3 2 3")
_MARKERS = ("circle", "square", "diamond", "up", "down")


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A map from data to pixels.

    Args:
        low, high: ends of the domain, low < high; both > 0 when log.
        start, end: their pixels (start > end for an upward axis).
        log: logarithmic instead of linear.
    """

    low: float
    high: float
    start: float | int
    end: float | int
    log: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(f"domain ({self.low}, {self.high}) must rise, and be > 0 on a logarithmic axis")

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line.

    Args:
        label: its name in legend and tooltips.
        values: one a position of the chart's x; None or a non-finite value breaks the line.
        colour: class name, "c0".."c7" or "r0".."r6".
        faint: drawn thin and pale, for raw values under a smoothed line.
    """

    label: str
    values: Sequence[float | None]
    colour: str
    faint: bool = False


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A line chart over shared x positions.

    Args:
        title: stands above the chart.
        x_label, y_label: axis titles, with unit.
        x: rising positions.
        series: lines; each as long as x.
        percentages: values are fractions 0..1, drawn on a fixed 0–100% axis.
        log: logarithmic y, used where every value is positive.
        log_x: logarithmic x; every position is positive.
        joined: lines go on across positions where they have no value.
        markers: draw a mark at each point (for few points).
        references: (label, value) drawn as dashed level lines.
        best_x: a position to mark with a vertical line.
        width, height: of the drawing in px.
    """

    title: str
    x_label: str
    y_label: str
    x: Sequence[float]
    series: Sequence[Series]
    percentages: bool = False
    log: bool = False
    log_x: bool = False
    joined: bool = False
    markers: bool = False
    references: Sequence[tuple[str, float]] = ()
    best_x: float | None = None
    width: int = 560
    height: int = 300

    def __post_init__(self) -> None:
        for series in self.series:
            if len(series.values) != len(self.x):
                raise ValueError(f"series {series.label!r}: {len(series.values)} values, {len(self.x)} positions")


def linear_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round values (1, 2, 5 times a power of ten apart) within [low, high], about `count` of them."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= 0.7 * raw)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Round values within [low, high]: powers of ten, with 2 and 5 between on a narrow range."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for multiples in ((1,), (1, 2, 5)):
        candidates = [float(f"{m}e{p}") for p in powers for m in multiples]
        ticks = [value for value in candidates if low <= value <= high]
        if len(ticks) >= 3:
            return ticks
    return linear_ticks(low, high, 4)


def smooth(values: Sequence[float | None], window: int) -> list[float | None]:
    """Centred moving mean over `window` (odd) positions; absent and non-finite values take no part."""
    # Running sums: a long run has too many records for a sum over every window.
    sums, counts = [0.0], [0]
    for value in values:
        sums.append(sums[-1] + (value if _drawable(value) else 0.0))
        counts.append(counts[-1] + _drawable(value))
    smoothed: list[float | None] = []
    for index in range(len(values)):
        first, last = max(0, index - window // 2), min(len(values), index + window // 2 + 1)
        count = counts[last] - counts[first]
        smoothed.append((sums[last] - sums[first]) / count if count else None)
    return smoothed


def thin(count: int, most: int) -> list[int]:
    """At most `most` indices spread evenly over range(count), first and last among them."""
    if count <= most:
        return list(range(count))
    return [round(index * (count - 1) / (most - 1)) for index in range(most)]


def ramp(index: int, count: int) -> str:
    """Colour class of member `index` of an ordered family of `count`."""
    return f"r{round(index * (NUM_RAMP - 1) / max(1, count - 1))}"


def scales(chart: Chart) -> tuple[Scale, Scale]:
    """The x and y scales of a chart, domains rounded outward to ticks on linear y axes."""
    values = [v for series in chart.series for v in series.values if _drawable(v)]
    values += [value for _, value in chart.references]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    log = chart.log and low > 0
    if chart.percentages:
        low, high = 0.0, 1.0
    elif log:
        low, high = low / 1.1, high * 1.1
    else:
        low, high = min(low, 0.0), max(high, 0.0)
        high = high if high > low else low + 1.0
        step = linear_ticks(low, high)
        gap = step[1] - step[0]
        low, high = gap * math.floor(low / gap + 1e-9), gap * math.ceil(high / gap - 1e-9)
    x_low, x_high = (min(chart.x), max(chart.x)) if chart.x else (0.0, 1.0)
    if x_low == x_high:
        x_low, x_high = x_low - 0.5, x_high + 0.5
    return (
        Scale(low=x_low, high=x_high, start=MARGIN_LEFT, end=chart.width - MARGIN_RIGHT, log=chart.log_x),
        Scale(low=low, high=high, start=chart.height - MARGIN_BOTTOM, end=MARGIN_TOP, log=log),
    )


def render(chart: Chart) -> Html:
    """The chart as a <figure>: title, legend, and the drawing in a box that scrolls by itself."""
    x_scale, y_scale = scales(chart)
    drawing = tag(
        "svg",
        _axes(chart, x_scale, y_scale),
        *(_reference(chart, y_scale, index) for index in range(len(chart.references))),
        _best(chart, x_scale),
        *(_line(chart, index, x_scale, y_scale) for index in range(len(chart.series))),
        _tooltips(chart, x_scale),
        viewBox=f"0 0 {chart.width} {chart.height}",
        role="img",
        aria_label=_description(chart),
        style=f"min-width:{round(chart.width * 0.8)}px;max-width:{round(chart.width * 1.2)}px",
    )
    items = [tag("li", _swatch(chart, index), series.label) for index, series in enumerate(chart.series)]
    box = tag("div", drawing, class_="scroll", role="region", tabindex=0, aria_label=f"Chart: {chart.title}")
    return tag("figure", tag("figcaption", chart.title), tag("ul", *items, class_="legend"), box, class_="chart")


def _drawable(value: float | None) -> TypeGuard[float]:
    return value is not None and abs(value) < LARGEST  # False for nan.


def _show(chart: Chart, value: float | None) -> str:
    return percent(value) if chart.percentages else number(value)


def _description(chart: Chart) -> str:
    ends = []
    for series in chart.series:
        values = [v for v in series.values if _drawable(v)]
        if values:
            ends.append(f"{series.label} from {_show(chart, values[0])} to {_show(chart, values[-1])}")
    return f"{chart.title}: {chart.y_label} against {chart.x_label}. {'; '.join(ends)}."


def _axes(chart: Chart, x_scale: Scale, y_scale: Scale) -> Html:
    parts = []
    bottom, right = chart.height - MARGIN_BOTTOM, chart.width - MARGIN_RIGHT
    ticks = log_ticks if y_scale.log else linear_ticks
    for value in ticks(y_scale.low, y_scale.high):
        y = round(y_scale(value), 2)
        shown = f"{100 * value:.0f}%" if chart.percentages else number(value)
        parts.append(tag("line", class_="gridline", x1=MARGIN_LEFT, x2=right, y1=y, y2=y))
        parts.append(tag("text", shown, class_="tick", x=MARGIN_LEFT - 9, y=y + 4, text_anchor="end"))
    for value in log_ticks(x_scale.low, x_scale.high) if x_scale.log else linear_ticks(x_scale.low, x_scale.high, 6):
        x = round(x_scale(value), 2)
        parts.append(tag("line", class_="axis", x1=x, x2=x, y1=bottom, y2=bottom + 5))
        parts.append(tag("text", number(value), class_="tick", x=x, y=bottom + 19, text_anchor="middle"))
    parts.append(tag("line", class_="axis", x1=MARGIN_LEFT, x2=right, y1=bottom, y2=bottom))
    middle_x, middle_y = (MARGIN_LEFT + right) / 2, (MARGIN_TOP + bottom) / 2
    parts.append(tag("text", chart.x_label, class_="axis-label", x=middle_x, y=chart.height - 8, text_anchor="middle"))
    parts.append(
        tag(
            "text",
            chart.y_label + (" (log scale)" if y_scale.log else ""),
            class_="axis-label",
            text_anchor="middle",
            transform=f"translate(14 {middle_y}) rotate(-90)",
        )
    )
    return join(*parts)


def _reference(chart: Chart, y_scale: Scale, index: int) -> Html:
    label, value = chart.references[index]
    y, right = round(y_scale(value), 2), chart.width - MARGIN_RIGHT
    # Levels may lie close together, so each name stands further left than the one before.
    x = right - 4 - 170 * index
    return join(
        tag("line", class_="reference", x1=MARGIN_LEFT, x2=right, y1=y, y2=y),
        tag("text", f"{label} {_show(chart, value)}", class_="note", x=x, y=y - 5, text_anchor="end"),
    )


def _best(chart: Chart, x_scale: Scale) -> Html | None:
    if chart.best_x is None:
        return None
    x = round(x_scale(chart.best_x), 2)
    left = x > (x_scale.start + x_scale.end) / 2
    return join(
        tag("line", class_="best", x1=x, x2=x, y1=MARGIN_TOP, y2=chart.height - MARGIN_BOTTOM),
        tag(
            "text",
            f"best: {number(chart.best_x)}",
            class_="note",
            x=x - 6 if left else x + 6,
            y=MARGIN_TOP - 5,
            text_anchor="end" if left else "start",
        ),
    )


def _dash(chart: Chart, index: int) -> str | None:
    """Dashes tell apart the lines of a family of three or more; markers and pale lines need none."""
    bold = [i for i, series in enumerate(chart.series) if not series.faint]
    if chart.markers or index not in bold or len(bold) < 3:
        return None
    return _DASHES[bold.index(index) % len(_DASHES)] or None


def _line(chart: Chart, index: int, x_scale: Scale, y_scale: Scale) -> Html:
    series = chart.series[index]
    commands: list[str] = []
    marks: list[Html] = []
    pen_down = False
    for position, value in zip(chart.x, series.values, strict=True):
        if value is None or not math.isfinite(value):
            pen_down = pen_down and chart.joined
            continue
        x, y = x_scale(position), y_scale(value)
        commands.append(f"{'L' if pen_down else 'M'}{x:.2f} {y:.2f}")
        pen_down = True
        if chart.markers:
            marks.append(_marker(_MARKERS[index % len(_MARKERS)], x, y))
    path = tag("path", d="".join(commands), class_="line", stroke_dasharray=_dash(chart, index))
    return tag("g", path, *marks, class_=f"{series.colour} faint" if series.faint else series.colour)


def _marker(shape: str, x: float, y: float) -> Html:
    if shape == "circle":
        return tag("circle", cx=f"{x:.2f}", cy=f"{y:.2f}", r=4, class_="mark")
    corners = {
        "square": ((-3.6, -3.6), (3.6, -3.6), (3.6, 3.6), (-3.6, 3.6)),
        "diamond": ((0, -5), (5, 0), (0, 5), (-5, 0)),
        "up": ((0, -4.8), (4.6, 3.6), (-4.6, 3.6)),
        "down": ((0, 4.8), (4.6, -3.6), (-4.6, -3.6)),
    }[shape]
    points = " ".join(f"{x + dx:.2f},{y + dy:.2f}" for dx, dy in corners)
    return tag("polygon", points=points, class_="mark")


def _swatch(chart: Chart, index: int) -> Html:
    series = chart.series[index]
    path = tag("path", d="M1 7L27 7", class_="line", stroke_dasharray=_dash(chart, index))
    mark = _marker(_MARKERS[index % len(_MARKERS)], 14.0, 7.0) if chart.markers else None
    group = tag("g", path, mark, class_=f"{series.colour} faint" if series.faint else series.colour)
    return tag("svg", group, viewBox="0 0 28 14", width=28, height=14, aria_hidden="true")


def _tooltips(chart: Chart, x_scale: Scale) -> Html:
    """One transparent column a position: the whole height answers the pointer, not a two-pixel line."""
    pixels = [x_scale(value) for value in chart.x]
    edges = [x_scale.start, *((a + b) / 2 for a, b in zip(pixels, pixels[1:], strict=False)), x_scale.end]
    parts = []
    for index, value in enumerate(chart.x):
        lines = [f"{chart.x_label} {number(value)}"]
        lines += [f"{series.label}: {_show(chart, series.values[index])}" for series in chart.series]
        parts.append(
            tag(
                "rect",
                tag("title", "\n".join(lines)),
                class_="hover",
                x=f"{edges[index]:.2f}",
                y=MARGIN_TOP,
                width=f"{edges[index + 1] - edges[index]:.2f}",
                height=chart.height - MARGIN_TOP - MARGIN_BOTTOM,
            )
        )
    return tag("g", *parts)
