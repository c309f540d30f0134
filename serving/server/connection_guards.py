"""What guards the server against hostile or broken peers: one memory budget, time limits, and large frames skipped.

Limits per message and a bounded queue are not enough: hundreds of connections, each with half a message sent, or small files
that decode to large images, would still fill a machine. So all bytes that requests hold count against one `MemoryBudget`:
messages that come in, that wait, and decoded images. Only the event loop uses it.

uvicorn closes a websocket when a frame is too large; a robot's client then sees a dead connection instead of an error. The
filter here skips such a frame without keeping it and puts a short text in its place, which the route answers with an error.
It does the same with a frame that there is no memory for. It also knows when a message has begun and not ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from syvla.serving.contract.requests import RequestError

OVERSIZED, NO_MEMORY = "\0oversized:", "\0memory:"
"""Start of the text that stands for a skipped frame; the frame's size follows."""

LINGER_S = 2.0
"""Seconds for which the server goes on reading, and discards what it reads, after it has ended a connection. Closing a socket
that has unread bytes also discards what was written to it, the reason for the end included."""

FRAME_BYTES = 100
"""Bytes that a frame counts in addition to its payload, so that a message of a million empty fragments is not free."""


class MemoryBudget:
    """Bytes that all requests together hold.

    Args:
        limit: Most bytes.

    Attributes:
        used: Bytes at present.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0

    def take(self, count: int) -> bool:
        """Counts bytes in and returns True, or returns False if there is no room for them."""
        if self.used + count > self.limit:
            return False
        self.used += count
        return True

    def give(self, count: int) -> None:
        """Counts bytes out that `take` counted in."""
        self.used -= count

    def refusal(self, count: int) -> RequestError:
        """The error of a request that finds no room for `count` bytes."""
        text = (
            f"memory: expected at most {self.limit} bytes in the requests of all clients, which hold {self.used}; got"
        )
        return RequestError(f"{text} {count} more; try again in 1 s", status=503, cause="memory", retry_after=1)


class Holding:
    """What one request holds; given back at the end of a `with` block."""

    def __init__(self, budget: MemoryBudget, count: int = 0) -> None:
        """Raises RequestError (503) if there is no room for `count` bytes."""
        self._budget, self.count = budget, 0
        self.add(count)

    def add(self, count: int) -> None:
        """Raises RequestError (503) if there is no room."""
        if not self._budget.take(count):
            raise self._budget.refusal(count)
        self.count += count

    def give_back_after(self, work: Future[Any]) -> None:
        """Leaves the bytes counted until `work` is done, where it still uses them when the `with` block ends."""
        if work.done():
            return
        loop, budget, count = asyncio.get_running_loop(), self._budget, self.count
        self.count = 0

        def done(_: Future[Any]) -> None:
            with contextlib.suppress(RuntimeError):  # the server has stopped
                loop.call_soon_threadsafe(budget.give, count)

        work.add_done_callback(done)

    def __enter__(self) -> Holding:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._budget.give(self.count)
        self.count = 0


# ---------------------------------------------------------------------- websocket frames, HTTP requests


class FrameFilter:
    """Follows the frames of a client's byte stream (RFC 6455, section 5.2).

    Args:
        max_bytes: Largest message that passes.
        admit: Called with the size of every frame before its payload arrives; if it returns False, the message is skipped.

    Attributes:
        broken: Cause of rejection if a message was cut off after a part of it had passed; nothing passes from then on.
        closed: Once broken: whether the client has closed its side.
    """

    def __init__(self, max_bytes: int, admit: Callable[[int], bool] = lambda count: True) -> None:
        self.max_bytes, self._admit = max_bytes, admit
        self.broken: str | None = None
        self.closed = False
        self._held = 0
        self._complete: deque[int] = deque()  # bytes of each message that the library will hand over
        self._message = self._message_held = 0  # of the one that is coming: payload, and with what its frames cost
        self._header = bytearray()
        self._payload_left = 0
        self._skip = False  # the rest of this frame
        self._skip_message = False  # continuation frames of a skipped one
        self._fragmented = False

    @property
    def incomplete(self) -> bool:
        """Whether a message or frame has begun and not ended."""
        return bool(self._header or self._payload_left or self._fragmented)

    def feed(self, data: bytes) -> bytes:
        """Takes bytes from the client; returns the bytes to hand to the websocket library."""
        out: list[bytes] = []
        view = memoryview(data)
        while view:
            if self._payload_left:
                taken = min(self._payload_left, len(view))
                if not self._skip:
                    out.append(bytes(view[:taken]))
                self._payload_left -= taken
                view = view[taken:]
                continue
            missing = self._header_length() - len(self._header)
            self._header += view[:missing]
            view = view[missing:]
            if len(self._header) == self._header_length():
                out.append(self._begin())
        return b"".join(out)

    def _header_length(self) -> int:
        """Length of the present header, as far as the bytes received so far tell."""
        if len(self._header) < 2:
            return 2
        size = self._header[1] & 0x7F
        return 2 + {126: 2, 127: 8}.get(size, 0) + (4 if self._header[1] & 0x80 else 0)

    def _begin(self) -> bytes:
        """Decides about a frame whose header is complete; returns the bytes to pass on in place of the header."""
        header = bytes(self._header)
        self._header.clear()
        final, opcode, size = bool(header[0] & 0x80), header[0] & 0x0F, header[1] & 0x7F
        if size == 126:
            size = struct.unpack(">H", header[2:4])[0]
        elif size == 127:
            size = struct.unpack(">Q", header[2:10])[0]
        self._payload_left = size
        if self.broken is not None:
            self._skip, self.closed = True, self.closed or opcode == 8
            return b""
        if opcode >= 8:  # control frames are small and may come between fragments
            self._skip = False
            return header
        self._fragmented = not final
        if opcode == 0 and self._skip_message:  # goes on with a skipped message
            self._skip, self._skip_message = True, not final
            return b""
        if opcode != 0:
            self._message, self._message_held, self._skip_message = 0, 0, False
        self._message += size
        self._skip, cause = False, OVERSIZED
        if self._message <= self.max_bytes:
            if self._admit(size + FRAME_BYTES):
                self._admitted(size + FRAME_BYTES, final)
                return header
            cause = NO_MEMORY
        self._skip = True
        if opcode == 0:
            self.broken = "oversized" if cause == OVERSIZED else "memory"
            return b""
        self._skip_message = not final
        self._complete.append(0)
        text = f"{cause}{size}".encode()
        return bytes([0x81, 0x80 | len(text)]) + bytes(4) + text  # a text frame, masked with zeros

    def _admitted(self, count: int, final: bool) -> None:
        self._held += count
        self._message_held += count
        if final:
            self._complete.append(self._message_held)

    def delivered(self) -> int:
        """Takes note that the oldest message was handed over; returns the bytes that were admitted for it."""
        count = self._complete.popleft() if self._complete else 0
        self._held -= count
        return count

    def forget(self) -> int:
        """Forgets the messages of a connection that is gone; returns the bytes that were admitted and not delivered."""
        count, self._held = self._held, 0
        self._complete.clear()
        return count


@dataclass(frozen=True)
class Guards:
    """Limits that the protocols enforce.

    Attributes:
        max_message_bytes: Largest message.
        read_timeout_s: Seconds within which a message that has begun must be complete.
        memory: Counts the bytes of messages that come in.
        rejected: Called with the cause when a connection is ended.
        max_silent: Most connections that have not asked anything yet; beyond it, the oldest one of them is ended.
    """

    max_message_bytes: int
    read_timeout_s: float
    memory: MemoryBudget
    rejected: Callable[[str], None]
    max_silent: int = 512


class GuardedWebSocket(WebSocketsSansIOProtocol):
    """uvicorn's websocket behind a `FrameFilter`."""

    guards: Guards
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        self._filter = FrameFilter(self.guards.max_message_bytes, self.guards.memory.take)
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if not self.handshake_initiated:  # the request for the upgrade
            super().data_received(data)
            return
        passed = self._filter.feed(data)
        if passed:
            super().data_received(passed)
        if self._filter.broken is None:
            self._watch()
        elif self._filter.closed:
            self.transport.close()
        else:
            self._break_off(self._filter.broken)

    async def receive(self) -> Any:
        message: Any = await super().receive()
        if message["type"] == "websocket.receive":
            message["admitted_bytes"] = self._filter.delivered()  # the route gives them back once it has answered
        self._watch()
        return message

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self.guards.memory.give(self._filter.forget())
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Runs the timer while a message is incomplete, unless the server itself has paused reading."""
        if not self._filter.incomplete or self.read_paused:
            self._disarm()
        elif self._timer is None:
            self._timer = self.loop.call_later(self.guards.read_timeout_s, self._too_slow)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        if self._end("read_timeout", 1008, f"message: expected the rest of it within {self.guards.read_timeout_s:g} s"):
            self.transport.close()

    def _break_off(self, cause: str) -> None:
        code, limit = 1009, self.guards.max_message_bytes
        reason = f"message: expected at most {limit} bytes, got more in fragments"
        if cause == "memory":
            code, reason = 1013, str(self.guards.memory.refusal(FRAME_BYTES))
        if self._end(cause, code, reason):
            self.transport.resume_reading()
            self.loop.call_later(LINGER_S, self.transport.close)

    def _end(self, cause: str, code: int, reason: str) -> bool:
        """Sends the reason in a text frame, which clients show, and in the close frame.

        Returns False, and sends nothing, if the connection was already closing.
        """
        if self.close_sent or self.transport.is_closing():
            return False
        self._disarm()
        self.guards.rejected(cause)
        self.conn.send_text(reason.encode())
        self.conn.send_close(code, reason[:120])
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = self.disconnected = True
        return True


class GuardedHttp(H11Protocol):
    """uvicorn's HTTP with a time limit on request lines and headers; `read_body` has the one for bodies.

    Connections that say nothing must not take the places of those that ask: there is a limit to them of their own.
    """

    guards: Guards
    silent: ClassVar[dict[GuardedHttp, None]]  # of one server, the oldest first
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._arm()
        self.silent[self] = None
        if len(self.silent) > self.guards.max_silent:
            oldest = next(iter(self.silent))
            del self.silent[oldest]
            self.guards.rejected("silent")
            oldest.transport.close()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self.silent.pop(self, None)
        if self.conn.their_state is h11.IDLE and self.transport.get_protocol() is self:
            self._arm()  # a request line or headers that are not complete
        else:
            self._disarm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self.silent.pop(self, None)
        super().connection_lost(exc)

    def _arm(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(self.guards.read_timeout_s, self._too_slow)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        if self.conn.their_state is h11.IDLE and self.transport.get_protocol() is self:
            self.guards.rejected("read_timeout")
            self.transport.close()


def guarded_protocols(guards: Guards) -> tuple[type[Any], type[Any]]:
    """uvicorn protocol classes (`http`, `ws`) with these guards."""
    http = type("Http", (GuardedHttp,), {"guards": guards, "silent": {}})
    return http, type("WebSocket", (GuardedWebSocket,), {"guards": guards})
