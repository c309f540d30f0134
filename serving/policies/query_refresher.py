"""The slow half of dual-system serving: query states that a background thread keeps fresh, per session. No torch.

Section 3.1 of the paper: the VLM refreshes the query states while the expert keeps acting on fresh images and state. Each
call leaves its observation here and takes the newest states of its session, at once, or as soon as they are new enough.
The thread always works on the newest observation of each session; older ones that it did not get to are dropped.
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


@dataclass(frozen=True)
class Sight:
    """One observation left for the slow half.

    Attributes:
        session: Whose it is.
        observation: Anything; handed to `compute` as it is.
        basis: All else that the states depend on, such as the instruction; states of another basis are never used.
        group: Sights of one group may be computed together.
    """

    session: str
    observation: Any
    basis: Hashable
    group: Hashable = None


@dataclass
class _Session(Generic[States]):
    basis: Hashable
    calls: int = 0
    waiting: tuple[Sight, int, float] | None = None  # newest sight, its call, when it was taken
    states: States | None = None
    states_call: int = 0
    states_time: float = 0.0
    seen_call: int = 0  # newest call whose sight was computed, successfully or not
    error: Exception | None = None
    last_used: float = 0.0
    waiters: list[Call[States]] = field(default_factory=list)


@dataclass(eq=False)
class Call(Generic[States]):
    """An observation that was left for the slow half.

    Attributes:
        owner: Where it was left.
        number: Among those of its session.
        done: Done once the session has states that are new enough for it. Raises what `compute` raised for this very
            observation, or ValueError if the session was forgotten or began anew meanwhile.
    """

    owner: QueryRefresher[States]
    session: _Session[States]
    number: int
    done: Future[None] = field(default_factory=Future)

    def settle(self, error: Exception | None = None) -> None:
        """Ends the wait, unless nobody waits any more."""
        if self.done.set_running_or_notify_cancel():
            self.done.set_result(None) if error is None else self.done.set_exception(error)


class QueryRefresher(Generic[States]):
    """Keeps the query states of every session fresh in a thread of its own.

    Args:
        compute: Sights of one group to their states; called in the thread, one batch at a time.
        max_age: Seconds; a call that comes upon older states waits until newer ones are there. None: no bound.
        max_age_calls: The same in calls of the session.
        max_sessions: The session that was silent longest is dropped for a further one.
        idle_seconds: Sessions silent for longer are dropped.
        max_batch: Most sights computed together.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[Sight]], Sequence[States]],
        *,
        max_age: float | None = None,
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
        self._sessions: OrderedDict[str, _Session[States]] = OrderedDict()  # the longest silent first
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="query-states", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        return len(self._sessions)

    def leave(self, sight: Sight) -> Call[States]:
        """Leaves an observation; `take` then gives states for it. Never waits.

        A session's first one is ready when it was looked at, as is the first one after its basis changed.

        Raises:
            RuntimeError: The refresher is closed.
        """
        with self._changed:
            if self._closed:
                raise RuntimeError("the refresher of query states is closed")
            call = self._leave(sight)
            if self._usable(call):
                call.settle()
            else:
                call.session.waiters.append(call)
            self._changed.notify_all()
            return call

    def take(self, call: Call[States], timeout: float | None = None) -> tuple[States, QueryAge]:
        """The newest states of a call's session and their age; waits until the call is ready.

        Args:
            call: From `leave`.
            timeout: Longest wait in seconds.

        Raises:
            TimeoutError: The slow half did not answer in time.
            Exception: See `Call.done`.
        """
        try:
            call.done.result(timeout)
        except TimeoutError:
            raise TimeoutError("query states: the VLM did not answer in time") from None
        with self._changed:
            session = call.session
            assert session.states is not None
            age = time.monotonic() - session.states_time
            return session.states, QueryAge(age, max(0, call.number - session.states_call))

    def drop(self, session: str) -> None:
        """Forgets a session: its episode is over, or it has gone."""
        with self._changed:
            self._forget(self._sessions.pop(session, None))

    def close(self) -> None:
        """Ends the thread after the batch that it works on; waiting calls raise RuntimeError."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        with self._changed:
            for session in self._sessions.values():
                self._forget(session, RuntimeError("the refresher of query states is closed"))

    # -- under the lock ------------------------------------------------------------------------------------------------

    def _leave(self, sight: Sight) -> Call[States]:
        now = time.monotonic()
        while self._sessions and now - next(iter(self._sessions.values())).last_used > self._idle:
            self._forget(self._sessions.popitem(last=False)[1])
        session = self._sessions.pop(sight.session, None)
        if session is None or session.basis != sight.basis:
            self._forget(session)
            session = _Session(sight.basis)
        while len(self._sessions) >= self._max_sessions:
            self._forget(self._sessions.popitem(last=False)[1])
        self._sessions[sight.session] = session
        session.calls, session.last_used = session.calls + 1, now
        session.waiting = (sight, session.calls, now)
        return Call(self, session, session.calls)

    @staticmethod
    def _forget(session: _Session[States] | None, error: Exception | None = None) -> None:
        """Tells the calls of a session that nothing is computed for any more; their observations would wait for ever."""
        for call in () if session is None else session.waiters:
            call.settle(
                error or ValueError("session: was forgotten or began anew while this request waited; ask again")
            )
        if session is not None:
            session.waiters.clear()

    def _usable(self, call: Call[States]) -> bool:
        session = call.session
        age = time.monotonic() - session.states_time
        return (
            session.states is not None
            and (self._max_age is None or age <= self._max_age)
            and (self._max_age_calls is None or call.number - session.states_call <= self._max_age_calls)
        )

    def _settle(self, session: _Session[States]) -> None:
        """After a look: ends the wait of those calls for which it was new enough, or their own."""
        for call in [call for call in session.waiters if session.seen_call >= call.number or self._usable(call)]:
            session.waiters.remove(call)
            call.settle(None if self._usable(call) or session.error is None else session.error)

    def _batch(self) -> list[tuple[_Session[States], Sight, int, float]]:
        """Takes the sights of the group that waits longest."""
        found = [(session, *session.waiting) for session in self._sessions.values() if session.waiting is not None]
        found.sort(key=lambda entry: (entry[0].states_time, entry[3]))  # whose states are oldest comes first
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
            states, errors = self._computed([sight for _, sight, _, _ in batch])
            with self._changed:
                for (session, _, call, taken), result, problem in zip(batch, states, errors, strict=True):
                    session.seen_call, session.error = call, problem
                    if problem is not None:
                        logger.warning("query states could not be refreshed: %s", problem)
                    else:
                        session.states, session.states_call, session.states_time = result, call, taken
                    self._settle(session)

    def _computed(self, sights: Sequence[Sight]) -> tuple[list[States | None], list[Exception | None]]:
        try:
            return list(self._compute(sights)), [None] * len(sights)
        except Exception as error:
            if len(sights) == 1:
                return [None], [error]
        parts = [self._computed([sight]) for sight in sights]  # one bad observation must not cost the others theirs
        return [states[0] for states, _ in parts], [errors[0] for _, errors in parts]
