"""Turns action chunks into one action per control step, waiting for the policy or asking it ahead of time. No torch."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, Protocol, TypeVar

import numpy as np


class _Client(Protocol):
    def act(self, images: Mapping[str, np.ndarray], state: np.ndarray, prompt: str, **extras: Any) -> dict[str, Any]:
        """See `PolicyClient.act`."""

    def reset(self) -> None:
        """See `PolicyClient.reset`."""


class _AsyncClient(Protocol):
    async def act(
        self, images: Mapping[str, np.ndarray], state: np.ndarray, prompt: str, **extras: Any
    ) -> dict[str, Any]:
        """See `AsyncPolicyClient.act`."""

    def reset(self) -> None:
        """See `AsyncPolicyClient.reset`."""


class _Answer(Protocol):
    def done(self) -> bool:
        """Whether waiting for it takes no time."""


Answer = TypeVar("Answer", bound=_Answer)


class _Execution(Generic[Answer]):
    """Decides which action of which chunk comes next, and when to ask for another chunk. Subclasses send the requests.

    Attributes:
        last_reply: The reply whose chunk is in use; None before the first one.
        seam: Largest difference of the two chunks' commands for the step at which the last one was entered, physical
            units: the jump that the robot saw. None before the second chunk.
    """

    def __init__(self, replan_steps: int, prefetch: int, stitch: bool) -> None:
        if replan_steps < 1 or not 0 <= prefetch < replan_steps:
            raise ValueError(
                f"expected replan_steps >= 1 and 0 <= prefetch < replan_steps, got {replan_steps=} {prefetch=}"
            )
        self.replan_steps, self.prefetch, self.stitch = replan_steps, prefetch, stitch
        self._begin()

    def _begin(self) -> None:
        """Forgets chunk and pending request, for a new episode."""
        self.last_reply: dict[str, Any] | None = None
        self.seam: float | None = None
        self._chunk: np.ndarray | None = None
        self._position = 0  # step of the chunk that comes next, from the observation that it answers
        self._pending: Answer | None = None
        self._since = 0  # steps since the pending request's observation

    @property
    def _ahead(self) -> bool:
        """Whether requests are sent while a chunk runs."""
        return self.prefetch > 0 and self._chunk is not None

    def _due(self, extras: Mapping[str, Any]) -> dict[str, Any] | None:
        """Options of the request with this step's observation; None if this step sends no request."""
        if self._chunk is None:
            return {**extras}
        left = len(self._chunk) - self._position
        if self._pending is not None or (self._position < self.replan_steps and left > self.prefetch):
            return None
        options: dict[str, Any] = {**extras, "executed_steps": self._position}
        if self.prefetch and self.stitch and left:
            options |= {"prev_chunk": self._chunk[self._position :], "delay_steps": min(self.prefetch, left)}
        return options

    def _asked(self, answer: Answer) -> None:
        self._pending, self._since = answer, 0

    def _taken(self) -> Answer | None:
        """Takes the pending answer if this step needs it, or if it is due and has arrived; otherwise None."""
        answer = self._pending
        if answer is None or self._chunk is None:
            return None
        if self._position < len(self._chunk) and (self._since < self.prefetch or not answer.done()):
            return None
        self._pending = None
        return answer

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

    def _next(self) -> np.ndarray:
        assert self._chunk is not None
        action: np.ndarray = self._chunk[self._position]
        self._position += 1
        self._since += 1
        return action


class ChunkExecutor(_Execution[Future[dict[str, Any]]]):
    """Executes `replan_steps` actions of each chunk.

    Without prefetch the robot waits for every chunk. With `prefetch` = d the old chunk goes on for d steps after the
    observation of the next request. The request then carries d and the part of the old chunk that has not run, so that the
    server makes the new chunk continue the old one (`syvla.serving.policies.chunk_stitching`). The new chunk is entered at
    the step that is due when it arrives. If it arrives late, the robot waits for it only when the old chunk has run out.

    Args:
        client: A `PolicyClient`, or anything with its `act`.
        replan_steps: Control steps between two requests.
        prefetch: d, less than `replan_steps`; 0: wait for every chunk. A good value is control rate times latency, rounded
            up. Chunks need at least `replan_steps + prefetch` actions.
        stitch: With prefetch, whether to send the old chunk.

    Attributes:
        last_reply, seam: See `_Execution`.
    """

    def __init__(self, client: _Client, replan_steps: int, *, prefetch: int = 0, stitch: bool = True) -> None:
        super().__init__(replan_steps, prefetch, stitch)
        self.client = client
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="policy") if prefetch else None

    def step(self, images: Mapping[str, np.ndarray], state: np.ndarray, prompt: str, **extras: Any) -> np.ndarray:
        """The action for this control step, (D,), physical units; arguments as for `PolicyClient.act`."""
        options = self._due(extras)
        if options is not None and self._ahead:
            assert self._pool is not None
            self._asked(self._pool.submit(self.client.act, images, state, prompt, **options))
        elif options is not None:
            self._use(self.client.act(images, state, prompt, **options), 0)
        answer = self._taken()
        if answer is not None:
            self._use(answer.result(), self._since)
        return self._next()

    def reset(self) -> None:
        """Begins a new episode: forgets chunk and pending request, and tells the server."""
        if self._pending is not None and not self._pending.cancel():
            self._pending.exception()  # waits: the connection answers one request at a time
        self._begin()
        self.client.reset()

    def close(self) -> None:
        """Waits for a pending request and ends the thread; the client stays open."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


class AsyncChunkExecutor(_Execution[asyncio.Task[dict[str, Any]]]):
    """`ChunkExecutor` for asyncio: `action = await executor.step(...)`.

    Requests that are sent while a chunk runs are tasks of the event loop, which go on while the caller sleeps until its
    next step. Call all methods from one task.

    Args:
        client: An `AsyncPolicyClient`, or anything with its `act`.
        replan_steps, prefetch, stitch: See `ChunkExecutor`.

    Attributes:
        last_reply, seam: See `_Execution`.
    """

    def __init__(self, client: _AsyncClient, replan_steps: int, *, prefetch: int = 0, stitch: bool = True) -> None:
        super().__init__(replan_steps, prefetch, stitch)
        self.client = client

    async def step(self, images: Mapping[str, np.ndarray], state: np.ndarray, prompt: str, **extras: Any) -> np.ndarray:
        """See `ChunkExecutor.step`. Canceling it gives up the answer that it waits for; the next step asks again."""
        options = self._due(extras)
        if options is not None and self._ahead:
            self._asked(asyncio.create_task(self.client.act(images, state, prompt, **options)))
        elif options is not None:
            self._use(await self.client.act(images, state, prompt, **options), 0)
        if self._pending is not None:
            await asyncio.sleep(0)  # the request makes progress even if the caller never sleeps
        answer = self._taken()
        if answer is not None:
            self._use(await answer, self._since)
        return self._next()

    async def reset(self) -> None:
        """See `ChunkExecutor.reset`. Waits for a pending request, since canceling it would close the connection."""
        await self.close()
        self._begin()
        self.client.reset()

    async def close(self) -> None:
        """Waits for a pending request; the client stays open."""
        if self._pending is not None:
            await asyncio.gather(self._pending, return_exceptions=True)
