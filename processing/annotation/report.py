"""`syvla-look --report`: a dataset in one HTML file, without scripts and without anything from elsewhere."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import numpy as np

from .annotator import Annotator
from .boundaries import gripper_dimensions, speeds, value_ranges
from .episode_data import EpisodeData
from .episode_view import curve
from .model_pictures import ModelPictures
from .overview import Overview
from .pictures import to_jpeg

EPISODES = 12
"""Episodes that are shown: flagged ones first, then evenly spread ones."""
_FRAMES = 6  # pictures of each
_SIDE = 200
_MOST_ROWS = 100

_STYLE = """
:root { color-scheme: light dark; --on: #2b6cb0; --soft: #8882; --bad: #c53030; }
@media (prefers-color-scheme: dark) { :root { --on: #63b3ed; --bad: #fc8181; } }
body { font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 76rem; padding: 1rem 1.2rem 4rem; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2rem 0 .4rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; } ul { margin: .3rem 0; padding-left: 1.2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .88rem; }
td, th { padding: .15rem .8rem .15rem 0; text-align: right; border-bottom: 1px solid var(--soft); }
td.text, th.text { text-align: left; } .quiet { opacity: .7; } .bad { color: var(--bad); }
.strip { display: flex; gap: .4rem; flex-wrap: wrap; } .strip img { height: 7rem; border-radius: 3px; display: block; }
.strip.coarse img { image-rendering: pixelated; } figure { margin: 0; } figcaption { font-size: .75rem; opacity: .75; }
svg.wide { display: block; width: 100%; height: 3.4rem; background: var(--soft); border-radius: 4px; margin-top: .3rem; }
svg.hist { width: 6rem; height: 1.3rem; } svg rect { fill: var(--on); opacity: .75; }
svg path { fill: none; stroke: var(--on); stroke-width: 1.5; vector-effect: non-scaling-stroke; }
.line { display: flex; height: 1.7rem; margin-top: .3rem; border-radius: 4px; overflow: hidden; background: var(--soft); }
.line span { overflow: hidden; white-space: nowrap; text-overflow: ellipsis; font-size: .8rem; padding: .25rem .4rem;
  color: #111; border-left: 2px solid #0006; min-width: 0; box-sizing: border-box; }
"""


def report_page(annotator: Annotator, overview: Overview, model: ModelPictures | None = None) -> str:
    """The report.

    Args:
        annotator: The dataset's sub-tasks.
        overview: See `overview_of`.
        model: Shows the pictures as a checkpoint sees them; None: does not.
    """
    data = annotator.data
    annotated = sum(annotator.annotated())
    frames = int(data.metadata.lengths.sum())
    facts = (
        f"{data.num_episodes} episodes, {frames} frames at {data.fps:g} per second ({frames / data.fps / 60:.1f} minutes), "
        f"format {data.info.codebase_version}, robot {data.info.robot_type or 'not named'}; {annotated} episodes have thoughts"
    )
    parts = [
        f"<h1>{escape(data.name)}</h1><p>{escape(facts)}</p>",
        "<h2>Instructions</h2>",
        _table(["instruction", "episodes", "frames"], overview.tasks[:_MOST_ROWS]),
        *_cameras(data, overview, model),
        *_cleaning(overview),
        "<h2>Episodes unlike the others</h2>",
        _table(["episode", "what", "how"], [(str(o.episode), o.kind, o.detail) for o in overview.oddities[:_MOST_ROWS]]),
        "<h2>Copies</h2>",
        _list(f"{'the same' if same else 'nearly the same'}: {', '.join(map(str, group[:50]))}"
              for group, same in overview.copies[:_MOST_ROWS]),
        *_statistics(overview),
        "<h2>Episodes</h2>",
        *(_episode(annotator, overview, episode) for episode in _chosen(overview, data.num_episodes)),
    ]  # fmt: skip
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(data.name)}</title>'
        f"<style>{_STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )


def _cameras(data: EpisodeData, overview: Overview, model: ModelPictures | None) -> list[str]:
    parts = ["<h2>Cameras</h2>"]
    views = overview.views
    if isinstance(views, str):
        parts.append(f'<p class="bad">{escape(views)}</p>')
    figures = []
    for camera in data.cameras:
        shown = [view for view, key in views.items() if key == camera] if not isinstance(views, str) else []
        height, width = data.info.features[camera]["shape"][:2]
        name = f"{camera}, {height} x {width}: " + (f"view {shown[0]}" if shown else "no view shows it")
        figures.append(_figure(data, 0, 0, camera, name))
    parts.append(_strip(data, figures))
    if model is not None:
        made = []
        for view, camera in model.views.items():
            try:
                pictures = model(data.pictures.read(0, 0, camera))
            except ValueError as error:
                made.append(_caption(f"{view}: {error}"))
                continue
            for who, picture in pictures.items():
                size = f"{picture.shape[0]} x {picture.shape[1]}"
                made.append(_image(to_jpeg(picture, 640), f"{view}, as the {who} gets it: {size}"))
        parts += ["<h3>As the model gets them</h3>", f'<div class="strip coarse">{"".join(made)}</div>']
    return parts


def _cleaning(overview: Overview) -> list[str]:
    parts = ["<h2>What syvla-clean would remove</h2>"]
    if overview.problem is not None:
        parts.append(f'<p class="bad">{escape(overview.problem)}</p>')
    elif overview.cleaning is None:
        parts.append('<p class="quiet">not looked for</p>')
    else:
        totals = overview.cleaning["totals"]
        removed = totals["frames"] - totals["frames_kept"]
        whole = totals["episodes"] - totals["episodes_kept"]
        parts.append(f"<p>{removed} of {totals['frames']} frames, {whole} of {totals['episodes']} episodes whole.</p>")
        rows = [
            (name, one["episodes"], one["episodes_removed"], one["frames"], one["seconds"])
            for name, one in overview.cleaning["filters"].items()
            if one["episodes"]
        ]
        if rows:
            parts.append(_table(["filter", "episodes", "removed whole", "frames", "seconds"], rows))
            found = [finding for group in overview.findings.values() for finding in group]
            parts.append(
                _table(["episode", "filter", "why"], [(str(f.episode), f.filter, f.detail) for f in found[:_MOST_ROWS]])
            )
            if len(found) > _MOST_ROWS:
                parts.append(f"<p>and {len(found) - _MOST_ROWS} more</p>")
    return parts


def _statistics(overview: Overview) -> list[str]:
    parts = []
    names = ("min", "q01", "mean", "q99", "max", "std")
    for kind in ("state", "action"):
        rows = [
            (
                row["name"],
                *(_number(row.get(name)) for name in names),
                _Raw(_histogram(row.get("histogram"))),
                row["not_finite"],
            )
            for row in overview.statistics
            if row["kind"] == kind
        ]
        heads = ["dimension", "min", "1%", "mean", "99%", "max", "deviation", "distribution", "not finite"]
        parts += [f"<h2>Statistics of the {kind}</h2>", _table(heads, rows)]
    return parts


def _episode(annotator: Annotator, overview: Overview, episode: int) -> str:
    data = annotator.data
    length = data.length(episode)
    camera = data.cameras[0] if data.cameras else None
    frames = np.unique(np.linspace(0, length - 1, _FRAMES).round().astype(int)).tolist()
    figures = [] if camera is None else [_figure(data, episode, f, camera, f"{f / data.fps:.2f} s") for f in frames]
    ranges = value_ranges(data.dataset.states)
    speed = curve(speeds(data.states(episode), ranges, data.fps, gripper_dimensions(data.state_names)))
    remarks = "".join(f'<li class="bad">{escape(text)}</li>' for text in overview.remarks(episode))
    return (
        f"<h3>Episode {episode}: {escape(data.task(episode))}, {length / data.fps:.2f} s</h3>"
        f"<ul>{remarks}</ul>{_strip(data, figures)}{_timeline(annotator, episode)}"
        f'<svg class="wide" viewBox="0 0 1000 100" preserveAspectRatio="none" role="img"><title>speed</title>'
        f'<path d="{_path(speed, length)}"/></svg>'
    )


def _timeline(annotator: Annotator, episode: int) -> str:
    subtasks, length = annotator.subtasks(episode), annotator.data.length(episode)
    if not subtasks:
        return '<p class="quiet">no thoughts</p>'
    edges = [*(frame for frame, _ in subtasks), length]
    pieces: list[tuple[int, str | None]] = [(edges[0], None)] if edges[0] else []
    pieces += [(stop - start, text) for start, stop, (_, text) in zip(edges, edges[1:], subtasks, strict=False)]
    spans = "".join(
        f'<span style="flex:{frames} 1 0;background:{_color(text)}" title="{escape(text or "")}">{escape(text or "")}</span>'
        for frames, text in pieces
    )
    return f'<div class="line">{spans}</div>'


def _chosen(overview: Overview, episodes: int) -> list[int]:
    flagged = sorted(overview.flagged())[: EPISODES - 4]
    even = np.linspace(0, episodes - 1, min(episodes, EPISODES - len(flagged))).round().astype(int).tolist()
    return list(dict.fromkeys([*flagged, *even]))


def _figure(data: EpisodeData, episode: int, frame: int, camera: str, caption: str) -> str:
    try:
        return _image(data.pictures.jpeg(episode, frame, camera, _SIDE), caption)
    except ValueError as error:
        return _caption(f"{caption}: {error}")


def _image(jpeg: bytes, caption: str) -> str:
    text = base64.b64encode(jpeg).decode()
    return (
        f'<figure><img alt="" src="data:image/jpeg;base64,{text}"><figcaption>{escape(caption)}</figcaption></figure>'
    )


def _caption(text: str) -> str:
    return f'<figure><figcaption class="bad">{escape(text)}</figcaption></figure>'


def _strip(data: EpisodeData, figures: Sequence[str]) -> str:
    coarse = any(min(data.info.features[camera]["shape"][:2]) < 100 for camera in data.cameras)
    return f'<div class="strip{" coarse" if coarse else ""}">{"".join(figures)}</div>'


class _Raw(str):
    """HTML of our own, not to be escaped."""


def _table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    if not rows:
        return '<p class="quiet">none</p>'
    sides = [' class="text"' if type(cell) is str else "" for cell in rows[0]]
    lines = [[f"<th{side}>{escape(head)}</th>" for head, side in zip(heads, sides, strict=True)]]
    for row in rows:
        cells = [cell if isinstance(cell, _Raw) else escape(str(cell)) for cell in row]
        lines.append([f"<td{side}>{cell}</td>" for cell, side in zip(cells, sides, strict=True)])
    return "<table>" + "".join(f"<tr>{''.join(line)}</tr>" for line in lines) + "</table>"


class _Number(str):
    """A number as text, to stand on the right."""


def _number(value: float | None) -> _Number:
    return _Number("–" if value is None else f"{value:.4g}")


def _list(lines: Iterable[str]) -> str:
    found = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<ul>{found}</ul>" if found else '<p class="quiet">none</p>'


def _histogram(counts: Sequence[int] | None) -> str:
    if not counts:
        return "–"
    most = max(counts)
    bars = "".join(
        f'<rect x="{i}" width=".9" y="{100 - 100 * n / most:.1f}" height="{100 * n / most:.1f}"/>'
        for i, n in enumerate(counts)
    )
    return f'<svg class="hist" viewBox="0 0 {len(counts)} 100" preserveAspectRatio="none">{bars}</svg>'


def _path(shown: dict[str, list[Any]], length: int) -> str:
    known = [value for value in shown["y"] if value is not None]
    low, high = (min(known), max(known)) if known else (0.0, 0.0)
    room = (high - low) or 1.0
    points = [
        f"{1000 * (x + 0.5) / length:.1f} {94 - 88 * (y - low) / room:.1f}"
        for x, y in zip(shown["x"], shown["y"], strict=True)
        if y is not None
    ]
    return "M" + "L".join(points) if points else ""


def _color(text: str | None) -> str:
    return "transparent" if text is None else f"hsl({zlib.crc32(text.encode()) % 360} 65% 75%)"
