"""What the server remembers of a client between two requests: the thought to act on, and the last request. No torch."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

MAX_SESSIONS = 4096
"""Most sessions remembered; beyond it, the one that was silent longest is forgotten. Ours: a few kilobytes each."""

KNOWN_COMMANDS = 3
"""Commands before a chunk that its limits of rate, acceleration and jerk go on from."""

MAX_NAMED = 16
"""Most sessions that one connection keeps alive by being open; further ones expire when they are silent."""


@dataclass
class Session:
    """One client's state.

    Attributes:
        name: The client's name for the session, or the connection's name.
        connections: Open websockets that keep the session alive.
        thought: The thought to act on; None before the first one.
        thought_basis: Instruction, robot and policy version that the thought was made for. It holds for no others.
        thought_age: Calls since the thought was made.
        request_id: Of the last request. A request with the same id is the last one, sent again since its answer was lost.
        sent: Robot of the last chunk that left the server, the chunk (T, D) in physical units, and up to `KNOWN_COMMANDS`
            that ran before it; None before the first one.
        client_counts: Counts of the last `ClientReport`.
        last_seen: Monotonic time of the last request.
        named: For a connection's own session: the sessions that the connection's requests named, up to `MAX_NAMED`.
    """

    name: str
    connections: int = 0
    thought: str | None = None
    thought_basis: tuple[str, ...] = ()
    thought_age: int = 0
    request_id: str | None = None
    sent: tuple[str, np.ndarray, np.ndarray] | None = None
    client_counts: Mapping[str, int] = field(default_factory=dict)
    last_seen: float = field(default_factory=time.monotonic)
    named: set[str] = field(default_factory=set)
    _before: tuple[str | None, tuple[str, ...], int] = (None, (), 0)  # the thought as the last request found it
    _sent_before: tuple[str, np.ndarray, np.ndarray] | None = None  # the chunk before the last request's

    def repeats(self, request_id: str | None) -> bool:
        """Whether a request is the last one, sent again. The session then goes back to what it was the first time."""
        again = request_id is not None and request_id == self.request_id
        now = (self.thought, self.thought_basis, self.thought_age)
        if again:
            self.thought, self.thought_basis, self.thought_age = self._before
            self.sent = self._sent_before
        else:
            self.request_id, self._before, self._sent_before = request_id, now, self.sent
        return again

    def forget_thought(self) -> None:
        """Makes the next call start without an earlier thought."""
        self.thought, self.thought_basis, self.thought_age = None, (), 0
        self._before = (None, (), 0)

    def plan_thought(self, think: bool | int, basis: tuple[str, ...]) -> tuple[bool, str | None]:
        """Decides whether to think at this call. Returns (whether to think, the thought to act on if not).

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

    def commands_before(self, embodiment: str, executed: int | None) -> np.ndarray | None:
        """The commands that ran directly before a request, (n, D); None where the client did not say how many ran."""
        if self.sent is None or self.sent[0] != embodiment or not executed:
            return None
        _, chunk, before = self.sent
        return np.concatenate([before, chunk[:executed]])[-KNOWN_COMMANDS:]

    def sends(self, embodiment: str, chunk: np.ndarray, executed: int | None) -> None:
        """Takes note of a chunk that leaves the server, in answer to a request that says how much of the last one ran."""
        before = self.commands_before(embodiment, executed)
        self.sent = (embodiment, chunk, np.zeros((0, chunk.shape[1]), np.float32) if before is None else before)

    def answered(self, thought: str | None, fresh: bool, basis: tuple[str, ...]) -> None:
        """Keeps the thought of an answer, or counts a call on the thought that is kept."""
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
        """The session of that name; a new one if the name is not known."""
        session = self._sessions.pop(name, None) or Session(name)
        session.last_seen = time.monotonic()
        self._sessions[name] = session
        return session

    def joined(self, connection: str) -> None:
        """Opens the connection's own session, which has the connection's name."""
        self.get(connection).connections += 1

    def speaks_for(self, connection: str, name: str) -> None:
        """Keeps the session that a request named alive as long as the request's connection is open."""
        named = self.get(connection).named
        if name != connection and name not in named and len(named) < MAX_NAMED:
            named.add(name)
            self.get(name).connections += 1

    def left(self, connection: str) -> None:
        """Ends a closed connection's own session. Sessions that it named stay for a while: the client may come back."""
        for name in self._sessions.pop(connection).named:
            self.get(name).connections -= 1

    def expire(self) -> list[Session]:
        """Removes and returns sessions that were silent too long, and the longest silent ones beyond `MAX_SESSIONS`."""
        now = time.monotonic()
        gone = [s for s in self._sessions.values() if not s.connections and now - s.last_seen > self.timeout_s]
        surplus = [s for s in self._sessions.values() if not s.connections and s not in gone]
        gone += surplus[: max(0, len(self._sessions) - len(gone) - MAX_SESSIONS)]
        for session in gone:
            del self._sessions[session.name]
        return gone
