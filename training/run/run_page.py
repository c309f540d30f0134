"""The page of a run: one self-contained HTML file with its curves, data, configuration and what the model sees.

Everything comes from the trainer's log, which trackers get as well and which checkpoints keep.
"""

from __future__ import annotations

import base64
import html
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from .run_page_style import SCRIPT, STYLE
from .run_plots import line_plot, short

History = Sequence[Mapping[str, Any]]

REFRESH_SECONDS = 20


@dataclass
class Example:
    """What the model sees of one row.

    Attributes:
        title: Where it comes from.
        images: (name of the view, JPEG).
        text: The prompt, with what is trained to be said.
        facts: Further values by name.
    """

    title: str
    images: list[tuple[str, bytes]] = field(default_factory=list)
    text: str = ""
    facts: dict[str, str] = field(default_factory=dict)


@dataclass
class RunPage:
    """What the page shows.

    Attributes:
        title: Name of the run.
        step, max_steps: Where it is.
        history: The trainer's log.
        state: "running", "finished", or how it ended.
        seconds_left: Estimate; None: not known.
        writing_share: Share of the run's time that writing this page took.
        examples: Rows of the data.
        facts: Tables by heading, each label to value.
        datasets: Rows of the table of data, by column.
    """

    title: str
    step: int
    max_steps: int
    history: History
    state: str = "running"
    seconds_left: float | None = None
    writing_share: float = 0.0
    examples: Sequence[Example] = ()
    facts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    datasets: Sequence[Mapping[str, Any]] = ()

    def render(self) -> str:
        """The whole file."""
        refresh = f'<meta http-equiv="refresh" content="{REFRESH_SECONDS}">' if self.state == "running" else ""
        sections = [
            self._head(),
            *(f"<h2>{heading}</h2><div class=plots>{body}</div>" for heading, body in plots(self.history) if body),
            _section("Skipped", _skipped(self.history)),
            _section("What the model sees", "".join(map(_example, self.examples))),
            _section("Data", _data_table(self.datasets)),
            *(_section(heading, _table(facts)) for heading, facts in self.facts.items()),
        ]
        return (
            '<!doctype html><html lang="en"><meta charset="utf-8">'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">{refresh}'
            f"<title>{_text(self.title)}</title><style>{STYLE}</style><body>{''.join(sections)}"
            f"<script>{SCRIPT}</script></html>\n"
        )

    def _head(self) -> str:
        share = self.step / self.max_steps if self.max_steps else 0.0
        left = "" if self.seconds_left is None else f", about {duration(self.seconds_left)} left"
        written = time.strftime("%Y-%m-%d %H:%M:%S %Z")
        tiles = "".join(
            f"<div><b>{_text(value)}</b><span>{_text(name)}</span></div>" for name, value in self._tiles().items()
        )
        return (
            f"<h1>{_text(self.title)}</h1>"
            f'<p class=lead><em class="state {_text(self.state.split()[0])}">{_text(self.state)}</em> '
            f"step {self.step} of {self.max_steps}{left}</p>"
            f'<div class=progress><i style="width:{100 * min(share, 1):.1f}%"></i></div><div class=tiles>{tiles}</div>'
            f"<p class=muted>Written {written}; writing took {100 * self.writing_share:.2f}% of the run's time. "
            f'<span id=late data-written="{time.time():.0f}" data-state="{_text(self.state.split()[0])}"></span></p>'
        )

    def _tiles(self) -> dict[str, str]:
        last = latest(self.history)
        named = {
            "training loss": ("loss", short),
            "held-out loss": ("eval_loss", short),
            "held-out loss of the VLM": ("eval_vlm_loss", short),
            "success rate": ("objective/success_rate", _percent),
            "samples per second": ("speed/samples_per_second", short),
            "time waiting for data": ("speed/data_wait_share", _percent),
            "learning rate": ("learning_rate", short),
        }
        tiles = {name: write(last[key]) for name, (key, write) in named.items() if _is_number(last.get(key))}
        tiles["steps not finite"] = short(last.get("nonfinite_steps", 0))
        tiles["rows skipped"] = short(sum(value for key, value in last.items() if key.startswith("skipped_rows/")))
        return tiles


def plots(history: History) -> list[tuple[str, str]]:
    """(heading, figures) of every number of a log; one that no group names stands in a group of its own prefix."""
    series: dict[str, list[tuple[float, float]]] = {}
    for entry in history:
        for key, value in entry.items():
            if _is_number(value) and key not in _NO_CURVES and not key.startswith(("skipped_rows/", "train_")):
                series.setdefault(key, []).append((entry.get("step", 0), float(value)))
    used: set[str] = set()

    def draw(title: str, names: Mapping[str, str]) -> str:
        """`names` maps what a line is called to the key of its numbers."""
        chosen = {label: series[key] for label, key in names.items() if key in series}
        used.update(key for key in names.values() if key in series)
        return line_plot(title, chosen, dashed=[label for label, key in names.items() if key.startswith("eval_")])

    def groups(prefix: str, label: str) -> dict[str, str]:
        return {key.removeprefix(prefix) + label: key for key in series if key.startswith(prefix)}

    def both(part: str, kind: str) -> dict[str, str]:
        name = f"{part}_{kind}/"
        return {**groups(name, ""), **groups(f"eval_{name}", ", held out")}

    found = []
    losses = {"training": "loss", "held out": "eval_loss"}
    action = {"training": "action_loss", "held out": "eval_action_loss"}
    words = {"training": "lm_loss", "held-out thoughts": "eval_lm_loss", "held-out multi-modal rows": "eval_vlm_loss"}
    spoken = any(key in series for key in words.values())
    parts = draw("Action loss", action) + draw("Language loss", words) if spoken else ""
    used.update(action.values())  # without language the loss itself
    found.append(("Loss", draw("Loss", losses) + parts))
    by_group = ""
    for kind, what in (("by_embodiment", "robot"), ("by_source", "dataset")):
        by_group += draw(f"Action loss by {what}", both("action_loss", kind))
        by_group += draw(f"Language loss by {what}", both("lm_loss", kind))
        used.update(both("loss", kind).values())  # the weighted sum of the two
    found.append(("By robot and dataset", by_group))
    optimization = draw("Gradient norm", {"gradient norm": "grad_norm"})
    rates = {"learning rate": "learning_rate", "policy": "lr", "value model": "value_lr"}
    optimization += draw("Learning rate", rates)
    optimization += draw("Query states masked by decoupling", {"share": "decoupling/masked_fraction"})
    optimization += draw("Steps not finite, in all", {"steps": "nonfinite_steps"})
    found.append(("Optimization", optimization))
    speed = draw("Samples per second", {"samples/s": "speed/samples_per_second"})
    speed += draw("Share of time waiting for data", {"share": "speed/data_wait_share"})
    found.append(("Speed", speed))
    rest: dict[str, dict[str, str]] = {}
    for key in series:
        if key not in used:
            prefix, _, name = key.rpartition("/")
            rest.setdefault(prefix or "other", {})[name] = key
    figures = ((title, names) for prefix in sorted(rest) for title, names in _split(prefix, rest[prefix]).items())
    found.append(("Further numbers", "".join(draw(title, names) for title, names in figures)))
    return found


def _split(prefix: str, names: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Figures of the numbers with one prefix: a single one if they are few, else one per quantity (its mean, min, max)."""
    if len(names) <= MOST_LINES:
        return {prefix: dict(names)}
    figures: dict[str, dict[str, str]] = {}
    for name, key in names.items():
        stem, _, end = name.rpartition("_")
        figures.setdefault(f"{prefix}: {stem if stem and end in _SUMMARIES else name}", {})[name] = key
    return figures


MOST_LINES = 4
_SUMMARIES = ("mean", "min", "max", "avg", "var", "std")

_NO_CURVES = {
    "step",
    "epoch",
    "total_flos",
    "eval_samples",
    "eval_samples_per_second",
    "eval_steps_per_second",
    "eval_runtime",
}


def latest(history: History) -> dict[str, Any]:
    """The last value of every number."""
    found: dict[str, Any] = {}
    for entry in history:
        found.update(entry)
    return found


def duration(seconds: float) -> str:
    """A time as people say it: "2 d 3 h", "3 h 20 min", "45 s"."""
    if not math.isfinite(seconds):
        return "?"
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min" if minutes >= 2 else f"{seconds:.0f} s"


def _skipped(history: History) -> str:
    last = latest(history)
    rows = {
        key.removeprefix("skipped_rows/"): f"{value:.0f} rows"
        for key, value in last.items()
        if key.startswith("skipped_rows/")
    }
    if last.get("nonfinite_steps"):
        rows["steps whose loss or gradient was not finite"] = f"{last['nonfinite_steps']:.0f}"
    return _table(rows)


def _example(example: Example) -> str:
    images = "".join(
        f'<figure><img alt="{_text(view)}" src="data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}">'
        f"<figcaption>{_text(view)}</figcaption></figure>"
        for view, jpeg in example.images
    )
    return (
        f"<article><h3>{_text(example.title)}</h3><div class=views>{images}</div>"
        f"<pre>{_text(example.text)}</pre>{_table(example.facts)}</article>"
    )


def _data_table(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    columns = list(dict.fromkeys(key for row in rows for key, value in row.items() if value not in (None, "", {})))
    head = "".join(f"<th>{_text(column)}" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{_text(_said(row.get(column)))}" for column in columns) for row in rows)
    return f"<div class=wide><table><tr>{head}{body}</table></div>"


def _table(facts: Mapping[str, Any]) -> str:
    given = {key: value for key, value in facts.items() if value is not None}
    rows = "".join(f"<tr><th>{_text(key)}<td>{_text(_said(value))}" for key, value in given.items())
    return f"<div class=wide><table>{rows}</table></div>" if rows else ""


def _said(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return short(value)
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_said(item)}" for key, item in value.items())
    return ", ".join(map(_said, value)) if isinstance(value, list | tuple) else str(value)


def _section(heading: str, body: str) -> str:
    return f"<h2>{_text(heading)}</h2>{body}" if body else ""


def _percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(value: Any) -> str:
    return html.escape(str(value))
