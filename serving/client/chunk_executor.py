"""Turns action chunks into one action per control step, waiting for the policy or asking it ahead of time. No torch."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from typing import Any, Protocol

import numpy as np

from syvla.serving.contract.action_limits import ActionLimits
from syvla.serving.contract.answer_delay import MeasuredDelay
from syvla.serving.contract.chunk_seams import SeamMode, Seams

from .chunk_execution import ChunkExecution
from .silence import Watchdog

logger = logging.getLogger(__name__)

_LAST_WAIT_S = 1.0
"""Seconds that `close` waits for a request that is under way, so that its client can be used afterwards."""


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


class ChunkExecutor(ChunkExecution[Future[dict[str, Any]]]):
    """Executes `replan_steps` actions of each chunk, and goes on where the policy is silent.

    Without prefetch the robot waits for every chunk, as long as its watchdog allows. With `prefetch` = d the old chunk goes
    on for d steps after the observation of the next request. With seams "rtc" and "rtc_identity" the request then carries d
    and the part of the old chunk that has not run, so that the server makes the new chunk continue the old one
    (`syvla.serving.policies.in_process.continue_chunk`). The new chunk is entered at the step that is due when it arrives.

    Requests run in a thread. A step never takes longer than `Watchdog.max_wait_s`, whatever becomes of server and network,
    but for the first chunk of an episode: before it there is no command to hold. A failed request raises only then. From
    then on, failures and late answers lead to what `Watchdog.on_silence` says; `report` and `counts` tell of them.

    Every command is within the limits of `syvla.serving.contract.action_limits` over the whole sequence that runs, seams,
    holds and new episodes included. A chunk whose action must not run (numbers that are not finite, or beyond limits with
    `on_violation: refuse`) is dropped, and the robot rests.

    A new instruction ends the old one's chunk and asks at once; an answer to the old one that is still under way is dropped.

    Args:
        client: A `PolicyClient`, or anything with its `act`; and with its `correct`, where a person takes over.
        replan_steps: Control steps between two requests.
        prefetch: d, less than `replan_steps`; 0: wait for every chunk. A good value is control rate times latency, rounded
            up. Chunks need at least `replan_steps + prefetch` actions. Or a `MeasuredDelay`: d follows the answers that come.
        seams: How a chunk goes over into the next, see `syvla.serving.contract.chunk_seams`: a name, or `Seams` with
            options. None: "rtc_identity" with prefetch, "switch" without.
        watchdog: Limits of time, and what happens beyond them.
        limits: Further limits of the commands, beside those that the server names.

    Attributes:
        last_reply, seam, report, counts: See `ChunkExecution`.
    """

    def __init__(
        self,
        client: _Client,
        replan_steps: int,
        *,
        prefetch: int | MeasuredDelay = 0,
        seams: Seams | SeamMode | None = None,
        watchdog: Watchdog | None = None,
        limits: ActionLimits | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(client, replan_steps, prefetch, seams, watchdog, limits)

    def step(self, images: Mapping[str, np.ndarray], state: np.ndarray, prompt: str, **extras: Any) -> np.ndarray:
        """The action for this control step, (D,), physical units; arguments as for `PolicyClient.act`.

        Raises:
            PolicyError, Unreachable: The first request of the episode failed.
            TimeoutError: The first chunk of the episode did not come in time.
            UnsafeActions: The first action of the episode must not run.
            ValueError: The chunks are too short for the chosen seams.
        """
        self._embodiment = extras.get("embodiment")
        self._begin_step(prompt)
        if self._recording is not None:
            wait([self._recording], timeout=self._patience())
        if self._still_recording():
            return self._command(state)
        if self._abandoned is not None:
            wait([self._abandoned], timeout=self._patience())
        options = self._request(extras)
        if options is not None:
            self._asked(_in_thread(lambda: self.client.act(images, state, prompt, **options)))
        if self._pending is not None:
            wait([self._pending], timeout=self._patience())
        self._collect()
        return self._command(state)

    def correct(
        self, images: Mapping[str, np.ndarray], state: np.ndarray, prompt: str, action: np.ndarray, **extras: Any
    ) -> np.ndarray:
        """The command of a person who acts at this control step instead of the policy, (D,), within the limits.

        Call it in place of `step` at every control step of the person. A server that records keeps observation and command as
        a correction; that happens in the background and delays nothing. What could not be recorded is logged, and counted as
        `corrections_lost`. The first `step` afterwards asks for a new chunk.

        Args:
            images, state, prompt: The observation, as for `step`.
            action: The person's command, (D,), physical units, as the policy's actions are.
            **extras: As for `step`.

        Raises:
            ValueError: The episode has had no chunk yet.
            UnsafeActions: The command must not run.
        """
        self._embodiment = extras.get("embodiment")
        abandoned, before, since = self._pending or self._abandoned, self._recording, self._since
        command, ran = self._taken_over(action, state, prompt)

        def record() -> dict[str, Any]:
            wait([answer for answer in (abandoned, before) if answer is not None])
            said = self._ran_before(ran, abandoned, since)
            try:
                reply: dict[str, Any] = self.client.correct(images, state, prompt, command, **said, **extras)
                return reply
            except Exception as error:
                return self._correction_lost(error)

        self._recording = _in_thread(record)
        return command

    def reset(self) -> None:
        """Begins a new episode: forgets chunk and pending request, and tells the server. Returns at once."""
        self._begin()
        self.client.reset()

    def close(self) -> None:
        """Waits a moment for a request that is under way; the client stays open."""
        last = (self._pending, self._abandoned, self._recording)
        wait([answer for answer in last if answer is not None], timeout=_LAST_WAIT_S)


def _in_thread(send: Callable[[], dict[str, Any]]) -> Future[dict[str, Any]]:
    """Sends a request in a thread that does not keep the process alive: a robot's program must be able to end."""
    answer: Future[dict[str, Any]] = Future()

    def ask() -> None:
        try:
            reply = send()
        except BaseException as error:
            answer.set_exception(error)
        else:
            answer.set_result(reply)

    threading.Thread(target=ask, name="policy", daemon=True).start()
    return answer


class AsyncChunkExecutor(ChunkExecution[asyncio.Task[dict[str, Any]]]):
    """`ChunkExecutor` for asyncio: `action = await executor.step(...)`.

    Requests are tasks of the event loop, which go on while the caller sleeps until its next step. Call all methods from one
    task.

    Args:
        client: An `AsyncPolicyClient`, or anything with its `act`; and with its `correct`, where a person takes over.
        replan_steps, prefetch, seams, watchdog, limits: See `ChunkExecutor`.

    Attributes:
        last_reply, seam, report, counts: See `ChunkExecution`.
    """

    def __init__(
        self,
        client: _AsyncClient,
        replan_steps: int,
        *,
        prefetch: int | MeasuredDelay = 0,
        seams: Seams | SeamMode | None = None,
        watchdog: Watchdog | None = None,
        limits: ActionLimits | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(client, replan_steps, prefetch, seams, watchdog, limits)

    async def step(self, images: Mapping[str, np.ndarray], state: np.ndarray, prompt: str, **extras: Any) -> np.ndarray:
        """See `ChunkExecutor.step`. Canceling it keeps the request that is under way for the next step."""
        self._embodiment = extras.get("embodiment")
        self._begin_step(prompt)
        if self._recording is not None:
            await _wait(self._recording, self._patience())
        if self._still_recording():
            return self._command(state)
        if self._abandoned is not None:
            await _wait(self._abandoned, self._patience())
        options = self._request(extras)
        if options is not None:
            task = asyncio.create_task(self.client.act(images, state, prompt, **options))
            task.add_done_callback(_noticed)
            self._asked(task)
        if self._pending is not None:
            await _wait(self._pending, self._patience())
        self._collect()
        return self._command(state)

    async def correct(
        self, images: Mapping[str, np.ndarray], state: np.ndarray, prompt: str, action: np.ndarray, **extras: Any
    ) -> np.ndarray:
        """See `ChunkExecutor.correct`."""
        self._embodiment = extras.get("embodiment")
        abandoned, before, since = self._pending or self._abandoned, self._recording, self._since
        command, ran = self._taken_over(action, state, prompt)
        self._recording = asyncio.create_task(
            self._record(abandoned, before, since, ran, (images, state, prompt, command), extras)
        )
        await asyncio.sleep(0)  # it makes progress even if the caller never sleeps
        return command

    async def _record(
        self,
        abandoned: asyncio.Task[dict[str, Any]] | None,
        before: asyncio.Task[dict[str, Any]] | None,
        since: int,
        ran: int | None,
        correction: tuple[Any, ...],
        extras: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Sends a correction once what is under way before it is done; arguments as in `correct`."""
        earlier = [answer for answer in (abandoned, before) if answer is not None]
        try:
            if earlier:
                await asyncio.wait(earlier)
            reply: dict[str, Any] = await self.client.correct(
                *correction, **self._ran_before(ran, abandoned, since), **extras
            )
            return reply
        except asyncio.CancelledError as error:
            self._correction_lost(error)
            if before is not None:
                before.cancel()
            raise
        except Exception as error:
            return self._correction_lost(error)

    async def reset(self) -> None:
        """See `ChunkExecutor.reset`."""
        self._begin()
        self.client.reset()

    async def close(self) -> None:
        """Waits a moment for what is under way, then cancels it; the client stays open. A correction is then lost."""
        tasks = [task for task in (self._pending, self._abandoned, self._recording) if task is not None]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=_LAST_WAIT_S)
            for task in late:
                task.cancel()


async def _wait(task: asyncio.Task[dict[str, Any]], seconds: float) -> None:
    await asyncio.sleep(0)  # the request makes progress even if the caller never sleeps
    if seconds:
        await asyncio.wait({task}, timeout=seconds)


def _noticed(task: asyncio.Task[dict[str, Any]]) -> None:
    """Fetches the error of a request that nobody may ask for any more; asyncio would log it as forgotten."""
    if not task.cancelled():
        task.exception()
