"""A self-contained HTML page about one run: success rates, loss curve, recordings, how to load the result."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .episode_records import EpisodeRecord
from .success_rate import SuccessRate

STYLE = """
:root { color-scheme: light dark; --ink: light-dark(#1c1f24, #e8e8e8); --paper: light-dark(#fff, #17191d);
  --muted: light-dark(#5d6570, #9aa3ad); --line: light-dark(#dde1e6, #333941); --good: #2b9e5f; --weak: #9aa3ad; }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 60rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
p.lead, figcaption, .muted { color: var(--muted); }
.rate { display: grid; grid-template-columns: 9rem 1fr 15rem; gap: .8rem; align-items: center; margin: .5rem 0; }
.bar { position: relative; height: 1.1rem; background: var(--line); border-radius: 3px; }
.bar i { position: absolute; inset: 0 auto 0 0; border-radius: 3px; background: var(--good); }
.bar b { position: absolute; top: .45rem; height: .2rem; background: var(--ink); opacity: .75; }
.episodes { display: grid; grid-template-columns: repeat(auto-fill, minmax(24rem, 1fr)); gap: 1.2rem; }
figure { margin: 0; } video, img { width: 100%; border-radius: 4px; } details img { margin-top: .4rem; }
pre { background: var(--line); padding: .8rem 1rem; border-radius: 4px; overflow-x: auto; }
table { border-collapse: collapse; } td { padding: .15rem 1.2rem .15rem 0; vertical-align: top; }
@media (max-width: 40rem) { .rate, .episodes { grid-template-columns: 1fr; gap: .1rem; } }
"""


@dataclass
class ReportPage:
    """What the page shows.

    Attributes:
        title: Heading.
        lead: One or two sentences below it.
        rates: Label to success rate, in order; the bars.
        loss_history: Trainer log entries; those with "step" and a loss are drawn.
        recordings: Episodes with their video files, in order.
        code: How to load the result.
        facts: Label to text, listed at the end.
    """

    title: str
    lead: str
    rates: Mapping[str, SuccessRate] = field(default_factory=dict)
    loss_history: Sequence[Mapping[str, Any]] = ()
    recordings: Sequence[tuple[EpisodeRecord, Path]] = ()
    code: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Writes the page with all pictures and videos inside it."""
        sections = [f"<h1>{html.escape(self.title)}</h1><p class=lead>{html.escape(self.lead)}</p>"]
        if self.rates:
            bars = "".join(rate_bar(label, rate) for label, rate in self.rates.items())
            sections.append(f"<h2>Closed-loop success</h2>{bars}<p class=muted>The dark line is the 95% interval.</p>")
        curve = loss_curve_png(self.loss_history)
        if curve:
            picture = _data_url(curve, "image/png")
            sections.append(f'<h2>Training loss</h2><img src="{picture}" alt="Loss by optimizer step">')
        if self.recordings:
            figures = "".join(_recording(record, video) for record, video in self.recordings)
            sections.append(f"<h2>Episodes, with thoughts</h2><div class=episodes>{figures}</div>")
        if self.code:
            sections.append(f"<h2>Load it</h2><pre><code>{html.escape(self.code)}</code></pre>")
        if self.facts:
            rows = "".join(f"<tr><td class=muted>{html.escape(k)}<td>{html.escape(v)}" for k, v in self.facts.items())
            sections.append(f"<h2>This run</h2><table>{rows}</table>")
        head = (
            '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
            f"<title>{html.escape(self.title)}</title><style>{STYLE}</style>"
        )
        path.write_text(head + "\n".join(sections) + "</html>\n", encoding="utf-8")


def loss_curve_png(history: Sequence[Mapping[str, Any]]) -> bytes | None:
    """PNG of every loss in a trainer's log (`loss`, `action_loss`, ...) by step, logarithmic; None without any."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = dict.fromkeys(key for entry in history if "step" in entry for key in entry if key.endswith("loss"))
    curves = {
        name: [(entry["step"], entry[name]) for entry in history if "step" in entry and entry.get(name, 0) > 0]
        for name in names
        if not name.startswith(("train_", "eval_"))
    }
    curves = {name: points for name, points in curves.items() if points}
    if not curves:
        return None
    figure = Figure(figsize=(9, 3), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="optimizer step", ylabel="loss", yscale="log")
    for name, points in curves.items():
        axes.plot(*zip(*points, strict=True), label=name.replace("_", " "), linewidth=1.6 if name == "loss" else 1.0)
    axes.legend(frameon=False)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def rate_bar(label: str, rate: SuccessRate) -> str:
    """A labeled bar with the 95% interval, in the page's style."""
    low, high = (100 * bound for bound in rate.interval)
    share = 100 * rate.rate if rate.episodes else 0.0
    return (
        f'<div class=rate><span>{html.escape(label)}</span><div class=bar><i style="width:{share:.1f}%"></i>'
        f'<b style="left:{low:.1f}%;width:{high - low:.1f}%"></b></div><span>{html.escape(str(rate))}</span></div>'
    )


def _recording(record: EpisodeRecord, video: Path) -> str:
    result = "success" if record.success else (record.failure_reason or "failure")
    caption = f"{record.instruction}: {result} after {record.steps} steps (seed {record.seed})"
    sheet = video.with_suffix(".png")
    clip = _data_url(video.read_bytes(), "video/mp4")
    parts = [
        f'<video controls autoplay muted loop playsinline preload="auto" src="{clip}"></video>',
        f"<figcaption>{html.escape(caption)}</figcaption>",
    ]
    if record.thoughts:
        items = "".join(f"<li>step {step}: {html.escape(text)}" for step, text in record.thoughts)
        parts.append(f"<details><summary>thoughts</summary><ul>{items}</ul></details>")
    if sheet.is_file():
        picture = _data_url(sheet.read_bytes(), "image/png")
        parts.append(f'<details><summary>moments</summary><img src="{picture}" alt="Moments of the episode"></details>')
    return f"<figure>{''.join(parts)}</figure>"


def _data_url(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
