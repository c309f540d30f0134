"""How long the phases of an answer take, on devices that compute behind the caller's back too."""

from __future__ import annotations

import time
from typing import Any

import torch


class PhaseClock:
    """Measures phases; as a streamer of `generate`, the end of the thought.

    Args:
        device: On a GPU, what this thread queued on its current stream is waited for; work of other threads is not.

    Attributes:
        seconds: Of each phase that is over.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def put(self, value: Any) -> None:
        """A token; nothing to do."""

    def end(self) -> None:
        """The thought is complete."""
        self.mark("think")

    def mark(self, phase: str) -> None:
        """What ran since the last mark was `phase`."""
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
        now = time.monotonic()
        self.seconds[phase] = now - self._last
        self._last = now
