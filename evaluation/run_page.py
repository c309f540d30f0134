"""`report.html` of a closed-loop evaluation: success per task, failures by cause, and every recorded episode with its thoughts.

Recordings are linked, not embedded: the page stands in the folder that holds them.
"""

from __future__ import annotations

import html
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from syvla.durable_files import write_text

from .closed_loop_result import ClosedLoopResult
from .episode_records import EpisodeRecord
from .report_page import STYLE, rate_bar

_STYLE = """
.timeline { display: flex; gap: 2px; margin: .3rem 0; }
.timeline button { all: unset; box-sizing: border-box; cursor: pointer; overflow: hidden; white-space: nowrap;
  text-overflow: ellipsis; font-size: .8rem; padding: .15rem .4rem; background: var(--line); border-radius: 3px; }
.timeline button:hover, .timeline button:focus-visible { outline: 2px solid var(--good); }
code.replay { display: block; font-size: .75rem; overflow-wrap: anywhere; color: var(--muted); padding: .2rem 0; }
th { text-align: left; font-weight: 600; padding: .15rem 1.2rem .15rem 0; } .missing { color: var(--muted); }
"""

_SCRIPT = """
document.addEventListener("click", event => {
  const part = event.target.closest("[data-seconds]");
  if (!part) return;
  const video = part.closest("figure").querySelector("video");
  if (video) { video.currentTime = Number(part.dataset.seconds); video.play(); }
});
"""


def write_run_page(result: ClosedLoopResult, path: Path) -> None:
    """Writes the page, whole or not at all; the recordings are looked for below its folder."""
    run = result.run
    title = f"{run.get('policy', 'policy')} in {result.settings.get('env', 'an environment')}"
    bars = "".join(rate_bar(task, rate) for task, rate in result.by_task.items())
    if len(result.by_task) > 1:
        bars += rate_bar("total", result.total)
    sections = [
        f"<h1>{html.escape(title)}</h1><p class=lead>{html.escape(_lead(result))}</p>",
        f"<h2>Success</h2>{bars}<p class=muted>The dark line is the 95% Wilson interval.</p>",
        _causes(result),
        _episodes(result, path.parent),
        _facts(result),
    ]
    head = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(title)}</title><style>{STYLE}{_STYLE}</style>"
    )
    write_text(path, head + "\n".join(filter(None, sections)) + f"<script>{_SCRIPT}</script></html>\n")


def replay_command(result: ClosedLoopResult, record: EpisodeRecord) -> str:
    """The command that runs one episode of the evaluation again and records it."""
    run, settings = result.run, result.settings
    policy = str(run.get("policy", "MODEL"))
    words = ["syvla-eval", "--server" if "://" in policy else "--model", policy]
    words += ["--env", str(settings.get("env")), "--task", record.task, "--episode", str(record.seed)]
    for name, value in (settings.get("environment_options") or {}).items():
        words += ["--env-option", f"{name}={json.dumps(value)}"]
    for name, value in (run.get("policy_options") or {}).items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            words.append(flag)
        elif value not in (None, False) and name != "name":
            words += [flag, str(value)]
    if settings.get("replan_steps", 1) != 1:
        words += ["--replan-steps", str(settings["replan_steps"])]
    if (run.get("control_rate") or {}).get("resampled"):
        words += ["--control-rate", "resample"]
    return shlex.join([*words, "--video-episodes", "1", "--output", f"outputs/episode_{record.seed}"])


def _lead(result: ClosedLoopResult) -> str:
    parts = [f"{len(result.counted)} episodes"]
    if result.errors:
        parts.append(f"{len(result.errors)} more ended in an error of the environment and do not count")
    parts += [f"{name}: {fact}" for name, fact in (result.run.get("environment") or {}).items()]
    return "; ".join(parts) + "."


def _causes(result: ClosedLoopResult) -> str:
    """Failures and errors by what they died of, the most frequent first."""
    groups: dict[str, list[EpisodeRecord]] = {}
    for record in result.records:
        if record.error is not None:
            groups.setdefault(f"error: {record.error}", []).append(record)
        elif not record.success:
            groups.setdefault(record.failure_reason or "failure", []).append(record)
    if not groups:
        return "<h2>Failures</h2><p>None.</p>"
    rows = []
    for cause, records in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])):
        episodes = "".join(_failed(result, record) for record in records)
        rows.append(f"<tr><td>{html.escape(cause)}<td>{len(records)}<td>{episodes}")
    return (
        "<h2>Failures by cause</h2><table><tr><th>cause<th>episodes<th>task and seed, and how to run it again"
        f"{''.join(rows)}</table>"
    )


def _failed(result: ClosedLoopResult, record: EpisodeRecord) -> str:
    """One episode of the table: its command behind its name, and the way to its recording."""
    name = html.escape(f"{record.task} {record.seed}")
    shown = f' <a href="#{_anchor(record)}">recording</a>' if record.video else ""
    command = html.escape(replay_command(result, record))
    return f"<details><summary class=muted>{name}{shown}</summary><code class=replay>{command}</code></details>"


def _anchor(record: EpisodeRecord) -> str:
    return html.escape(f"{record.task}-{record.seed}", quote=True)


def _episodes(result: ClosedLoopResult, folder: Path) -> str:
    """Recorded episodes, failures first."""
    recorded = [record for record in result.records if record.video]
    if not recorded:
        return ""
    rate = float(result.run.get("control_hz") or 0.0)
    order = sorted(recorded, key=lambda record: (record.success, record.task, record.seed))
    figures = "".join(_figure(result, record, folder, rate) for record in order)
    return f"<h2>Episodes, with thoughts</h2><div class=episodes>{figures}</div>"


def _figure(result: ClosedLoopResult, record: EpisodeRecord, folder: Path, rate: float) -> str:
    outcome = "success" if record.success else (record.failure_reason or "failure")
    caption = f"{record.instruction}: {outcome} after {record.steps} steps ({record.task}, seed {record.seed})"
    video = str(record.video)
    if (folder / video).is_file():
        shown = (
            f'<video controls muted loop playsinline preload="metadata" src="{html.escape(video, quote=True)}"></video>'
        )
    else:
        shown = f"<p class=missing>{html.escape(video)} is gone</p>"
    command = html.escape(replay_command(result, record))
    return (
        f'<figure id="{_anchor(record)}">{shown}{_timeline(record, rate)}<figcaption>{html.escape(caption)}</figcaption>'
        f"<details><summary>run it again</summary><code class=replay>{command}</code></details></figure>"
    )


def _timeline(record: EpisodeRecord, rate: float) -> str:
    """Thoughts side by side, each as wide as it lasted; a click goes there in the recording."""
    if not record.thoughts:
        return ""
    ends = [step for step, _ in record.thoughts[1:]] + [record.steps]
    parts = []
    for (step, text), end in zip(record.thoughts, ends, strict=True):
        seconds = step / rate if rate else 0.0
        label = html.escape(f"step {step} to {end}: {text}", quote=True)
        parts.append(
            f'<button style="flex:{max(end - step, 1)} 1 0" data-seconds="{seconds:.3f}" title="{label}" '
            f'aria-label="{label}">{html.escape(text)}</button>'
        )
    return f"<div class=timeline>{''.join(parts)}</div>"


def _facts(result: ClosedLoopResult) -> str:
    facts: Mapping[str, Any] = {
        **result.settings,
        "seconds": round(result.seconds, 1),
        **result.run.get("versions", {}),
    }
    rows = "".join(f"<tr><td class=muted>{html.escape(str(k))}<td>{html.escape(str(v))}" for k, v in facts.items())
    return f"<h2>This run</h2><table>{rows}</table>"
