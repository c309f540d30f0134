"""When a callback measures that costs more than a log line: every so many steps, and once more at the end."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback


class PeriodicMeasurement(TrainerCallback):
    """Calls `measure` every `every` steps, and at the end unless that step has been measured.

    Args:
        every: Steps between measurements.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.measured_at = -1

    def measure(self, step: int) -> None:
        """Measures and logs; called by all processes."""
        raise NotImplementedError

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.every == 0:
            due = control.should_log
            self._run(state.global_step)
            control.should_log = due  # logging the numbers has settled it, but the losses are still to come

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step != self.measured_at:
            self._run(state.global_step)

    def _run(self, step: int) -> None:
        self.measure(step)
        self.measured_at = step
