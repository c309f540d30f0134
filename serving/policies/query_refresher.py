"""The slow half of dual-system serving: query states that a background thread keeps fresh, per session. No torch.

Section 3.1 of the paper: the VLM refreshes the query states while the expert keeps acting on fresh images and state. Each
call submits its observation and gets the newest states of its session: at once, or as soon as they are new enough. The
thread always works on the newest observation of each session and drops older ones that it did not get to.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from syvla.serving.contract.action_chunks import QueryAge

logger = logging.getLogger(__name__)

States = TypeVar("States")

MAX_AGE_S = 10.0
"""Default age, in seconds, beyond which a call waits for newer query states. Ours: several runs of a VLM that thinks."""

MAX_FAILURES = 3
"""Failures in a row after which a call waits for states of its own observation, and gets the error if there are none."""


@dataclass(frozen=True)
class QueryInput:
    """One observation that query states are computed from.

    Attributes:
        session: Whose observation it is.
        observation: Anything; handed to `compute` unchanged.
        basis: All else that the states depend on, such as the instruction; states of another basis are never used.
        group: Observations of one group may be computed together.
    """

    session: str
    observation: Any
    basis: Hashable
    group: Hashable = None


@dataclass
class _Session(Generic[States]):
    basis: Hashable
    calls: int = 0
    waiting: tuple[QueryInput, int, float] | None = None  # newest observation, its call, when it was submitted
    states: States | None = None
    states_call: int = 0
    states_time: float = 0.0
    computed_call: int = 0  # newest call whose observation was computed, successfully or not
    error: Exception | None = None
    failures: int = 0  # in a row
    last_used: float = 0.0
    waiters: list[QueryTicket[States]] = field(default_factory=list)


@dataclass(eq=False)
class QueryTicket(Generic[States]):
    """One call's claim to query states of its session.

    Attributes:
        owner: The refresher that gave it.
        number: Of the call in its session, from 1.
        done: Done once the session has states that are new enough for this call. Raises what `compute` raised for this
            very observation, or ValueError if the session was forgotten or began anew meanwhile.
    """

    owner: QueryRefresher[States]
    session: _Session[States]
    number: int
    done: Future[None] = field(default_factory=Future)

    def settle(self, error: Exception | None = None) -> None:
        """Ends the wait, with an error if one is given; does nothing if the wait was canceled."""
        if self.done.set_running_or_notify_cancel():
            self.done.set_result(None) if error is None else self.done.set_exception(error)


class QueryRefresher(Generic[States]):
    """Keeps the query states of every session fresh in a thread of its own.

    Args:
        compute: Gets observations of one group and returns their states; called in the thread, one batch at a time.
        max_age: Seconds; a call waits instead of getting older states, and raises if the VLM fails. None: no bound but
            `MAX_FAILURES`.
        max_age_calls: The same in calls of the session.
        max_sessions: Beyond so many sessions, the one that was silent longest is dropped.
        idle_seconds: Sessions that are silent for longer are dropped.
        max_batch: Most observations computed together.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[QueryInput]], Sequence[States]],
        *,
        max_age: float | None = MAX_AGE_S,
        max_age_calls: int | None = None,
        max_sessions: int = 256,
        idle_seconds: float = 300.0,
        max_batch: int = 8,
    ) -> None:
        if (max_age is not None and max_age < 0) or (max_age_calls is not None and max_age_calls < 0):
            raise ValueError(f"expected max_age and max_age_calls of at least 0, got {max_age=} {max_age_calls=}")
        self._compute = compute
        self._max_age, self._max_age_calls = max_age, max_age_calls
        self._max_sessions, self._idle, self._max_batch = max_sessions, idle_seconds, max_batch
        self._sessions: OrderedDict[str, _Session[States]] = OrderedDict()  # the session that is silent longest first
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="query-states", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        return len(self._sessions)

    def submit(self, observed: QueryInput) -> QueryTicket[States]:
        """Gives an observation to the thread and returns at once; `newest` then returns states for it.

        The ticket is done at once if the session has states that are new enough. A session's first ticket, and the first
        one after the basis changed, is done when its own observation has been computed.

        Raises:
            RuntimeError: The refresher is closed.
        """
        with self._changed:
            if self._closed:
                raise RuntimeError("the refresher of query states is closed")
            ticket = self._accept(observed)
            if self._usable(ticket):
                ticket.settle()
            else:
                ticket.session.waiters.append(ticket)
            self._changed.notify_all()
            return ticket

    def newest(self, ticket: QueryTicket[States], timeout: float | None = None) -> tuple[States, QueryAge]:
        """The newest states of a ticket's session and their age; waits until the ticket is done.

        Args:
            ticket: From `submit`.
            timeout: Longest wait in seconds.

        Raises:
            TimeoutError: The ticket was not done in time.
            Exception: See `QueryTicket.done`.
        """
        try:
            ticket.done.result(timeout)
        except TimeoutError:
            raise TimeoutError("query states: the VLM did not answer in time") from None
        with self._changed:
            session = ticket.session
            assert session.states is not None
            age = time.monotonic() - session.states_time
            return session.states, QueryAge(age, max(0, ticket.number - session.states_call))

    def drop(self, session: str) -> None:
        """Forgets a session whose episode is over or whose client has left."""
        with self._changed:
            self._forget(self._sessions.pop(session, None))

    def close(self) -> None:
        """Ends the thread after the batch that it works on; tickets that still wait raise RuntimeError."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        with self._changed:
            for session in self._sessions.values():
                self._forget(session, RuntimeError("the refresher of query states is closed"))

    # -- under the lock ------------------------------------------------------------------------------------------------

    def _accept(self, observed: QueryInput) -> QueryTicket[States]:
        now = time.monotonic()
        while self._sessions and now - next(iter(self._sessions.values())).last_used > self._idle:
            self._forget(self._sessions.popitem(last=False)[1])
        session = self._sessions.pop(observed.session, None)
        if session is None or session.basis != observed.basis:
            self._forget(session)
            session = _Session(observed.basis)
        while len(self._sessions) >= self._max_sessions:
            self._forget(self._sessions.popitem(last=False)[1])
        self._sessions[observed.session] = session
        session.calls, session.last_used = session.calls + 1, now
        session.waiting = (observed, session.calls, now)
        return QueryTicket(self, session, session.calls)

    @staticmethod
    def _forget(session: _Session[States] | None, error: Exception | None = None) -> None:
        """Settles the tickets of a session that the thread will not get to any more: they would wait forever."""
        for ticket in () if session is None else session.waiters:
            ticket.settle(
                error or ValueError("session: was forgotten or began anew while this request waited; ask again")
            )
        if session is not None:
            session.waiters.clear()

    def _usable(self, ticket: QueryTicket[States]) -> bool:
        session = ticket.session
        age = time.monotonic() - session.states_time
        return (
            session.states is not None
            and session.failures < MAX_FAILURES
            and (self._max_age is None or age <= self._max_age)
            and (self._max_age_calls is None or ticket.number - session.states_call <= self._max_age_calls)
        )

    def _settle(self, session: _Session[States]) -> None:
        """After a computation: settles the tickets for which the states are new enough, and those it was made for."""
        for ticket in [t for t in session.waiters if session.computed_call >= t.number or self._usable(t)]:
            session.waiters.remove(ticket)
            ticket.settle(None if self._usable(ticket) or session.error is None else session.error)

    def _batch(self) -> list[tuple[_Session[States], QueryInput, int, float]]:
        """Takes the waiting observations of the group whose states are oldest."""
        found = [(session, *session.waiting) for session in self._sessions.values() if session.waiting is not None]
        found.sort(key=lambda entry: (entry[0].states_time, entry[3]))
        batch = [entry for entry in found if entry[1].group == found[0][1].group][: self._max_batch]
        for session, *_ in batch:
            session.waiting = None
        return batch

    # -- in the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._closed and not (batch := self._batch()):
                    self._changed.wait()
                if self._closed:
                    return
            states, errors = self._computed([observed for _, observed, _, _ in batch])
            with self._changed:
                for (session, _, call, submitted), result, problem in zip(batch, states, errors, strict=True):
                    session.computed_call, session.error = call, problem
                    session.failures = 0 if problem is None else session.failures + 1
                    if problem is not None:
                        logger.warning("query states could not be refreshed: %s", problem)
                    else:
                        session.states, session.states_call, session.states_time = result, call, submitted
                    self._settle(session)

    def _computed(self, batch: Sequence[QueryInput]) -> tuple[list[States | None], list[Exception | None]]:
        try:
            return list(self._compute(batch)), [None] * len(batch)
        except Exception as error:
            if len(batch) == 1:
                return [None], [error]
        parts = [self._computed([one]) for one in batch]  # one bad observation must not cost the others their states
        return [states[0] for states, _ in parts], [errors[0] for _, errors in parts]
