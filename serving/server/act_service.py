"""From a message to a reply: what the websocket and the HTTP route have in common. No torch."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from syvla.serving.contract.requests import ActRequest, PolicyHolder, RequestError, ServedPolicy
from syvla.serving.recording.by_session import Recording
from syvla.serving.wire.request_options import RequestOptions, split_options

from .action_limits import UnsafeActions
from .batching import BatchingWorker, Job, internal_error
from .memory_budget import Holding, MemoryBudget
from .metrics import Metrics
from .served_robots import ServedRobot, served_robots
from .sessions import Session, SessionTable
from .settings import ServerSettings

logger = logging.getLogger(__name__)

PROTOCOL_VERSION = 1

Decode = Callable[[], tuple[Any, str]]
"""Decodes a message: (request, codec to answer in)."""


class ActService:
    """Answers requests with the policy in use.

    Args:
        settings: Of the server.
        holder: The policy; may be empty at first, requests are then refused as not ready.

    Attributes:
        memory: What requests hold, over all clients.
        recording: Records answers where it is set.
        connections: Open websockets.
        open_requests: Requests that are being worked on.
        draining: Whether the server is stopping.
    """

    def __init__(self, settings: ServerSettings, holder: PolicyHolder) -> None:
        self.settings, self.holder = settings, holder
        self.recording: Recording | None = None
        self.metrics = Metrics()
        self.memory = MemoryBudget(settings.max_memory_bytes)
        self.sessions = SessionTable(settings.session_timeout_s)
        self.connections = self.open_requests = 0
        self.draining = False
        self.worker = BatchingWorker(
            holder,
            self.metrics,
            max_batch_size=settings.max_batch_size,
            max_wait_ms=settings.max_wait_ms,
            queue_size=settings.queue_size,
            clients=lambda: max(self.open_requests, self.connections),
        )
        self._decoders = ThreadPoolExecutor(2, thread_name_prefix="decode")
        self._robots: tuple[ServedPolicy | None, dict[str, ServedRobot]] = (None, {})
        self.metrics.gauge("sessions", "Sessions remembered.", lambda: len(self.sessions))
        self.metrics.gauge("websockets", "Open websockets.", lambda: self.connections)
        self.metrics.gauge("request_bytes", "Bytes that requests hold.", lambda: self.memory.used)
        self.metrics.gauge("episodes", "Recorded episodes; those that are lost are in the log.", self._recorded)
        self.metrics.gauge("ready", "1 once the policy is loaded and warm.", lambda: float(self.ready))

    # ------------------------------------------------------------------ life

    @property
    def ready(self) -> bool:
        """Whether requests are answered now."""
        return self.holder.current is not None and not self.draining

    def start(self) -> None:
        self.worker.start()

    async def watch_sessions(self) -> None:
        """Forgets silent sessions and ends their episodes, until cancelled."""
        while True:
            await asyncio.sleep(min(5.0, self.settings.session_timeout_s / 2))
            for session in self.sessions.expire():
                self._forget(session.name)

    def disconnected(self, connection: str) -> None:
        """A websocket has closed. Nobody can come back to the session that bears its name."""
        self.connections -= 1
        self.sessions.left(connection)
        self._forget(connection)

    def _forget(self, session: str) -> None:
        if self.holder.current is not None:
            self.holder.current.forget(session)
        if self.recording is not None:
            self.recording.ended(session, "disconnected")

    async def drain(self) -> None:
        """Takes no new requests, and returns when all that were accepted are answered, or the time is up."""
        self.draining = True
        until = time.monotonic() + self.settings.drain_timeout_s
        while (self.open_requests or not self.worker.idle) and time.monotonic() < until:
            await asyncio.sleep(0.01)

    def close(self) -> None:
        """Ends the threads once the running batch is done; what waits is refused. Seals what was recorded."""
        self.draining = True
        self.worker.stop()
        self._decoders.shutdown(cancel_futures=True)
        if self.holder.current is not None:
            self.holder.current.close()
        if self.recording is not None:
            self.recording.close()

    def _recorded(self) -> Mapping[str, int]:
        return {} if self.recording is None else self.recording.status()

    # ------------------------------------------------------------------ what is known

    def require_policy(self) -> ServedPolicy:
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

    def robots(self, policy: ServedPolicy) -> dict[str, ServedRobot]:
        """The embodiments of a policy; worked out once per policy.

        Raises:
            ValueError: If settings and policy do not belong together.
        """
        known, robots = self._robots
        if known is not policy:
            robots = served_robots(policy.metadata(), self.settings)
            self._robots = (policy, robots)
        return robots

    def swap_policy(self, policy: ServedPolicy) -> ServedPolicy | None:
        """Puts another policy in place, between two batches; returns the one before. From any thread; warm it up before.

        Raises:
            ValueError: It does not fit the settings, or, where episodes are recorded, has other robots.
        """
        robots = served_robots(policy.metadata(), self.settings)
        if self.recording is not None and not set(robots) <= self.recording.robots:
            raise ValueError(f"policy: expected robots {sorted(self.recording.robots)}, got {sorted(robots)}")
        before = self.holder.swap(policy)
        self._observe_looks(before)
        return before

    def metrics_page(self) -> str:
        """What `/metrics` answers."""
        self._observe_looks(self.holder.current)
        return self.metrics.render()

    def _observe_looks(self, policy: ServedPolicy | None) -> None:
        """The VLM's runs in the background, each once, however many replies used it."""
        for look in [] if policy is None else policy.new_looks():
            for phase, seconds in look.items():
                self.metrics.observe(phase, seconds)

    def metadata(self) -> dict[str, Any]:
        """What clients may know: the policy's own metadata, dialects, limits and the protocol's version."""
        policy, settings = self.require_policy(), self.settings
        robots, described = self.robots(policy), policy.metadata()
        embodiments = {
            name: {
                **described["embodiments"][name],
                "dialects": {dialect.name: dialect.describe() for dialect in robot.dialects},
                "limits": robot.limits.describe(),
            }
            for name, robot in robots.items()
        }
        return {
            **described,
            "embodiments": embodiments,
            "default_embodiment": settings.embodiment or (next(iter(robots)) if len(robots) == 1 else None),
            "policy_version": policy.version,
            "protocol_version": PROTOCOL_VERSION,
            "think": settings.think,
            "request_limits": {
                "max_message_bytes": settings.limits.max_message_bytes,
                "max_array_bytes": settings.limits.max_array_bytes,
                "max_pixels": settings.max_pixels,
                "max_memory_bytes": settings.max_memory_bytes,
                "max_new_tokens": settings.caps.max_new_tokens,
                "num_steps": settings.caps.num_steps,
                "deadline_s": settings.caps.deadline_s,
                "queue_size": settings.queue_size,
                "max_batch_size": settings.max_batch_size,
            },
        }

    # ------------------------------------------------------------------ one request

    async def act(self, decode: Decode, session: str | None, gone: asyncio.Event) -> tuple[dict[str, Any], str]:
        """Answers one request.

        Args:
            decode: Called in a thread, since images may take a while.
            session: Session of requests that name none; None: those have no session.
            gone: Set when nobody waits for the answer any more.

        Returns:
            (reply, codec): `actions` float32 (T, D), everything else numbers, texts, lists and maps.

        Raises:
            RequestError: No actions, and why.
        """
        with Holding(self.memory) as held:
            return await self._act(decode, session, gone, held)

    async def _act(
        self, decode: Decode, session: str | None, gone: asyncio.Event, held: Holding
    ) -> tuple[dict[str, Any], str]:
        started = time.monotonic()
        self.open_requests += 1
        self.metrics.count("requests")
        try:
            policy = self.require_policy()
            work = asyncio.get_running_loop().run_in_executor(self._decoders, self._read, policy, decode)
            options, robot, observation, codec = await work
            held.add(sum(image.nbytes for image in observation["images"].values()))
            self.metrics.observe("decode", time.monotonic() - started)
            name = options.session or session
            known = self.sessions.get(name) if name else Session("")
            if session and name:
                self.sessions.speaks_for(session, name)
            repeated = known.repeats(options.request_id)
            if options.reset:
                if not repeated:
                    known.forget_thought()
                    policy.forget(known.name)
                if not repeated and self.recording is not None and name:
                    self.recording.reset(name, options.executed_steps)
                options = options.after_reset()
            if self.recording is not None:
                self.recording.check(options, robot.name)
            if options.observe_only:
                return self._observed(replace(options, session=name), robot, observation), codec
            reply = await self._answer(policy, robot, options, observation, known, gone, started)
            self.metrics.observe("total", time.monotonic() - started)
            return reply, codec
        except Exception as error:  # whatever it is, the connection goes on
            refusal = error if isinstance(error, RequestError) else internal_error("the request", error)
            self.metrics.count("rejected", "cause", refusal.cause)
            raise refusal from None
        finally:
            self.open_requests -= 1

    def _read(self, policy: ServedPolicy, decode: Decode) -> tuple[RequestOptions, ServedRobot, dict[str, Any], str]:
        try:
            message, codec = decode()
            options, rest = split_options(message, self.settings.caps)
            robots = self.robots(policy)
            name = options.embodiment or self.settings.embodiment or (next(iter(robots)) if len(robots) == 1 else None)
            if name not in robots:
                raise ValueError(f"embodiment: expected one of {sorted(robots)}, got {name!r}")
            observation, instruction = robots[name].read(rest)
        except ValueError as error:
            raise RequestError(str(error)[:2000]) from None
        return options, robots[name], {**observation, "instruction": instruction}, codec

    async def _answer(
        self,
        policy: ServedPolicy,
        robot: ServedRobot,
        options: RequestOptions,
        observation: dict[str, Any],
        session: Session,
        gone: asyncio.Event,
        started: float,
    ) -> dict[str, Any]:
        think = self.settings.think if options.think is None else options.think
        basis = (observation["instruction"], robot.name, policy.version)
        fresh, thought = session.plan_thought(think, basis)
        request = ActRequest(
            **observation,
            seed=options.seed,
            embodiment=robot.name,
            think=fresh,
            thought=thought,
            max_new_tokens=options.max_new_tokens,
            num_steps=options.num_steps,
            session=session.name or None,
            rollout=self.recording is not None and options.episode_id is not None,
            options=options.policy,
        )
        decoded = time.monotonic()
        allowed = options.deadline_s or self.settings.deadline_s
        job = Job(request, deadline=started + allowed, allowed_s=allowed)
        await self._prepared(policy, job, gone)
        self.worker.submit(job)
        answer, version = await self._result(job, job.answer, gone)
        answered = time.monotonic()
        try:
            actions, notes = robot.limits.apply(answer.actions, request.state)
        except UnsafeActions as error:
            logger.error("%s (seed %d, policy %s)", error, request.seed, version)
            raise RequestError(str(error), status=500, cause="unsafe_actions") from None
        session.answered(answer.thought, fresh, basis)
        for phase, seconds in answer.timings.items():
            self.metrics.observe(phase, seconds)
        self._observe_looks(policy)
        timings = {"decode": decoded - started, "wait": answered - decoded, **answer.look_timings, **answer.timings}
        reply = {
            "actions": actions,
            "thought": answer.thought,
            "thought_age": session.thought_age,
            "policy_version": version,
            "seed": request.seed,
            "embodiment": robot.name,
            "limits_applied": notes,
            "timings_ms": {phase: round(seconds * 1000, 3) for phase, seconds in timings.items()},
            "policy_timing": {"infer_ms": round(sum(answer.timings.values()) * 1000, 3)},
            **answer.extras,
        }
        if options.request_id is not None:
            reply["request_id"] = options.request_id
        if self.recording is not None:
            reply |= self.recording.record(session.name, options, request, answer, actions, version)
        return reply

    async def _prepared(self, policy: ServedPolicy, job: Job, gone: asyncio.Event) -> None:
        """Waits for what the policy wants done before the worker sees the request."""
        try:
            prepared = policy.prepare(job.request)
            if prepared is not None:
                job.request = replace(job.request, prepared=prepared)
                await self._result(job, prepared.ready, gone)
        except ValueError as error:
            raise RequestError(str(error)[:2000]) from None

    async def _result(self, job: Job, awaited: Future[Any], gone: asyncio.Event) -> Any:
        """What is awaited for a job, unless the client leaves or the deadline passes before."""
        future: asyncio.Future[Any] = asyncio.wrap_future(awaited)
        leaving: asyncio.Future[Any] = asyncio.ensure_future(gone.wait())
        try:
            left = max(0.0, job.deadline - time.monotonic())
            await asyncio.wait({future, leaving}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if future.done():
                return future.result()
        finally:
            leaving.cancel()
            if not future.done():
                future.cancel()  # takes the job out of the queue; a batch that runs goes on without it
                with contextlib.suppress(asyncio.CancelledError):
                    await future
        if gone.is_set():
            raise RequestError("connection: closed before the answer", status=499, cause="disconnected")
        raise job.too_late()

    def _observed(self, options: RequestOptions, robot: ServedRobot, observation: dict[str, Any]) -> dict[str, Any]:
        if self.recording is None:
            raise RequestError("observe_only: expected a server that records (--record) and a session_id")
        return {"observed": True, **self.recording.observe(options, robot.name, observation)}
