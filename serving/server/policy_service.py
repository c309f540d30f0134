"""What a policy server keeps between requests, from its start to its end. No torch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from syvla.serving.contract.requests import PolicyBackend, PolicyHolder, RequestError
from syvla.serving.contract.robot_promises import broken_promises
from syvla.serving.recording.by_session import Recording

from .batching import BatchingWorker, Clients
from .live_view import LiveView
from .memory_budget import MemoryBudget
from .metrics import Metrics
from .served_robots import ServedRobot, describe_server, served_robots
from .sessions import SessionTable
from .settings import ServerSettings

_DECODERS = 2


class PolicyService:
    """Policy, sessions, worker thread, memory budget and metrics of a server, from start to close.

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
