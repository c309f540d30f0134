"""The last step before the motors: emergency stop, largest effort, dry run, and a log of what was commanded. numpy only."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .command_log import CommandLog
from .silence import StepReport

logger = logging.getLogger(__name__)


class EmergencyStopped(RuntimeError):
    """The robot was stopped; no command is sent until somebody calls `EmergencyStop.release`."""


class EmergencyStop:
    """A stop that any thread may call: a key, a button's interrupt, a collision checker, the loop itself.

    Args:
        stop: Brings the robot to rest, for example by the controller's own quick stop. It is called at once, in the caller's
            thread, and again after a command that was already on its way, so that the stop has the last word. It must be safe
            to call more than once.

    Attributes:
        reason: Why the robot was stopped; None while it was not.
    """

    def __init__(self, stop: Callable[[str], None]) -> None:
        self._stop = stop
        self.reason: str | None = None
        self._triggered = threading.Event()

    @property
    def triggered(self) -> bool:
        """Whether commands are blocked."""
        return self._triggered.is_set()

    def trigger(self, reason: str) -> None:
        """Blocks all further commands, then stops the robot. Never waits for a command that is on its way."""
        self.reason = self.reason or reason
        self._triggered.set()  # first: whatever the hook does, nothing moves any more
        logger.error("emergency stop: %s", reason)
        self._stop(reason)

    def again(self) -> None:
        """Stops the robot once more, after a command that overtook the stop."""
        self._stop(self.reason or "emergency stop")

    def release(self) -> None:
        """Allows commands again. For a person who has looked at the robot."""
        self.reason = None
        self._triggered.clear()


class RobotGuard:
    """Sends commands to a robot, or not.

    Args:
        send: Sends one command (D,) to the motors.
        emergency: The stop; without one, too large an effort only raises.
        measure_effort: Present torques or currents, (n,), in any unit. Asked before each command.
        max_effort: Largest allowed size of each, (n,), in the same unit; needed with `measure_effort`.
        effort_steps: Control steps in a row beyond it that stop the robot; 1 stops at once.
        dry_run: Do everything but `send`.
        log: Gets every command, sent or not.

    Raises:
        ValueError: `measure_effort` without `max_effort` or the other way round, or impossible values.
    """

    def __init__(
        self,
        send: Callable[[np.ndarray], None],
        *,
        emergency: EmergencyStop | None = None,
        measure_effort: Callable[[], Sequence[float] | np.ndarray] | None = None,
        max_effort: Sequence[float] | np.ndarray | None = None,
        effort_steps: int = 1,
        dry_run: bool = False,
        log: CommandLog | None = None,
    ) -> None:
        if (measure_effort is None) != (max_effort is None):
            raise ValueError("max_effort: expected together with measure_effort; one has no effect without the other")
        self._most = None if max_effort is None else np.asarray(max_effort, np.float64)
        if self._most is not None and (self._most.ndim != 1 or not (self._most > 0).all()):
            raise ValueError(f"max_effort: expected positive numbers, got {max_effort}")
        if effort_steps < 1 or (effort_steps > 1 and measure_effort is None):
            raise ValueError(f"effort_steps: expected at least 1, together with measure_effort, got {effort_steps}")
        self._send, self._emergency, self._measure = send, emergency, measure_effort
        self._effort_steps, self._beyond = effort_steps, 0
        self.dry_run, self.log = dry_run, log

    def command(
        self, command: np.ndarray, *, state: np.ndarray, prompt: str = "", report: StepReport | None = None
    ) -> bool:
        """Sends a command.

        Args:
            command: (D,), from an executor's `step`.
            state: The state of this step, for the log.
            prompt: The instruction, for the log.
            report: The executor's, for the log.

        Returns:
            Whether it was sent; False in a dry run.

        Raises:
            EmergencyStopped: The robot is stopped; nothing was sent, or the stop was called again after it.
        """
        self._check_effort()
        sent = False
        stopped = self._emergency is not None and self._emergency.triggered
        if not stopped and not self.dry_run:
            self._send(command)
            sent = True
        if self.log is not None:
            self.log.write(command, sent=sent, state=state, prompt=prompt, report=report)
        if self._emergency is not None and self._emergency.triggered:
            if sent:
                self._emergency.again()
            raise EmergencyStopped(str(self._emergency.reason))
        return sent

    def _check_effort(self) -> None:
        if self._measure is None or self._most is None:
            return
        effort = np.asarray(self._measure(), np.float64)
        if effort.shape != self._most.shape:
            raise ValueError(
                f"measure_effort: expected {len(self._most)} numbers, as max_effort has, got {effort.shape}"
            )
        beyond = ~(np.abs(effort) <= self._most)  # what is no number is beyond, too
        self._beyond = self._beyond + 1 if beyond.any() else 0
        if self._beyond >= self._effort_steps:
            worst = int(np.flatnonzero(beyond)[0])
            self._give_up(f"effort {worst} is {effort[worst]:.4g}, allowed are {self._most[worst]:.4g}")

    def _give_up(self, reason: str) -> None:
        if self._emergency is None:
            raise EmergencyStopped(reason)
        if not self._emergency.triggered:
            self._emergency.trigger(reason)


def stop_on(emergency: EmergencyStop, condition: Callable[[], Any], period_s: float = 0.005) -> threading.Thread:
    """A thread that triggers the stop once `condition` returns a reason, or fails.

    Args:
        emergency: The stop.
        condition: Asked again and again; a text that is not empty stops the robot.
        period_s: Pause between two questions.
    """

    def watch() -> None:
        pause = threading.Event()
        while not emergency.triggered:
            try:
                reason = condition()
            except Exception as error:
                reason = f"the watched condition failed: {type(error).__name__}: {error}"
            if reason:
                emergency.trigger(str(reason))
                return
            pause.wait(period_s)

    thread = threading.Thread(target=watch, name="emergency-stop", daemon=True)
    thread.start()
    return thread
