"""What the server remembers of a client between its calls: the thought in force and the open episode. No torch."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass, field

MAX_SESSIONS = 4096
"""Sessions remembered; the one that was silent longest goes first. Ours: a few hundred bytes each."""

MAX_NAMED = 16
"""Sessions that one connection keeps from being forgotten; further ones live as long as they are heard of."""


@dataclass
class Session:
    """One client's state.

    Attributes:
        name: Its own name or the connection's.
        connections: Open websockets.
        thought: The thought in force, None before the first.
        thought_basis: Instruction, robot and policy version that it was made for; it holds for no others.
        thought_age: Calls since it was made.
        request_id: Of the last request; the same one again is that request, sent again since its answer was lost.
        last_seen: Monotonic time.
        named: Of a connection's own session: those that its requests named, up to `MAX_NAMED`.
    """

    name: str
    connections: int = 0
    thought: str | None = None
    thought_basis: tuple[str, ...] = ()
    thought_age: int = 0
    request_id: str | None = None
    last_seen: float = field(default_factory=time.monotonic)
    named: set[str] = field(default_factory=set)
    _before: tuple[str | None, tuple[str, ...], int] = (None, (), 0)  # the thought as the last request found it

    def repeats(self, request_id: str | None) -> bool:
        """Whether a request is the last one, sent again: it then finds the session as it was the first time."""
        again = request_id is not None and request_id == self.request_id
        now = (self.thought, self.thought_basis, self.thought_age)
        if again:
            self.thought, self.thought_basis, self.thought_age = self._before
        else:
            self.request_id, self._before = request_id, now
        return again

    def forget_thought(self) -> None:
        self.thought, self.thought_basis, self.thought_age = None, (), 0
        self._before = (None, (), 0)

    def plan_thought(self, think: bool | int, basis: tuple[str, ...]) -> tuple[bool, str | None]:
        """Whether to think at this call, and otherwise the thought to act on.

        Args:
            think: Never, always, or at every k-th call.
            basis: See `thought_basis`.
        """
        if think is False:
            return False, None
        every = int(think)
        if self.thought is None or self.thought_basis != basis or self.thought_age + 1 >= every:
            return True, None
        return False, self.thought

    def answered(self, thought: str | None, fresh: bool, basis: tuple[str, ...]) -> None:
        """Takes note of the thought of an answer."""
        if fresh:
            self.thought, self.thought_basis, self.thought_age = thought, basis, 0
        elif thought is not None:
            self.thought_age += 1


class SessionTable:
    """Sessions by name. Only the event loop uses it.

    Args:
        timeout_s: Seconds of silence after which a session without connections is forgotten.
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._sessions: OrderedDict[str, Session] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sessions)

    def get(self, name: str) -> Session:
        """The session of that name, new where there is none."""
        session = self._sessions.pop(name, None) or Session(name)
        session.last_seen = time.monotonic()
        self._sessions[name] = session
        return session

    def joined(self, connection: str) -> None:
        """A connection has opened; its own session bears its name."""
        self.get(connection).connections += 1

    def speaks_for(self, connection: str, name: str) -> None:
        """A connection's request named a session, which is then kept as long as the connection is open."""
        named = self.get(connection).named
        if name != connection and name not in named and len(named) < MAX_NAMED:
            named.add(name)
            self.get(name).connections += 1

    def left(self, connection: str) -> None:
        """A connection has closed. Its own session is gone; those that it named stay for a while: the client may come back."""
        for name in self._sessions.pop(connection).named:
            self.get(name).connections -= 1

    def expire(self) -> list[Session]:
        """Takes out and returns sessions that were silent too long, and the oldest of too many."""
        now = time.monotonic()
        gone = [s for s in self._sessions.values() if not s.connections and now - s.last_seen > self.timeout_s]
        surplus = [s for s in self._sessions.values() if not s.connections and s not in gone]
        gone += surplus[: max(0, len(self._sessions) - len(gone) - MAX_SESSIONS)]
        for session in gone:
            del self._sessions[session.name]
        return gone
