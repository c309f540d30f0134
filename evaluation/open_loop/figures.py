"""Pictures of an open-loop comparison, as PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from .errors import ChunkErrors
from .evaluation import OpenLoopResult

POLICY, RECORDED, GRAY = "#1f77b4", "#111111", "#8a929c"
COLORS = {
    "policy": POLICY,
    "hold": "#d08c1d",
    "mean": "#8a929c",
    "nearest_state": "#2b9e5f",
    "nearest_images": "#9b59b6",
}
LABELS = {
    "policy": "policy",
    "hold": "hold position",
    "mean": "mean action",
    "nearest_state": "nearest by state",
    "nearest_images": "nearest by state and images",
}
_THOUGHT_COLORS = ("#cfe3f7", "#fbe2c4", "#d6efdc", "#eadcf3", "#f7d4d6", "#e4e4e4")


def steps_png(result: OpenLoopResult, control_hz: float | None) -> bytes:
    """Score by step of the chunk, of the policy and every baseline that predicts all dimensions."""
    figure = _figure(9, 3)
    axes = figure.add_subplot(xlabel="step of the chunk", ylabel="error [std of recorded actions]")
    every = np.ones(len(result.dimensions.names), dtype=bool)
    for name, errors in result.errors.items():
        values = _by_step(errors, result, every)
        if not np.isnan(values).all():
            style = {"linewidth": 2.2} if name == "policy" else {"linewidth": 1.3, "linestyle": "--"}
            axes.plot(np.arange(len(values)), values, color=COLORS[name], label=LABELS[name], **style)
    if control_hz:
        above = axes.secondary_xaxis("top", functions=(lambda k: k / control_hz, lambda s: s * control_hz))
        above.set_xlabel("seconds ahead")
    axes.set_ylim(0, 1.25 * axes.get_ylim()[1])  # room for the legend
    axes.legend(frameon=False, fontsize=8, ncols=5, loc="upper center")
    axes.grid(alpha=0.25)
    return _png(figure)


def episode_png(result: OpenLoopResult, dataset: Any, episode: int, control_hz: float | None) -> bytes:
    """Every dimension over an episode, with the predicted chunks where they start; above, what it thinks when."""
    position = list(dataset.episodes).index(episode)
    start, length = int(dataset.episode_starts[position]), int(dataset.episode_lengths[position])
    recorded = dataset.actions[start : start + length]
    rows = np.flatnonzero(result.moments.episodes == episode)
    count = len(result.dimensions.names)
    columns = 2 if count > 4 else 1
    lines = -(-count // columns)
    timelines = _timelines(result, dataset, rows, start, length)
    heights = [0.34] * len(timelines) + [1.25] * lines
    figure = _figure(11, 0.5 + sum(heights) * 1.08)
    grid = figure.add_gridspec(len(heights), columns, height_ratios=heights)
    seconds = 1.0 if not control_hz else 1 / control_hz
    for line, (label, spans) in enumerate(timelines):
        _draw_timeline(figure.add_subplot(grid[line, :]), label, spans, length, seconds)
    for dimension in range(count):
        axes = figure.add_subplot(grid[len(timelines) + dimension // columns, dimension % columns])
        _draw_dimension(axes, result, rows, recorded, dimension, seconds)
        if dimension >= count - columns:
            axes.set_xlabel("seconds" if control_hz else "frame", fontsize=8)
    return _png(figure)


def moment_png(result: OpenLoopResult, dataset: Any, row: int, most: int = 4) -> bytes:
    """The views of a moment, beside predicted and recorded chunks of the dimensions with the largest errors."""
    images = dataset.read_images(int(result.moments.indices[row]))
    moving = np.flatnonzero(result.scale.moving)
    error = np.nanmean(result.errors["policy"].absolute[row], axis=0) / result.scale.spread
    worst = moving[np.argsort(-error[moving], kind="stable")][:most]
    figure = _figure(10, 3.4)
    grid = figure.add_gridspec(2, len(images) + 2, width_ratios=[1.1] * len(images) + [1.5, 1.5])
    for column, (view, image) in enumerate(images.items()):
        axes = figure.add_subplot(grid[:, column])
        axes.imshow(image, interpolation="nearest")
        axes.set_title(view, fontsize=8)
        axes.set_axis_off()
    real = result.moments.real[row]
    steps = np.arange(len(real))
    for place, dimension in enumerate(worst):
        axes = figure.add_subplot(grid[place // 2, len(images) + place % 2])
        for draw in result.predictions.actions[:, row, :, dimension]:
            axes.plot(steps, draw, color=POLICY, alpha=0.6, linewidth=1)
        axes.plot(steps[real], result.moments.actions[row, real, dimension], color=RECORDED, linewidth=1.6)
        axes.set_title(result.dimensions.label(int(dimension)), fontsize=8)
        _plain(axes)
    return _png(figure)


def _draw_dimension(
    axes: Any, result: OpenLoopResult, rows: np.ndarray, recorded: np.ndarray, dimension: int, seconds: float
) -> None:
    axes.plot(np.arange(len(recorded)) * seconds, recorded[:, dimension], color=RECORDED, linewidth=1.5, zorder=3)
    for row in rows:
        real = result.moments.real[row]
        draws = result.predictions.actions[:, row, real, dimension]  # (K, steps)
        times = (result.moments.frames[row] + np.arange(int(real.sum()))) * seconds
        axes.plot(times, draws.mean(0), color=POLICY, linewidth=1.1, alpha=0.9)
        axes.plot(times[:1], draws.mean(0)[:1], ".", color=POLICY, markersize=4)
        if len(draws) > 1:
            axes.fill_between(times, draws.min(0), draws.max(0), color=POLICY, alpha=0.18, linewidth=0)
    error = float(np.nanmean(result.errors["policy"].absolute[rows][..., dimension]))
    axes.set_title(f"{result.dimensions.label(dimension)}   mean error here {error:.3g}", fontsize=8, loc="left")
    spread = float(result.scale.spread[dimension]) if result.scale.moving[dimension] else 0.0
    low, high = axes.get_ylim()
    if high - low < spread:  # a still dimension must not look wild
        middle = (low + high) / 2
        axes.set_ylim(middle - spread / 2, middle + spread / 2)
    _plain(axes)


def _timelines(
    result: OpenLoopResult, dataset: Any, rows: np.ndarray, start: int, length: int
) -> list[tuple[str, list[tuple[int, int, str]]]]:
    """Recorded and predicted thoughts as (label, [(first frame, frame after, text)]), where there are any."""
    lines = []
    recorded = [dataset.thought_at(start + frame) for frame in range(length)]
    if any(recorded):
        lines.append(("recorded thought", _spans(recorded, range(length), length)))
    if result.predictions.thoughts is not None:
        said = [result.predictions.thoughts[row] for row in rows]
        lines.append(("predicted thought", _spans(said, [int(result.moments.frames[row]) for row in rows], length)))
    return lines


def _spans(texts: Sequence[str | None], begins: Sequence[int], end: int) -> list[tuple[int, int, str]]:
    """Stretches of the same text; no text makes no stretch."""
    spans: list[tuple[int, int, str]] = []
    for text, begin, until in zip(texts, begins, [*begins[1:], end], strict=True):
        if spans and spans[-1][1] == begin and spans[-1][2] == text:
            spans[-1] = (spans[-1][0], until, spans[-1][2])
        elif text:
            spans.append((begin, until, text))
    return spans


def _draw_timeline(axes: Any, label: str, spans: list[tuple[int, int, str]], length: int, seconds: float) -> None:
    colors: dict[str, str] = {}
    for begin, until, text in spans:
        color = colors.setdefault(text, _THOUGHT_COLORS[len(colors) % len(_THOUGHT_COLORS)])
        axes.axvspan(begin * seconds, until * seconds, color=color, linewidth=0)
        room = max(3, round(130 * (until - begin) / length))  # characters that fit
        shown = text if len(text) <= room else text[: room - 1] + "…"
        axes.text((begin + until) / 2 * seconds, 0.5, shown, ha="center", va="center", fontsize=7, clip_on=True)
    axes.set_xlim(0, length * seconds)
    axes.set_ylim(0, 1)
    axes.set_yticks([])
    axes.set_xticks([])
    axes.set_title(label, fontsize=8, loc="left", pad=2)


def _by_step(errors: ChunkErrors, result: OpenLoopResult, every: np.ndarray) -> np.ndarray:
    steps = errors.by_step()[:, result.scale.moving & every] / result.scale.spread[result.scale.moving & every]
    return np.asarray(steps.mean(1))


def _plain(axes: Any) -> None:
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
