"""What a policy server keeps between requests, from its start to its end. No torch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from syvla.serving.contract.requests import PolicyBackend, PolicyHolder, RequestError
from syvla.serving.recording.by_session import Recording

from .batching import BatchingWorker, Clients
from .memory_budget import MemoryBudget
from .metrics import Metrics
from .served_robots import ServedRobot, describe_server, served_robots
from .sessions import SessionTable
from .settings import ServerSettings


class PolicyService:
    """Policy, sessions, worker thread, memory budget and metrics of a server, from start to close.

    Args:
        settings: Of the server.
        holder: The policy; may be empty at first, requests are then refused as not ready.

    Attributes:
        memory: What requests hold, over all clients.
        recording: Records answers where it is set.
        clients: Open websockets and requests.
        draining: Whether the server is stopping.
    """

    def __init__(self, settings: ServerSettings, holder: PolicyHolder) -> None:
        self.settings, self.holder = settings, holder
        self.recording: Recording | None = None
        self.metrics = Metrics()
        self.memory = MemoryBudget(settings.max_memory_bytes)
        self.sessions = SessionTable(settings.session_timeout_s)
        self.clients = Clients()
        self.draining = False
        self.worker = BatchingWorker(
            holder,
            self.metrics,
            max_batch_size=settings.max_batch_size,
            max_wait_ms=settings.max_wait_ms,
            queue_size=settings.queue_size,
            clients=self.clients,
        )
        self._decoders = ThreadPoolExecutor(2, thread_name_prefix="decode")
        self._robots: tuple[PolicyBackend | None, dict[str, ServedRobot]] = (None, {})
        self.metrics.gauge("sessions", "Sessions remembered.", lambda: len(self.sessions))
        self.metrics.gauge("websockets", "Open websockets.", lambda: self.clients.connections)
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
        """Forgets silent sessions, ends their episodes and counts background runs of the VLM, until canceled."""
        while True:
            await asyncio.sleep(min(5.0, self.settings.session_timeout_s / 2))
            for session in self.sessions.expire():
                self._forget(session.name)
            self._count_vlm_runs(self.holder.current)

    def disconnected(self, connection: str) -> None:
        """A websocket has closed. Nobody can come back to the session that bears its name."""
        self.clients.connections -= 1
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
        while (self.clients.open_requests or not self.worker.idle) and time.monotonic() < until:
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
        """The embodiments of a policy; worked out once per policy.

        Raises:
            ValueError: If settings and policy do not belong together.
        """
        if self._robots[0] is not policy:
            self._robots = (policy, served_robots(policy.metadata(), self.settings))
        return self._robots[1]

    def swap_policy(self, policy: PolicyBackend) -> PolicyBackend | None:
        """Puts another policy in place, between two batches; returns the one before. From any thread; warm it up before.

        Raises:
            ValueError: It does not fit the settings, or, where episodes are recorded, has other robots.
        """
        robots = served_robots(policy.metadata(), self.settings)
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
