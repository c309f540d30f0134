"""The worker thread behind a bounded queue: answers requests of several clients in one batch."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from syvla.serving.contract.requests import ActAnswer, ActRequest, PolicyBackend, PolicyHolder, RequestError

from .metrics import Metrics

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Job:
    """A request in the queue.

    Attributes:
        request: What is asked.
        deadline: Monotonic time after which nothing is computed for it.
        allowed_s: Seconds from the request to the deadline, for messages.
        answer: Result: (answer, version of the policy that gave it). Canceling the future drops the job.
    """

    request: ActRequest
    deadline: float
    allowed_s: float
    submitted: float = field(default_factory=time.monotonic)
    answer: Future[tuple[ActAnswer, str]] = field(default_factory=Future)

    def too_late(self) -> RequestError:
        """The error of a request that was not answered by its deadline."""
        text = f"deadline: expected an answer within {self.allowed_s:g} s, which have passed"
        return RequestError(text, status=503, cause="deadline", retry_after=1)

    async def result(self, awaited: Future[Any], gone: asyncio.Event) -> Any:
        """The result of `awaited`, unless the client leaves or the deadline passes before.

        Args:
            awaited: The job's `answer`, or what must be there before it can be queued.
            gone: Set when the client has left.

        Raises:
            RequestError: The client has left, or the deadline has passed; `awaited` is then canceled.
        """
        future: asyncio.Future[Any] = asyncio.wrap_future(awaited)
        leaving: asyncio.Future[Any] = asyncio.ensure_future(gone.wait())
        try:
            left = max(0.0, self.deadline - time.monotonic())
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
        raise self.too_late()


def batch_key(request: ActRequest) -> Hashable:
    """What requests must have in common to be answered together.

    Thoughts may differ, since each sample has its own prompt. Rollouts stay apart: they may be sampled in another way.
    So do guided chunks, whose flow steps take a backward pass each, and chunks that go on from known actions.
    """
    longest_thought = request.max_new_tokens if request.think else None
    previous = request.previous
    continuing = None if previous is None else (previous.max_guidance_weight, previous.known)
    continuing = (
        None if continuing == (None, False) else continuing
    )  # the form without gradients, or nothing to continue
    return request.embodiment, request.think, longest_thought, request.num_steps, request.rollout, continuing


@dataclass
class Clients:
    """Who may send a request at present; the worker does not wait for more of them than there are.

    Attributes:
        connections: Open websockets.
        open_requests: Requests that are being worked on, over websockets or HTTP.
    """

    connections: int = 0
    open_requests: int = 0


class BatchingWorker:
    """Runs the policy in a thread of its own, so that the event loop never waits for the policy.

    A batch holds waiting requests with the batch key of the oldest one. It starts when it is full, when every connected
    client is in it, or when its oldest request has waited `max_wait_ms`; while one batch runs, the next one gathers.

    Args:
        holder: The policy in use; read once per batch.
        metrics: Gets queue length, batch sizes and rejections.
        max_batch_size: Most requests answered at once.
        max_wait_ms: Longest wait for further requests, in milliseconds.
        queue_size: Most requests that wait.
        clients: For the early start of a batch.
    """

    def __init__(
        self,
        holder: PolicyHolder,
        metrics: Metrics,
        *,
        max_batch_size: int,
        max_wait_ms: float,
        queue_size: int,
        clients: Clients,
    ) -> None:
        self.holder, self.metrics, self.clients = holder, metrics, clients
        self.max_batch_size, self.max_wait, self.queue_size = max_batch_size, max_wait_ms / 1000, queue_size
        self._queue: deque[Job] = deque()
        self._changed = threading.Condition()
        self._running = 0
        self._stopping = False
        self._batch_seconds = 0.0  # of the last batch
        self._thread = threading.Thread(target=self._work, name="policy-worker", daemon=True)
        metrics.gauge("queue_length", "Requests that wait for the policy.", lambda: len(self._queue))
        metrics.gauge("requests_running", "Requests in the batch that the policy works on.", lambda: self._running)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Refuses the jobs that wait, finishes the batch that runs, and ends the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join()
        for job in self._queue:
            _fail(job, RequestError("server: stopping", status=503, cause="stopping", retry_after=5))
        self._queue.clear()

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not self._queue and not self._running

    def submit(self, job: Job) -> None:
        """Queues a job.

        Raises:
            RequestError: The queue is full (503), or the worker is stopping.
        """
        with self._changed:
            if self._stopping:
                raise RequestError("server: stopping", status=503, cause="stopping", retry_after=5)
            if len(self._queue) >= self.queue_size:
                self._drop_dead()
            if len(self._queue) >= self.queue_size:
                batches = math.ceil(len(self._queue) / self.max_batch_size)
                after = max(1, math.ceil(batches * self._batch_seconds))
                raise RequestError(
                    f"queue: expected at most {self.queue_size} waiting requests, and there are as many; try again in "
                    f"{after} s",
                    status=503,
                    cause="queue_full",
                    retry_after=after,
                )
            self._queue.append(job)
            self._changed.notify_all()

    # ------------------------------------------------------------------ the thread

    def _work(self) -> None:
        while True:
            gathered = self._gather()
            if gathered is None:
                return
            policy, jobs = gathered
            started = time.monotonic()
            for job in jobs:
                self.metrics.observe("queue", started - job.submitted)
            self.metrics.count("batches")
            self.metrics.count("batched_requests", by=len(jobs))
            try:
                self._answer(policy, jobs)
            finally:
                del gathered, jobs  # not kept while the thread waits for the next ones
                with self._changed:
                    self._running = 0
                    self._batch_seconds = time.monotonic() - started

    def _gather(self) -> tuple[PolicyBackend, list[Job]] | None:
        """The next batch, or None at the end."""
        # The lock guards the queue alone. The policy runs without it, so that requests are queued, refused and dropped while a
        # batch is computed.
        with self._changed:
            while not self._stopping:
                self._drop_dead()
                policy = self.holder.current
                if not self._queue or policy is None:
                    self._changed.wait(0.1)  # wakes up by itself, since nobody notifies it of a new policy
                    continue
                key = batch_key(self._queue[0].request)
                jobs = [job for job in self._queue if batch_key(job.request) == key][: self.max_batch_size]
                # A batch that is not full waits only as long as some client that is connected has not asked yet, and never
                # longer than `max_wait` after its first request: a lone robot is answered at once.
                left = self._queue[0].submitted + self.max_wait - time.monotonic()
                connected = max(self.clients.connections, self.clients.open_requests)
                if len(jobs) < min(self.max_batch_size, connected) and left > 0:
                    self._changed.wait(left)
                    continue
                for job in jobs:
                    self._queue.remove(job)
                # From here on a client that leaves can no longer cancel its request; those that have left drop out.
                jobs = [job for job in jobs if job.answer.set_running_or_notify_cancel()]
                self._running = len(jobs)
                if jobs:
                    return policy, jobs
        return None

    def _drop_dead(self) -> None:
        """Removes jobs whose client has left or whose deadline has passed."""
        now = time.monotonic()
        for job in [job for job in self._queue if job.answer.cancelled() or job.deadline < now]:
            self._queue.remove(job)
            if not job.answer.cancelled():
                _fail(job, job.too_late())

    def _answer(self, policy: PolicyBackend, jobs: list[Job]) -> None:
        try:
            answers = policy.answer([job.request for job in jobs])
            if len(answers) != len(jobs):
                raise RuntimeError(f"the policy gave {len(answers)} answers to {len(jobs)} requests")
            for job, answer in zip(jobs, answers, strict=True):
                job.answer.set_result((answer, policy.version))
        except Exception as error:
            if len(jobs) > 1:  # one bad request must not cost the others their answers
                logger.info("a batch of %d failed (%s); answering each one alone", len(jobs), error)
                for job in jobs:
                    if not job.answer.done():
                        self._answer(policy, [job])
            else:
                jobs[0].answer.set_exception(_reported(error))


def _fail(job: Job, error: RequestError) -> None:
    if job.answer.set_running_or_notify_cancel():
        job.answer.set_exception(error)


def _reported(error: Exception) -> RequestError:
    """What a client may learn about an error: the text if the request is at fault, nothing from inside the server."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, ValueError):
        return RequestError(str(error)[:2000])
    return internal_error("the policy", error)


def internal_error(what: str, error: Exception) -> RequestError:
    """The error that tells the client only that `what` failed; the log gets the cause."""
    logger.error("%s failed", what, exc_info=error)
    return RequestError(f"server: {what} failed; its log says why", status=500, cause="internal")
