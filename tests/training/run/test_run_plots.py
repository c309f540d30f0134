"""Plots show the numbers they are given: places, ticks, thinning and escaping."""

import math
import re

import pytest

from syvla.training.run import run_plots
from syvla.training.run.run_plots import line_plot, short, thinned


def polylines(text):
    return [
        [tuple(map(float, point.split(","))) for point in path.split()]
        for path in re.findall(r'<polyline class="[^"]*" points="([^"]*)"', text)
    ]


def test_points_lie_where_the_axis_says():
    """Values 0 to 10 over steps 0 to 100: ticks are the range, so the ends lie on the frame."""
    (line,) = polylines(line_plot("Loss", {"loss": [(0, 0.0), (50, 5.0), (100, 10.0)]}))
    left, right = run_plots.LEFT, run_plots.WIDTH - run_plots.RIGHT
    top, bottom = run_plots.TOP, run_plots.HEIGHT - run_plots.BOTTOM
    expected = [(left, bottom), ((left + right) / 2, (top + bottom) / 2), (right, top)]
    for found, place in zip(line, expected, strict=True):
        assert found == pytest.approx(place, abs=0.06)


def test_large_ratios_are_drawn_logarithmically():
    text = line_plot("Loss", {"loss": [(0, 1.0), (1, 10.0), (2, 100.0)]})
    assert "logarithmic" in text
    heights = [y for _, y in polylines(text)[0]]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=0.11)
    assert "logarithmic" not in line_plot("Loss", {"loss": [(0, 0.0), (1, 100.0)]})


@pytest.mark.parametrize("values", [[3.0], [0.0, 0.0], [-2.0, -2.0], [1e-30, 1e30], [1e9, 1e9 + 1], [0.05] * 3])
def test_any_range_stays_inside_the_figure(values):
    text = line_plot("Odd", {"a": list(enumerate(values))})
    for path in polylines(text):
        for x, y in path:
            assert run_plots.LEFT - 0.1 <= x <= run_plots.WIDTH - run_plots.RIGHT + 0.1
            assert run_plots.TOP - 0.1 <= y <= run_plots.HEIGHT - run_plots.BOTTOM + 0.1
    assert len(re.findall("class=grid", text)) <= 12


def test_values_that_are_not_finite_are_left_out():
    text = line_plot("Loss", {"loss": [(0, 1.0), (1, math.nan), (2, math.inf), (3, 2.0)]})
    assert len(polylines(text)[0]) == 2
    assert "nan" not in text.lower()
    assert line_plot("Loss", {"loss": [(0, math.nan)]}) == ""


def test_a_long_line_is_thinned_to_means_that_keep_the_end():
    points = [(step, float(step)) for step in range(10_000)]
    few = thinned(points, 100)
    assert len(few) == 100
    assert few[-1][0] == 9_999
    assert sum(y for _, y in few) / 100 == pytest.approx(sum(y for _, y in points) / 10_000)
    assert thinned(points[:100], 100) == points[:100]


def test_foreign_names_are_text():
    text = line_plot('<script>alert("1")</script>', {'"><img src=x onerror=alert(1)>': [(0, 1.0), (1, 2.0)]})
    assert "<script" not in text
    assert "<img" not in text
    assert "onerror=alert(1)>" not in text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.25, "0.25"), (1234.5, "1234"), (3e-5, "3e-5"), (123456, "1.23e5"), (1, "1")]
)
def test_numbers_are_short(value, text):
    assert short(value) == text
