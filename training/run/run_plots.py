"""Line plots of a run as inline SVG, which no browser needs a script or a library for."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 360, 190
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 10, 24

MOST_POINTS = 300
"""Points of a line; more are put together, each the mean of a stretch of the run."""

COLORS = 8
"""Colors that the page's style has, as classes c0 to c7."""

_LOGARITHMIC_FROM = 30.0  # ratio of the largest to the smallest value


def line_plot(title: str, series: Mapping[str, Points], dashed: Sequence[str] = ()) -> str:
    """A figure with one line per series. A scale is logarithmic where positive values differ by much.

    Args:
        title: Heading; foreign text is escaped.
        series: Points (step, value) by name, in the order of their steps. Values that are not finite are left out.
        dashed: Names of series that are drawn dashed, with their points marked: few measurements.

    Returns:
        HTML; empty where no series has a point.
    """
    lines = {name: thinned([(x, y) for x, y in points if math.isfinite(y)]) for name, points in series.items()}
    lines = {name: points for name, points in lines.items() if points}
    if not lines:
        return ""
    xs = [x for points in lines.values() for x, _ in points]
    ys = [y for points in lines.values() for _, y in points]
    logarithmic = min(ys) > 0 and max(ys) / min(ys) > _LOGARITHMIC_FROM
    y_ticks = _logarithmic_ticks(min(ys), max(ys)) if logarithmic else _ticks(min(ys), max(ys), 5)
    low, high = min(y_ticks[0], min(ys)), max(y_ticks[-1], max(ys))
    begin, end = min(xs), max(max(xs), min(xs) + 1)

    def place_x(x: float) -> float:
        return LEFT + (x - begin) / (end - begin) * (WIDTH - LEFT - RIGHT)

    def place_y(y: float) -> float:
        a, b, c = (math.log(value) for value in (low, high, y)) if logarithmic else (low, high, y)
        return HEIGHT - BOTTOM - (c - a) / ((b - a) or 1.0) * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<line class=grid x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{place_y(y):.1f}" y2="{place_y(y):.1f}"/>'
        f'<text class=tick x="{LEFT - 5}" y="{place_y(y) + 3.5:.1f}" text-anchor=end>{short(y)}</text>'
        for y in y_ticks
    ]
    parts += [
        f'<text class=tick x="{place_x(x):.1f}" y="{HEIGHT - 7}" text-anchor="{anchor}">{short(x)}</text>'
        for x, anchor in ((begin, "start"), ((begin + end) / 2, "middle"), (end, "end"))
        if float(x).is_integer()
    ]
    for number, (name, points) in enumerate(lines.items()):
        color, few = f"c{number % COLORS}", name in dashed
        path = " ".join(f"{place_x(x):.1f},{place_y(y):.1f}" for x, y in points)
        parts.append(f'<polyline class="{color}{" dashed" if few else ""}" points="{path}"/>')
        if few or len(points) == 1:
            parts += [
                f'<circle class="{color}" cx="{place_x(x):.1f}" cy="{place_y(y):.1f}" r="2.6"/>' for x, y in points
            ]
    data = json.dumps({name: [[x, y, place_x(x)] for x, y in points] for name, points in lines.items()})
    legend = "".join(
        f'<li><i class="c{number % COLORS}"></i>{html.escape(name)} <b>{short(points[-1][1])}</b></li>'
        for number, (name, points) in enumerate(lines.items())
    )
    scale = " <small>logarithmic</small>" if logarithmic else ""
    return (
        f"<figure><figcaption>{html.escape(title)}{scale}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role=img aria-label="{html.escape(title)}" '
        f'data-lines="{html.escape(data)}">{"".join(parts)}<line class=mark y1="{TOP}" y2="{HEIGHT - BOTTOM}"/></svg>'
        f"<ul class=legend>{legend}</ul></figure>"
    )


def thinned(points: Sequence[tuple[float, float]], most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """At most `most` points: means over stretches of equal numbers of points, at their last step."""
    if len(points) <= most:
        return list(points)
    edges = [round(i * len(points) / most) for i in range(most + 1)]
    return [(points[b - 1][0], sum(y for _, y in points[a:b]) / (b - a)) for a, b in pairwise(edges)]


def short(value: float) -> str:
    """A number in at most six or so characters, as on an axis."""
    if not math.isfinite(value):
        return str(value)
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    text = f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
    return text


def _ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers that cover a range."""
    if low == high:
        low, high = (low - 0.5, high + 0.5) if not low else (low - abs(low) / 10, high + abs(high) / 10)
    raw = (high - low) / (count - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first = math.floor(low / step)
    last = math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def _logarithmic_ticks(low: float, high: float) -> list[float]:
    """Powers of ten that cover a range; every second or third of them where there are many."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    stride = max(1, -(-(last - first) // 6))
    last = first + -(-(last - first) // stride) * stride
    return [10.0**power for power in range(first, last + 1, stride)]
