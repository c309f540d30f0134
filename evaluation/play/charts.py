"""What the page draws: the chunk per joint, decoupling over steps, and attention, as HTML with SVG inside."""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np

from .introspection import Decoupling, ExpertAttention

_WIDTH, _HEIGHT = 200, 44  # of a joint's plot, in its own units
SHOWN_STEPS = 40
"""Steps that ran and are still drawn."""

STYLE = """
.syvla-joints { display: grid; grid-template-columns: repeat(auto-fill, minmax(12rem, 1fr)); gap: .35rem .9rem; }
.syvla-joints div { font-size: .78rem; font-variant-numeric: tabular-nums; display: flex; justify-content: space-between; }
.syvla-joints svg { width: 100%; height: 2.9rem; background: #8881; border-radius: 4px; display: block; }
.syvla-ran { stroke: #2b6cb0; stroke-width: 2; fill: none; }
.syvla-next { stroke: #d97706; stroke-width: 2; fill: none; stroke-dasharray: 4 3; }
.syvla-legend { font-size: .82rem; opacity: .85; margin: .3rem 0; }
.syvla-heat { border-collapse: separate; border-spacing: 2px; font-size: .78rem; }
.syvla-heat td { width: 1.5rem; height: 1.15rem; text-align: center; border-radius: 3px; padding: 0; line-height: 1.15rem; }
.syvla-heat th { font-weight: normal; opacity: .8; text-align: right; padding-right: .4rem; white-space: nowrap; }
.syvla-bars { display: grid; grid-template-columns: 9rem 1fr 3.2rem; gap: .2rem .6rem; font-size: .85rem; align-items: center; }
.syvla-bars i { display: block; height: .8rem; background: #2b6cb0; border-radius: 3px; min-width: 1px; }
.syvla-heat, .syvla-heat th, .syvla-heat td { border: 0 !important; }
.syvla-scroll { overflow-x: auto; }
"""


def joint_plots(names: Sequence[str], trace: np.ndarray, chunk: np.ndarray, executed: int) -> str:
    """One small plot for each action dimension: what ran, and the chunk's steps to come.

    Args:
        names: D names.
        trace: (K, D) that ran; the last `SHOWN_STEPS` are drawn.
        chunk: (T, D), whose first `executed` steps stand at the end of `trace`.
        executed: See `chunk`.
    """
    if not len(chunk):
        return _hint("The chunk appears here as soon as the policy has answered.")
    trace, coming = trace[-SHOWN_STEPS:], chunk[executed:]
    plots = []
    for index, name in enumerate(names):
        ran = trace[:, index] if len(trace) else np.zeros(0)
        value = ran[-1] if len(ran) else chunk[0, index]
        unit = "m" if name.endswith("gripper") else "rad"
        label = f"<div><span>{html.escape(name.replace('_', ' '))}</span><span>{value:.3f} {unit}</span></div>"
        plots.append(f"<section>{label}{_plot(ran, coming[:, index])}</section>")
    legend = '<p class="syvla-legend">solid: executed; dashed: the chunk to come</p>'
    return f'<div class="syvla-joints">{"".join(plots)}</div>{legend}'


def decoupling_map(chunks: Sequence[Decoupling]) -> str:
    """Heat map: one row for each query state, one column for each chunk; a cross where training would zero the state."""
    if not chunks:
        return _hint("One column appears for each chunk.")
    norms = np.array([chunk.norms for chunk in chunks])  # (chunks, N)
    shares = norms / np.maximum(norms.max(1, keepdims=True), 1e-12)
    rows = []
    for query in range(norms.shape[1]):
        cells = []
        for step, chunk in enumerate(chunks):
            title = f"chunk {step + 1}, query {query + 1}: gradient norm {norms[step, query]:.3g}"
            mark = "" if chunk.kept[query] else "×"
            color = f"rgb(43 108 176 / {0.06 + 0.94 * shares[step, query]:.2f})"
            cells.append(f'<td style="background:{color}" title="{title}">{mark}</td>')
        rows.append(f"<tr><th>query {query + 1}</th>{''.join(cells)}</tr>")
    legend = "columns: chunks; darker: the action depends more on this state; ×: training would mask it"
    table = f'<div class="syvla-scroll"><table class="syvla-heat">{"".join(rows)}</table></div>'
    return f'{table}<p class="syvla-legend">{legend}</p>'


def attention_bars(attention: ExpertAttention | None) -> str:
    """Shares of the action tokens' attention: self-attention by source, cross-attention by query state."""
    if attention is None:
        return _hint("Appears with the first chunk.")
    sources = {f"view {view.replace('_', ' ')}": share for view, share in attention.views.items()}
    own = {**sources, "state": attention.state, "actions and time": attention.chunk}
    queries = {f"query {index + 1}": share for index, share in enumerate(attention.queries)}
    parts = []
    for title, shares in (("self-attention of the chunk", own), ("cross-attention to the query states", queries)):
        bars = "".join(
            f'<span>{name}</span><span><i style="width:{100 * share:.1f}%"></i></span><span>{100 * share:.1f}%</span>'
            for name, share in shares.items()
        )
        parts.append(f'<p class="syvla-legend">{title}</p><div class="syvla-bars">{bars}</div>')
    return "".join(parts)


def _plot(ran: np.ndarray, coming: np.ndarray) -> str:
    values = np.concatenate([ran, coming])
    bottom, top = values.min(), values.max()
    room = max(0.08 * (top - bottom), 0.005)
    bottom, top = bottom - room, top + room

    def path(points: np.ndarray, first: int) -> str:
        x = _WIDTH * (first + np.arange(len(points))) / max(1, len(values) - 1)
        y = _HEIGHT * (top - points) / (top - bottom)
        return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))

    joined, start = (np.concatenate([ran[-1:], coming]), len(ran) - 1) if len(ran) else (coming, 0)
    lines = f'<polyline class="syvla-next" points="{path(joined, start)}"/>' if len(coming) else ""
    if len(ran):
        lines += f'<polyline class="syvla-ran" points="{path(ran, 0)}"/>'
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none" role="img">{lines}</svg>'


def _hint(text: str) -> str:
    return f'<p class="syvla-legend">{text}</p>'
