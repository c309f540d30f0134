"""The report of an open-loop comparison as one HTML file with all its pictures inside."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .evaluation import OpenLoopResult
from .figures import COLORS, LABELS, episode_png, moment_png, steps_png

_STYLE = """
:root { color-scheme: light dark; --ink: light-dark(#1c1f24, #e8e8e8); --paper: light-dark(#fff, #17191d);
  --muted: light-dark(#5d6570, #9aa3ad); --line: light-dark(#dde1e6, #333941); }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 68rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; } h2 { font-size: 1.2rem; margin-top: 2.4rem; }
.muted, figcaption { color: var(--muted); }
.verdict { border-left: .4rem solid var(--edge); padding: .7rem 1rem; background: var(--line); border-radius: 4px;
  font-size: 1.1rem; } .verdict b { text-transform: uppercase; letter-spacing: .04em; font-size: .85rem; display: block; }
.bars { display: grid; grid-template-columns: 15rem 1fr 26rem; gap: .35rem .9rem; align-items: center; }
.bar { height: 1rem; background: var(--line); border-radius: 3px; } .bar i { display: block; height: 100%;
  border-radius: 3px; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .9rem .2rem 0; text-align: right; } td { white-space: nowrap; } th { font-weight: 600;
  vertical-align: bottom; max-width: 7rem; line-height: 1.2; }
th:first-child, td:first-child { text-align: left; } tr + tr td { border-top: 1px solid var(--line); }
img { width: 100%; background: #fff; border-radius: 4px; } figure { margin: 0 0 1.6rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.2rem; } dt { color: var(--muted); } dd { margin: 0; }
@media (max-width: 50rem) { .bars { grid-template-columns: 1fr; } }
"""
_EDGES = {"learned": "#2b9e5f", "partly": "#d08c1d", "not learned": "#c0392b", "unclear": "#8a929c"}


def write_page(
    path: Path,
    result: OpenLoopResult,
    dataset: Any,
    *,
    title: str,
    facts: Mapping[str, str],
    control_hz: float | None = None,
    plots: int = 3,
    worst: int = 6,
) -> None:
    """Writes the page.

    Args:
        path: The file.
        result: What to show.
        dataset: `RobotDataset` of the held-out episodes.
        title: Heading.
        facts: Label to text, listed at the end.
        control_hz: Steps per second; None: not known, and times are frames.
        plots: Episodes to draw: the best, the worst, and those between them in even distance.
        worst: Moments to show.
    """
    verdict = result.verdict
    sections = [
        f"<h1>{html.escape(title)}</h1>",
        f'<p class=verdict style="--edge:{_EDGES[verdict.outcome]}"><b>{verdict.outcome}</b>'
        f"{html.escape(verdict.sentence)}</p>",
        "<p class=muted>Open loop: at each moment the recorded observation goes in, whatever was predicted before. A small "
        "error here is needed for success on the robot, and does not promise it.</p>",
        _bars(result),
        "<h2>By dimension</h2>" + _dimension_table(result),
        "<h2>By step of the chunk</h2>" + _picture(steps_png(result, control_hz), "Error by step of the chunk"),
        *_episodes(result, dataset, control_hz, plots),
        *_moments(result, dataset, worst),
        "<h2>This run</h2><dl>"
        + "".join(f"<dt>{html.escape(key)}<dd>{html.escape(value)}" for key, value in facts.items())
        + "</dl>",
    ]
    head = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style>"
    )
    path.write_text(head + "\n".join(sections) + "</html>\n", encoding="utf-8")


def _bars(result: OpenLoopResult) -> str:
    """The policy's score and each baseline's, and how they compare."""
    own = float(np.nanmean(result.errors["policy"].scores(result.scale, result.scale.moving)))
    largest = max([own, *(one.baseline_score for one in result.comparisons)]) or 1.0
    rows = [_bar("policy", own, largest, "a single draw, mean over draws")]
    for one in result.comparisons:
        text = f"policy better in {one.better_episodes} of {one.episodes} episodes"
        if one.interval is not None:
            low, high = one.interval
            text += f"; policy minus this: [{low:+.3f}, {high:+.3f}]"
        if one.dimensions < int(result.scale.moving.sum()):
            text += f"; on the {one.dimensions} shared dimensions (policy: {one.policy_score:.3f})"
        rows.append(_bar(one.baseline, one.baseline_score, largest, text))
    return (
        "<h2>Against predictions that need no learning</h2><p class=muted>Mean absolute error in standard deviations of the "
        "training episodes' actions; less is better. Intervals: 95%, over episodes.</p>"
        f"<div class=bars>{''.join(rows)}</div>"
    )


def _bar(name: str, score: float, largest: float, text: str) -> str:
    return (
        f"<span>{LABELS[name]}</span><div class=bar>"
        f'<i style="width:{100 * score / largest:.1f}%;background:{COLORS[name]}"></i>'
        f"</div><span><b>{score:.3f}</b> <span class=muted>{html.escape(text)}</span></span>"
    )


def _dimension_table(result: OpenLoopResult) -> str:
    names = list(result.errors)
    heads = ["dimension", "recorded std", *(LABELS[name] for name in names), "spread of draws", "policy / std"]
    rows = []
    spread = None if result.spread is None else np.sqrt(np.nanmean(np.square(result.spread), axis=0))
    errors = {name: result.errors[name].by_dimension() for name in names}
    for i in range(len(result.dimensions.names)):
        std = float(result.scale.spread[i])
        share = f"{errors['policy'][i] / std:.2f}" if result.scale.moving[i] else "constant, not counted"
        cells = [
            html.escape(result.dimensions.label(i)),
            f"{std:.3g}" if result.scale.moving[i] else "0",
            *(_number(errors[name][i]) for name in names),
            "" if spread is None else _number(spread[i]),
            share,
        ]
        rows.append("<tr>" + "".join(f"<td>{cell}" for cell in cells))
    head = "".join(f"<th>{html.escape(text)}" for text in heads)
    return (
        "<p class=muted>Mean absolute errors in the dimension's own unit.</p>"
        f"<div class=scroll><table><tr>{head}{''.join(rows)}</table></div>"
    )


def _number(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.3g}"


def _episodes(result: OpenLoopResult, dataset: Any, control_hz: float | None, plots: int) -> list[str]:
    episodes = np.unique(result.moments.episodes)
    scores = np.array([result.scores[result.moments.episodes == episode].mean() for episode in episodes])
    order = np.argsort(scores, kind="stable")
    if not plots:
        return []
    places = np.unique(np.linspace(0, len(order) - 1, min(plots, len(order))).round().astype(int))
    parts = [
        "<h2>Episodes</h2><p class=muted>Black: recorded. Blue: each predicted chunk from the moment it was asked for, mean "
        "and range over draws. Episodes are ordered from the smallest error to the largest.</p>"
    ]
    for place in places:
        episode, score = int(episodes[order[place]]), float(scores[order[place]])
        first = dataset.episode_starts[list(dataset.episodes).index(episode)]
        task = dataset.tasks[dataset.task_indices[first]]
        caption = f"Episode {episode}, error {score:.3f} (place {place + 1} of {len(order)}): {task}"
        parts.append(_figure(episode_png(result, dataset, episode, control_hz), caption))
    return parts


def _moments(result: OpenLoopResult, dataset: Any, count: int) -> list[str]:
    rows = result.worst(count, apart=max(1, result.moments.actions.shape[1] // 2)) if count else []
    if not rows:
        return []
    parts = [
        "<h2>Worst moments</h2><p class=muted>What the policy saw, and the dimensions in which it is furthest off: recorded in "
        "black, its draws in blue.</p>"
    ]
    for row in rows:
        index = int(result.moments.indices[row])
        caption = (
            f"Episode {result.moments.episodes[row]}, frame {result.moments.frames[row]}, error {result.scores[row]:.2f}: "
            f"{dataset.tasks[dataset.task_indices[index]]}"
        )
        recorded = dataset.thought_at(index)
        caption += f" · recorded thought: {recorded}" if recorded else ""
        if result.predictions.thoughts is not None:
            caption += f" · predicted thought: {result.predictions.thoughts[row] or '(empty)'}"
        parts.append(_figure(moment_png(result, dataset, row), caption))
    return parts


def _figure(png: bytes, caption: str) -> str:
    return f"<figure><figcaption>{html.escape(caption)}</figcaption>{_picture(png, caption)}</figure>"


def _picture(png: bytes, text: str) -> str:
    content = base64.b64encode(png).decode()
    return f'<img src="data:image/png;base64,{content}" alt="{html.escape(text, quote=True)}">'
