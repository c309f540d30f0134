"""What the live page shows of each session: pictures, instruction, thought, chunk, executed commands. No torch."""

from __future__ import annotations

import base64
import io
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from syvla.serving.contract.action_limits import ActionLimits
from syvla.serving.contract.requests import ActAnswer, ActRequest, ClientReport

WATCHED_S = 10.0
"""Seconds after a page last asked during which pictures are kept; nobody else pays for them."""
MOST_SESSIONS, MOST_STEPS, PICTURE_SIDE = 8, 160, 240


@dataclass
class _Shown:
    """One session as it was at its last request."""

    request_time: float = 0.0
    asked: str = ""  # the client's own instruction
    instead: str | None = None  # what a person put in its place
    embodiment: str = ""
    thought: str | None = None
    chunk: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    clamped: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), bool))
    chunk_begin: int = 0
    executed: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    limited: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), bool))
    executed_begin: int = 0
    notes: list[str] = field(default_factory=list)
    latency_s: float = 0.0
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    report: ClientReport | None = None
    pictures: dict[str, np.ndarray] = field(default_factory=dict)


class LiveView:
    """The last request of every session. Only the event loop writes and reads it.

    Args:
        editable: Whether a person may change an instruction; not in a run of reinforcement learning, whose rollouts belong to
            the instruction that they began with.
    """

    def __init__(self, editable: bool = True) -> None:
        self.editable = editable
        self._sessions: OrderedDict[str, _Shown] = OrderedDict()  # the one that is silent longest first
        self._watched = -WATCHED_S

    def forget(self, session: str) -> None:
        """Drops a session that has ended."""
        self._sessions.pop(session, None)

    def _session(self, name: str) -> _Shown:
        shown = self._sessions.pop(name, None) or _Shown()
        self._sessions[name] = shown
        while len(self._sessions) > MOST_SESSIONS:
            self._sessions.popitem(last=False)
        return shown

    # ------------------------------------------------------------------ requests

    def instructed(self, request: ActRequest) -> ActRequest:
        """The request with the instruction that a person put in place of the client's. A new one of the client's ends that."""
        shown = self._sessions.get(request.session or "")
        if shown is None or shown.instead is None:
            return request
        if shown.asked != request.instruction:
            shown.instead = None
            return request
        return replace(request, instruction=shown.instead)

    def answered(
        self,
        asked: str,
        request: ActRequest,
        answer: ActAnswer,
        actions: np.ndarray,
        notes: list[str],
        seconds: Mapping[str, float],
    ) -> None:
        """Takes note of an answer.

        Args:
            asked: The client's own instruction.
            request: As it was answered.
            answer: The policy's.
            actions: As they leave the server.
            notes: What limits changed.
            seconds: Phases, with `total`.
        """
        shown = self._session(request.session or "")
        shown.request_time, shown.asked, shown.embodiment = time.monotonic(), asked, request.embodiment
        shown.thought, shown.chunk, shown.notes = answer.thought, actions, notes
        shown.clamped = np.asarray(answer.actions) != actions
        shown.latency_s = seconds.get("total", 0.0)
        shown.timings_ms = {phase: round(value * 1000, 1) for phase, value in {**seconds, **answer.timings}.items()}
        shown.report = request.client_report
        self._executed(shown, request.client_report)
        watched = time.monotonic() - self._watched < WATCHED_S
        shown.pictures = {view: _small(image) for view, image in request.images.items()} if watched else {}

    @staticmethod
    def _executed(shown: _Shown, report: ClientReport | None) -> None:
        if report is None:
            shown.executed, shown.limited = np.zeros((0, 0), np.float32), np.zeros((0, 0), bool)
            shown.executed_begin = shown.chunk_begin = 0
            return
        if report.executed.shape[1:] == shown.chunk.shape[1:]:
            kept = report.first - shown.executed_begin
            if 0 <= kept <= len(shown.executed) and shown.executed.shape[1:] == report.executed.shape[1:]:
                shown.executed = np.concatenate([shown.executed[:kept], report.executed])[-MOST_STEPS:]
                shown.limited = np.concatenate([shown.limited[:kept], report.limited])[-MOST_STEPS:]
            else:
                shown.executed, shown.limited = report.executed[-MOST_STEPS:], report.limited[-MOST_STEPS:]
        shown.chunk_begin = report.first + len(report.executed)
        shown.executed_begin = shown.chunk_begin - len(shown.executed)

    # ------------------------------------------------------------------ the page

    def instruct(self, session: str, text: str | None) -> None:
        """Puts an instruction in place of the client's, from its next request on; None: the client's own again.

        Raises:
            KeyError: No such session.
        """
        self._sessions[session].instead = text

    def describe(
        self, robots: Mapping[str, tuple[Mapping[str, Any], ActionLimits]], session: str | None
    ) -> dict[str, Any]:
        """Plain data for the page; the session asked for, or the one that asked last, in full."""
        self._watched = time.monotonic()
        names = list(reversed(self._sessions))
        chosen = session if session in self._sessions else (names[0] if names else None)
        result: dict[str, Any] = {"sessions": names, "editable": self.editable, "session": chosen}
        if chosen is None:
            return result
        shown = self._sessions[chosen]
        entry, limits = robots.get(shown.embodiment, ({}, None))
        report = shown.report
        result["shown"] = {
            "age_s": round(time.monotonic() - shown.request_time, 3),
            "latency_s": round(shown.latency_s, 4),
            "timings_ms": dict(shown.timings_ms),
            "chunk_age_s": None if report is None else report.chunk_age_s,
            "seam": None if report is None else report.seam,
            "counts": None if report is None else dict(report.counts),
            "asked": shown.asked,
            "instead": shown.instead,
            "thought": shown.thought,
            "embodiment": shown.embodiment,
            "names": list(entry.get("action_names") or [f"action {i}" for i in range(shown.chunk.shape[1])]),
            "units": list(entry.get("action_units") or []),
            "control_hz": entry.get("control_hz"),
            "low": _bounds(limits.low) if limits is not None else [],
            "high": _bounds(limits.high) if limits is not None else [],
            "chunk": _rounded(shown.chunk),
            "clamped": shown.clamped.tolist(),
            "chunk_begin": shown.chunk_begin,
            "executed": _rounded(shown.executed),
            "limited": shown.limited.tolist(),
            "executed_begin": shown.executed_begin,
            "notes": shown.notes,
            "pictures": {view: _jpeg(image) for view, image in shown.pictures.items()},
        }
        return result


def _bounds(values: np.ndarray) -> list[float | None]:
    return [round(float(x), 5) if np.isfinite(x) else None for x in values]


def _rounded(values: np.ndarray) -> list[list[float]]:
    rounded: list[list[float]] = np.round(values.astype(np.float64), 5).tolist()
    return rounded


def _small(image: np.ndarray) -> np.ndarray:
    """A copy that fits the page; the request's own array must not be kept."""
    every = max(1, -(-max(image.shape[:2]) // PICTURE_SIDE))
    return np.ascontiguousarray(image[::every, ::every]).copy()


def _jpeg(image: np.ndarray) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
