"""A log of every control step, a line of JSON each, and its replay: on a robot or simulator, or through other limits."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from syvla.serving.contract.action_limits import ActionLimits, CommandLimiter

from .silence import StepReport


@dataclass(frozen=True)
class LoggedStep:
    """One control step.

    Attributes:
        seconds: Since the log's first step.
        command: What was sent, or would have been in a dry run, (D,).
        action: The same before limits, (D,); None where the loop gave no report.
        state: The state at this step, (D_state,).
        prompt: The instruction.
        sent: False for a dry run, and for a robot that was stopped.
        source, reason, dropped, limits: See `StepReport`.
        new_episode: Whether it is an episode's first.
    """

    seconds: float
    command: np.ndarray
    action: np.ndarray | None
    state: np.ndarray
    prompt: str
    sent: bool
    source: str
    reason: str
    dropped: str
    limits: list[str]
    new_episode: bool


class CommandLog:
    """Writes a log; every step is handed to the system before the next one, so that a crash of the program loses none.

    Args:
        path: A file that does not exist yet.

    Raises:
        FileExistsError: It exists.
    """

    def __init__(self, path: str | Path) -> None:
        self._file = Path(path).open("x", encoding="utf-8")  # noqa: SIM115 - closed by `close`
        self._begun: float | None = None
        self._new_episode = True

    def new_episode(self) -> None:
        """The next step is an episode's first."""
        self._new_episode = True

    def write(
        self, command: np.ndarray, *, sent: bool, state: np.ndarray, prompt: str, report: StepReport | None = None
    ) -> None:
        """Adds a step; arguments as in `LoggedStep`."""
        now = time.monotonic()
        self._begun = now if self._begun is None else self._begun
        action = None if report is None or report.action is None else _plain(report.action)
        row: dict[str, Any] = {
            "seconds": round(now - self._begun, 6),
            "command": _plain(command),
            "action": action,
            "state": _plain(state),
            "prompt": prompt,
            "sent": sent,
            "source": "" if report is None else report.source,
            "reason": "" if report is None else report.reason,
            "dropped": "" if report is None else report.dropped,
            "limits": [] if report is None else report.limits,
            "new_episode": self._new_episode,
        }
        self._file.write(json.dumps(row, allow_nan=True) + "\n")
        self._file.flush()
        self._new_episode = False

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> CommandLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_log(path: str | Path) -> Iterator[LoggedStep]:
    """The steps of a log, in order. A last line that a crash has cut off is left out.

    Raises:
        ValueError: Another line is damaged.
    """
    lines = Path(path).read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines[:-1], 1):  # what follows the last line break is incomplete, or nothing
        try:
            row = json.loads(line)
            action = None if row["action"] is None else np.array(row.pop("action"), np.float32)
            arrays = {name: np.array(row.pop(name), np.float32) for name in ("command", "state")}
            yield LoggedStep(**{**row, **arrays, "action": action})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path}, line {number}: expected a logged step, got {line[:80]!r} ({error})") from None


def limited_again(path: str | Path, limits: ActionLimits) -> Iterator[tuple[LoggedStep, np.ndarray, list[str]]]:
    """What other limits would have made of a log's actions: (step, command, what the limits changed).

    The states are those of the log: a robot that had been commanded otherwise would have had others.

    Raises:
        ValueError: The log has steps without `action`, or dimensions that the limits do not have.
        UnsafeActions: See `CommandLimiter.limit`.
    """
    limiter = CommandLimiter(limits)
    for step in read_log(path):
        if step.action is None:
            raise ValueError(
                f"{path}: expected a log with the actions before limits; pass report= to RobotGuard.command"
            )
        if step.new_episode:
            limiter.new_episode()
        yield step, *limiter.limit(step.action, step.state)


def _plain(values: Any) -> list[float]:
    return [float(value) for value in np.asarray(values).reshape(-1)]
