"""The charts' maths against values worked by hand, and what a drawing says."""

import math
import re

import pytest

from imagen_jax.report.charts import (
    Chart,
    Scale,
    Series,
    linear_ticks,
    log_ticks,
    ramp,
    render,
    scales,
    smooth,
    thin,
)


def chart(values: list[float | None], x: list[int], **options: bool) -> Chart:
    line = Series(label="line", values=values, colour="c0")
    at = [float(value) for value in x]
    return Chart(title="T", x_label="step", y_label="loss", x=at, series=[line], **options)  # type: ignore[arg-type]


def points(drawing: str) -> list[tuple[float, float]]:
    """Pixels of the charted line (the last path drawn; the legend's come before)."""
    path = re.findall(r'<path d="([^"]*)"', drawing)[-1]
    return [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", path)]


def test_points_are_linear_in_the_data() -> None:
    # The plot of a 560 x 300 drawing spans x 66..542 and y 250..18; 10..30 over x, 0..100% over y.
    drawing = render(chart([0.0, 0.25, 1.0], [10, 15, 30], percentages=True))
    assert points(drawing) == [(66.0, 250.0), (66 + 476 / 4, 250 - 232 / 4), (542.0, 18.0)]


def test_log_axis_is_linear_in_the_logarithm() -> None:
    scale = Scale(low=0.01, high=100.0, start=200.0, end=0.0, log=True)
    assert [scale(v) for v in (0.01, 0.1, 1.0, 10.0, 100.0)] == pytest.approx([200, 150, 100, 50, 0])
    _, y = scales(chart([2.0, 8.0], [0, 1], log=True))
    assert y.log and y(4.0) == pytest.approx((y(2.0) + y(8.0)) / 2)


def test_log_axis_falls_back_to_linear_at_zero() -> None:
    _, y = scales(chart([0.0, 8.0], [0, 1], log=True))
    assert not y.log and y(4.0) == pytest.approx((y(0.0) + y(8.0)) / 2)


def test_linear_axis_starts_at_zero_and_ends_at_a_tick() -> None:
    _, y = scales(chart([3.1, 9.3], [0, 1]))
    assert (y.low, y.high) == (0.0, 10.0)


@pytest.mark.parametrize("values", [[5.0], [0.0], [None], [math.nan]])
def test_degenerate_data_still_draws(values: list[float | None]) -> None:
    drawing = re.sub(r"<title>.*?</title>", "", render(chart(values, [3])), flags=re.DOTALL)
    assert "nan" not in drawing and ">3</text>" in drawing


def test_gaps_break_the_line() -> None:
    drawing = render(chart([1.0, None, math.inf, 2.0, 3.0], [0, 1, 2, 3, 4]))
    path = re.findall(r'<path d="([^"]*)"', drawing)[-1]
    assert re.sub(r"[\d. ]", "", path) == "MML"


def test_joined_lines_go_on_over_gaps() -> None:
    drawing = render(chart([1.0, None, 2.0, 3.0], [0, 1, 2, 3], joined=True))
    path = re.findall(r'<path d="([^"]*)"', drawing)[-1]
    assert path.count("M") == 1 and path.count("L") == 2


def test_positions_on_a_log_axis_are_linear_in_the_logarithm() -> None:
    pixels = [x for x, _ in points(render(chart([1.0, 2.0, 3.0], [4, 16, 256], log_x=True)))]
    # Two doublings of six, then four.
    assert pixels == pytest.approx([66.0, 66 + 476 / 3, 542.0], abs=0.01)


def test_ticks() -> None:
    assert linear_ticks(0.0, 1.0) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert linear_ticks(1.0, 8.0, 6) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert linear_ticks(-3.0, 9.0, 6) == [-2, 0, 2, 4, 6, 8]
    assert log_ticks(0.005, 20.0) == [0.01, 0.1, 1, 10]
    assert log_ticks(0.04, 0.6) == [0.05, 0.1, 0.2, 0.5]
    assert log_ticks(0.31, 0.42) == [0.32, 0.34, 0.36, 0.38, 0.4, 0.42]


def test_smoothing_is_a_centred_mean() -> None:
    assert smooth([3.0, 6.0, None, 9.0, math.nan], 3) == [4.5, 4.5, 7.5, 9.0, 9.0]
    assert smooth([None, None], 3) == [None, None]
    straight = [2.0 * n for n in range(9)]
    assert smooth(straight, 5)[2:-2] == pytest.approx(straight[2:-2])


def test_thinning_keeps_both_ends() -> None:
    assert thin(3, 8) == [0, 1, 2]
    chosen = thin(1001, 5)
    assert chosen == [0, 250, 500, 750, 1000]


def test_ramp_spans_the_family() -> None:
    assert [ramp(i, 3) for i in range(3)] == ["r0", "r3", "r6"]
    assert ramp(0, 1) == "r0"


def test_tooltips_name_every_series_and_cover_the_plot() -> None:
    drawing = render(chart([0.5, 0.25], [100, 200], percentages=True))
    assert re.findall(r"<title>(.*?)</title>", drawing, re.DOTALL) == [
        "step 100\nline: 50.0%",
        "step 200\nline: 25.0%",
    ]
    widths = [float(w) for w in re.findall(r'<rect class="hover" [^>]*width="([\d.]+)"', drawing)]
    assert sum(widths) == pytest.approx(476)


def test_axes_and_legend_are_labelled() -> None:
    drawing = render(chart([1.0, 10.0], [0, 1], log=True))
    assert ">step</text>" in drawing and ">loss (log scale)</text>" in drawing and "line</li>" in drawing
    assert 'role="img" aria-label="T: loss against step. line from 1 to 10."' in drawing


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="2 values, 3 positions"):
        chart([1.0, 2.0], [1, 2, 3])
    with pytest.raises(ValueError, match="must rise"):
        Scale(low=1.0, high=1.0, start=0.0, end=1.0)
