"""From a message to its reply, the same for the websocket and the HTTP route: `ActService.handle`. No torch."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from syvla.serving.contract.action_limits import UnsafeActions
from syvla.serving.contract.requests import (
    ActAnswer,
    ActRequest,
    PolicyBackend,
    PolicyHolder,
    RequestError,
    broken_promises,
)
from syvla.serving.recording.by_session import Recording
from syvla.serving.wire.json_codec import decode_json, encode_json
from syvla.serving.wire.msgpack_codec import pack, unpack
from syvla.serving.wire.request_reading import RequestDefaults, read_request

from .batching import BatchingWorker, Clients, Job
from .connection_guards import Holding, MemoryBudget
from .live_view import LiveView
from .metrics import Metrics
from .refusals import without_request_data
from .served_robots import ServedRobot, describe_server, served_robots
from .sessions import Session, SessionTable
from .settings import ServerSettings

logger = logging.getLogger(__name__)

_DECODERS = 2


class ActService:
    """Answers requests with the policy in use, and keeps what outlives a request: sessions, queue, memory budget, metrics.

    Args:
        settings: Settings of the server.
        holder: Holds the policy. Until it holds one, requests are refused as not ready.

    Attributes:
        memory: Bytes that the requests of all clients hold.
        recording: Records answers; None: nothing is recorded.
        clients: Open websockets and requests.
        live: What the live page shows.
        draining: Whether the server is stopping.
    """

    def __init__(self, settings: ServerSettings, holder: PolicyHolder) -> None:
        self.settings, self.holder = settings, holder
        self.recording: Recording | None = None
        self.metrics = Metrics()
        self.memory = MemoryBudget(settings.max_memory_bytes)
        self.sessions = SessionTable(settings.session_timeout_s)
        self.clients = Clients()
        self.live = LiveView()
        self.draining = False
        self.worker = BatchingWorker(
            holder,
            self.metrics,
            max_batch_size=settings.max_batch_size,
            max_wait_ms=settings.max_wait_ms,
            queue_size=settings.queue_size,
            clients=self.clients,
        )
        self._decoders = ThreadPoolExecutor(_DECODERS, thread_name_prefix="decode")
        self._decoding = asyncio.Semaphore(_DECODERS)
        self._robots: tuple[PolicyBackend | None, dict[str, ServedRobot]] = (None, {})
        self.metrics.gauge("sessions", "Sessions remembered.", lambda: len(self.sessions))
        self.metrics.gauge("websockets", "Open websockets.", lambda: self.clients.connections)
        self.metrics.gauge("request_bytes", "Bytes that requests hold.", lambda: self.memory.used)
        self.metrics.gauge("episodes", "Recorded episodes; those that are lost are in the log.", self._recorded)
        self.metrics.gauge("episodes_lost", "Episodes that could not be recorded.", self._losses, "cause")
        self.metrics.gauge("ready", "1 once the policy is loaded and warm.", lambda: float(self.ready))

    # ------------------------------------------------------------------ from a message to its reply

    async def handle(
        self,
        message: bytes,
        gone: asyncio.Event,
        *,
        json: bool = False,
        connection: str | None = None,
        previous_ms: float | None = None,
    ) -> bytes:
        """Answers one message.

        Args:
            message: As it came.
            gone: Set when nobody waits for the answer any more.
            json: Whether the message is JSON; otherwise msgpack.
            connection: Name of the websocket, which is the session of requests that name none.
            previous_ms: How long the connection's previous reply took, for openpi's `server_timing`.

        Returns:
            The reply in the codec of the message: `actions` float32 (T, D), else numbers, texts, lists and maps.

        Raises:
            RequestError: No actions, and why. The connection can go on.
        """
        started = time.monotonic()
        self.clients.open_requests += 1
        try:
            return await self._reply_to(message, gone, json, connection, previous_ms, started)
        except Exception as error:  # whatever it is, the connection goes on
            refusal = without_request_data(error)
        finally:
            self.clients.open_requests -= 1
        self.metrics.refused(refusal.cause)
        try:
            raise refusal  # outside of `except`: it must not hold the error that led to it
        finally:
            del refusal, message  # an error and a frame that hold each other live until the collector runs

    async def _reply_to(
        self,
        message: bytes,
        gone: asyncio.Event,
        json: bool,
        connection: str | None,
        previous_ms: float | None,
        started: float,
    ) -> bytes:
        """The encoded reply; raises whatever goes wrong."""
        policy = self.require_policy()
        robots = self.robots(policy)
        async with self._decoding:  # so that no more requests are decoded and not yet counted than there are decoders
            # 1. decode and validate, in a thread, since images may take a while
            reading = self._decoders.submit(self._read, robots, message, json, connection)
            request, codec = await asyncio.wrap_future(reading)
            del reading
            seconds = {"decode": time.monotonic() - started}
            held = Holding(self.memory, sum(image.nbytes for image in request.images.values()))
        # 2. admit
        with held:
            asked = request.instruction
            request = self.live.instructed(request)
            basis = (request.instruction, request.embodiment, policy.version)  # what a kept thought depends on
            request, session = self._admit(policy, request, connection, basis)
            if request.observe_only:
                encoded = _encode(self._observe(request, session), codec)
                self.metrics.answered({})
                return encoded
            # 3. queue and answer
            answer, version = await self._answered(policy, request, started, gone, held)
            seconds["wait"] = time.monotonic() - started - seconds["decode"]
            actions, notes = await self._within_limits(robots[request.embodiment], session, request, answer, version)
            session.sends(request.embodiment, actions, request.executed_steps)
            session.answered(answer.thought, bool(request.think), basis)
            # 4. reply and record
            reply = _reply(request, answer, actions, notes, version, seconds, previous_ms)
            if request.instruction != asked:
                reply["instruction"] = request.instruction
            reply.setdefault("thought_age", session.thought_age)  # a VLM in the background has an age of its own
            if self.recording is not None:
                reply |= self.recording.record(request, answer, actions, version)
            self._show(
                asked, request, session, answer, actions, notes, {**seconds, "total": time.monotonic() - started}
            )
            # 5. encode
            encoding = time.monotonic()
            encoded = _encode(reply, codec)
            now = time.monotonic()
            self.metrics.answered({**seconds, **answer.timings, "encode": now - encoding, "total": now - started})
        return encoded

    def _read(
        self, robots: Mapping[str, ServedRobot], message: bytes, json: bool, connection: str | None
    ) -> tuple[ActRequest, str]:
        """The request in a message, and the codec to answer in."""
        settings = self.settings
        try:
            value, codec = (decode_json(message, settings.limits), "json") if json else unpack(message, settings.limits)
            dialects = {name: robot.dialects for name, robot in robots.items()}
            defaults = RequestDefaults(settings.embodiment, settings.think)
            return read_request(value, dialects, settings.caps, defaults, connection), codec
        except ValueError as error:
            raise RequestError(str(error)[:2000]) from None

    def _admit(
        self, policy: PolicyBackend, request: ActRequest, connection: str | None, basis: tuple[str, str, str]
    ) -> tuple[ActRequest, Session]:
        """Finds the request's session, which decides whether the policy thinks now, and refuses what cannot be recorded.

        A request that is sent again, since its answer was lost, finds the session as it was the first time.
        """
        session = self.sessions.get(request.session) if request.session else Session("")
        if connection and request.session:
            self.sessions.speaks_for(connection, request.session)
        repeated = session.repeats(request.request_id)
        if request.reset:
            if not repeated:
                session.forget_thought()
                policy.forget(session.name)
                if self.recording is not None and request.session:
                    self.recording.reset(request.session, request.executed_steps)
            request = replace(request, executed_steps=None)  # it was about the last chunk of the episode that is over
        if self.recording is not None:
            self.recording.check(request)
        think, thought = session.plan_thought(request.think, basis)
        rollout = self.recording is not None and request.episode_id is not None
        return replace(request, think=think, thought=thought, rollout=rollout), session

    def _show(
        self,
        asked: str,
        request: ActRequest,
        session: Session,
        answer: ActAnswer,
        actions: np.ndarray,
        notes: list[str],
        seconds: Mapping[str, float],
    ) -> None:
        """Metrics of the client, and the live page."""
        report = request.client_report
        if report is not None:
            self.metrics.client_reported(report, session.client_counts)
            session.client_counts = report.counts
        self.live.answered(asked, request, answer, actions, notes, seconds)

    def _observe(self, request: ActRequest, session: Session) -> dict[str, Any]:
        if self.recording is None:
            raise RequestError("observe_only: expected a server that records (--record) and a session_id")
        said = {"observed": True, **self.recording.observe(request)}
        if request.correction is not None:
            session.sent = None  # what runs before the next chunk is the person's, and the client alone knows it
        return {**said, "request_id": request.request_id} if request.request_id is not None else said

    async def _answered(
        self, policy: PolicyBackend, request: ActRequest, started: float, gone: asyncio.Event, held: Holding
    ) -> tuple[ActAnswer, str]:
        """The policy's answer, and the version of the policy that gave it."""
        allowed = request.deadline_s or self.settings.deadline_s
        job = Job(request, deadline=started + allowed, allowed_s=allowed)
        try:
            pending = policy.submit_observation(request)
            if pending is not None:
                job.request = replace(request, pending_queries=pending)
                await job.result(pending.done, gone)
        except ValueError as error:
            raise RequestError(str(error)[:2000]) from None
        self.worker.submit(job)
        try:
            answered: tuple[ActAnswer, str] = await job.result(job.answer, gone)
            return answered
        finally:
            held.give_back_after(
                job.answer
            )  # a batch that runs goes on, and holds the images, when the client has left

    @staticmethod
    async def _within_limits(
        robot: ServedRobot, session: Session, request: ActRequest, answer: ActAnswer, version: str
    ) -> tuple[np.ndarray, list[str]]:
        """The actions as they may leave the server, and what was changed in them.

        They go on from what runs before them, as far as the client says. What really ran the client alone knows, so it
        limits again, see `ChunkExecutor`.
        """
        previous, entered = request.previous, 0
        ran = session.commands_before(request.embodiment, request.executed_steps)
        if previous is not None and previous.delay and previous.actions.shape[1:] == answer.actions.shape[1:]:
            entered, running = previous.delay, previous.actions[: previous.delay]
            ran = running if ran is None else np.concatenate([ran, running])
        limited = partial(robot.limits.apply, answer.actions, request.state, ran, entered)
        try:
            # Plans to come to rest take tenths of a second, for which other clients must not wait.
            if np.isfinite(robot.limits.max_jerk).any():
                return await asyncio.to_thread(limited)
            return limited()
        except UnsafeActions as error:
            logger.error("%s (seed %d, policy %s)", error, request.seed, version)
            raise RequestError(str(error), status=500, cause="unsafe_actions") from None

    # ------------------------------------------------------------------ life

    @property
    def ready(self) -> bool:
        """Whether requests are answered now."""
        return self.holder.current is not None and not self.draining

    def start(self) -> None:
        """Starts the worker thread."""
        self.worker.start()

    async def watch_sessions(self) -> None:
        """Forgets silent sessions, ends their episodes and counts background runs of the VLM, until canceled."""
        while True:
            await asyncio.sleep(min(5.0, self.settings.session_timeout_s / 2))
            for session in self.sessions.expire():
                self._forget(session.name)
            self._count_vlm_runs(self.holder.current)

    def disconnected(self, connection: str) -> None:
        """Ends the session of a websocket that has closed: no client can come back to a session with its name."""
        self.clients.connections -= 1
        self.sessions.left(connection)
        self._forget(connection)

    def _forget(self, session: str) -> None:
        self.live.forget(session)
        if self.holder.current is not None:
            self.holder.current.forget(session)
        if self.recording is not None:
            self.recording.ended(session, "disconnected")

    async def drain(self) -> None:
        """Refuses new requests, and returns when all accepted ones are answered or `drain_timeout_s` has passed."""
        self.draining = True
        until = time.monotonic() + self.settings.drain_timeout_s
        while (self.clients.open_requests or not self.worker.idle) and time.monotonic() < until:
            await asyncio.sleep(0.01)

    def close(self) -> None:
        """Ends the threads after the running batch, refuses the requests that wait, and seals what was recorded."""
        self.draining = True
        self.worker.stop()
        self._decoders.shutdown(cancel_futures=True)
        if self.holder.current is not None:
            self.holder.current.close()
        if self.recording is not None:
            self.recording.close()

    def _losses(self) -> Mapping[str, int]:
        return {} if self.recording is None else self.recording.losses()

    def _recorded(self) -> Mapping[str, int]:
        return {} if self.recording is None else self.recording.status()

    # ------------------------------------------------------------------ policy

    def require_policy(self) -> PolicyBackend:
        """The policy in use.

        Raises:
            RequestError: There is none yet, or the server is stopping (503).
        """
        policy = self.holder.current
        if self.draining:
            raise RequestError("server: stopping", status=503, cause="stopping", retry_after=5)
        if policy is None:
            raise RequestError("server: the policy is still loading", status=503, cause="not_ready", retry_after=2)
        return policy

    def robots(self, policy: PolicyBackend) -> dict[str, ServedRobot]:
        """The embodiments of a policy. The table is made once per policy.

        Raises:
            ValueError: If settings and policy do not belong together.
        """
        if self._robots[0] is not policy:
            self._robots = (policy, served_robots(policy.metadata(), self.settings))
        return self._robots[1]

    def swap_policy(self, policy: PolicyBackend) -> PolicyBackend | None:
        """Replaces the policy between two batches and returns the one before. May be called from any thread.

        Args:
            policy: The next policy, already warmed up.

        Raises:
            ValueError: The policy does not fit the settings, has other robots than the ones being recorded, or breaks what
                clients were told about a robot: names and order of dimensions, units, control rate, views. The old policy
                stays.
        """
        robots = served_robots(policy.metadata(), self.settings)
        present = self.holder.current
        if present is not None and (problems := broken_promises(present.metadata(), policy.metadata())):
            raise ValueError(
                f"policy {policy.version}: is not what clients were told: {'; '.join(problems)[:1000]}; start another server"
            )
        if self.recording is not None and not set(robots) <= self.recording.robots:
            raise ValueError(f"policy: expected robots {sorted(self.recording.robots)}, got {sorted(robots)}")
        before = self.holder.swap(policy)
        self._count_vlm_runs(before)
        return before

    def metrics_page(self) -> str:
        """What `/metrics` answers."""
        self._count_vlm_runs(self.holder.current)
        return self.metrics.render()

    def _count_vlm_runs(self, policy: PolicyBackend | None) -> None:
        """Adds every background run of the VLM to the histograms once, however many replies used it."""
        for run in [] if policy is None else policy.take_vlm_seconds():
            for phase, seconds in run.items():
                self.metrics.observe(phase, seconds)

    def metadata(self) -> dict[str, Any]:
        """What clients may know, see `describe_server`."""
        policy = self.require_policy()
        return describe_server(policy, self.robots(policy), self.settings)


def _reply(
    request: ActRequest,
    answer: ActAnswer,
    actions: np.ndarray,
    notes: list[str],
    version: str,
    seconds: Mapping[str, float],
    previous_ms: float | None,
) -> dict[str, Any]:
    """The reply to a request, without what session and recording add.

    The time that encoding takes cannot stand in it; `/metrics` has it. `server_timing` is what openpi's servers send.
    """
    timings = {**seconds, **answer.vlm_seconds, **answer.timings}
    reply = {
        "actions": actions,
        "thought": answer.thought,
        "policy_version": version,
        "seed": request.seed if request.noise is None else None,
        "embodiment": request.embodiment,
        "limits_applied": notes,
        "timings_ms": {phase: round(value * 1000, 3) for phase, value in timings.items()},
        "policy_timing": {"infer_ms": round(sum(answer.timings.values()) * 1000, 3)},
        "server_timing": {"infer_ms": round(seconds["wait"] * 1000, 3)},
        **answer.extras,
    }
    if previous_ms is not None:
        reply["server_timing"]["prev_total_ms"] = previous_ms
    if request.request_id is not None:
        reply["request_id"] = request.request_id
    # openpi's `ActionChunkBroker` slices every array of a reply by the step.
    assert all(len(leaf) >= len(actions) for leaf in reply.values() if isinstance(leaf, np.ndarray))
    return reply


def _encode(reply: dict[str, Any], codec: str) -> bytes:
    return encode_json(reply) if codec == "json" else pack(reply, codec)
