"""Turns action chunks into one action per control step, waiting for the policy or asking it ahead of time. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np


class _Client(Protocol):
    def act(self, images: Mapping[str, np.ndarray], state: np.ndarray, prompt: str, **extras: Any) -> dict[str, Any]:
        """See `PolicyClient.act`."""

    def reset(self) -> None:
        """See `PolicyClient.reset`."""


class ChunkExecutor:
    """Executes `replan_steps` actions of each chunk.

    Without prefetch the robot waits for every chunk. With `prefetch` = d the old chunk goes on for d steps after the
    observation that the next one answers. The request then carries the part of the old chunk that has not run and d, so
    that the server makes the new chunk continue it (`serving.chunk_stitching`), and the new chunk is entered at the step
    that has come by the time it is there. An answer that takes longer is waited for only when the old chunk has run out.

    Args:
        client: A `PolicyClient`, or anything with its `act`.
        replan_steps: Control steps between two requests.
        prefetch: d, less than `replan_steps`; 0: wait. Take control rate times latency, rounded up; chunks need at least
            `replan_steps + prefetch` actions.
        stitch: With prefetch, whether to send the old chunk.

    Attributes:
        last_reply: The newest reply that is in use; None before the first.
        seam: Largest difference of the two chunks' commands for the step at which the last one was entered, physical
            units: the jump that the robot saw. None before the second chunk.
    """

    def __init__(self, client: _Client, replan_steps: int, *, prefetch: int = 0, stitch: bool = True) -> None:
        if replan_steps < 1 or not 0 <= prefetch < replan_steps:
            raise ValueError(
                f"expected replan_steps >= 1 and 0 <= prefetch < replan_steps, got {replan_steps=} {prefetch=}"
            )
        self.client, self.replan_steps, self.prefetch, self.stitch = client, replan_steps, prefetch, stitch
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="policy") if prefetch else None
        self.last_reply: dict[str, Any] | None = None
        self.seam: float | None = None
        self._chunk: np.ndarray | None = None
        self._position = 0  # step of the chunk that comes next, from the observation that it answers
        self._pending: Future[dict[str, Any]] | None = None
        self._since = 0  # steps since the pending request's observation

    def step(self, images: Mapping[str, np.ndarray], state: np.ndarray, prompt: str, **extras: Any) -> np.ndarray:
        """The action for this control step, (D,), physical units; arguments as for `PolicyClient.act`."""
        if self._chunk is None:
            self._use(self.client.act(images, state, prompt, **extras), 0)
        elif self._pool is None and self._position >= min(self.replan_steps, len(self._chunk)):
            self._use(self.client.act(images, state, prompt, executed_steps=self._position, **extras), 0)
        elif self._pool is not None:
            self._look_ahead(images, state, prompt, extras)
        assert self._chunk is not None
        action = self._chunk[self._position]
        self._position += 1
        self._since += 1
        return action

    def reset(self) -> None:
        """Forgets chunk and pending request and tells the server: a new episode begins."""
        if self._pending is not None and not self._pending.cancel():
            self._pending.exception()  # waits: the connection answers one request at a time
        self._pending = self._chunk = self.last_reply = self.seam = None
        self._position = self._since = 0
        self.client.reset()

    def close(self) -> None:
        """Waits for a pending request and ends the thread; the client stays open."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _look_ahead(
        self, images: Mapping[str, np.ndarray], state: np.ndarray, prompt: str, extras: Mapping[str, Any]
    ) -> None:
        assert self._chunk is not None
        assert self._pool is not None
        left = len(self._chunk) - self._position
        if self._pending is None and (self._position >= self.replan_steps or left <= self.prefetch):
            options: dict[str, Any] = {**extras, "executed_steps": self._position}
            if self.stitch and left:
                options |= {"prev_chunk": self._chunk[self._position :], "delay_steps": min(self.prefetch, left)}
            self._pending = self._pool.submit(self.client.act, images, state, prompt, **options)
            self._since = 0
        answer = self._pending
        if answer is not None and (not left or (self._since >= self.prefetch and answer.done())):
            self._pending = None
            self._use(answer.result(), self._since)

    def _use(self, reply: dict[str, Any], position: int) -> None:
        chunk = np.asarray(reply["actions"])
        if position >= len(chunk):
            raise RuntimeError(
                f"the answer came {position} steps after its observation, but the chunk has {len(chunk)}; lower the "
                "control rate or replan_steps"
            )
        if self._chunk is not None and self._position < len(self._chunk):
            self.seam = float(np.abs(chunk[position] - self._chunk[self._position]).max())
        self._chunk, self._position, self.last_reply = chunk, position, reply
