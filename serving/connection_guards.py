"""uvicorn's protocols with what they lack against hostile or broken peers: time limits, and large frames skipped.

uvicorn closes a websocket whose frame is too large; a robot's client then sees a dead connection instead of an error. The
filter here lets such a frame pass by without keeping it and puts a short text in its place, which the route answers with
an error. It also knows when a message has begun and not ended.
"""

from __future__ import annotations

import asyncio
import struct
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

OVERSIZED = "\0oversized:"
"""Begins the text that stands for a skipped frame; its size follows."""


class FrameFilter:
    """Follows the frames of a client's byte stream (RFC 6455, section 5.2).

    Args:
        max_bytes: Largest payload of a frame that passes.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
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
        """The bytes that the websocket library gets to see for `data`."""
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
        """Length of the present header as far as its bytes tell."""
        if len(self._header) < 2:
            return 2
        size = self._header[1] & 0x7F
        return 2 + {126: 2, 127: 8}.get(size, 0) + (4 if self._header[1] & 0x80 else 0)

    def _begin(self) -> bytes:
        """The header is complete: what passes of it, and what happens to the payload."""
        header = bytes(self._header)
        self._header.clear()
        final, opcode, size = bool(header[0] & 0x80), header[0] & 0x0F, header[1] & 0x7F
        if size == 126:
            size = struct.unpack(">H", header[2:4])[0]
        elif size == 127:
            size = struct.unpack(">Q", header[2:10])[0]
        self._payload_left = size
        control = opcode >= 8
        if not control:
            self._fragmented = not final
        if control or (opcode == 0 and not self._skip_message):
            self._skip = False
            return header
        if opcode == 0:  # goes on with a skipped message
            self._skip, self._skip_message = True, not final
            return b""
        self._skip = size > self.max_bytes
        if not self._skip:
            return header
        self._skip_message = not final
        text = f"{OVERSIZED}{size}".encode()
        return bytes([0x81, 0x80 | len(text)]) + bytes(4) + text  # a text frame, masked with zeros


def guarded_protocols(max_message_bytes: int, read_timeout_s: float) -> tuple[type[Any], type[Any]]:
    """uvicorn protocol classes (`http`, `ws`) with these limits."""

    class GuardedWebSocket(WebSocketsSansIOProtocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            self._filter = FrameFilter(max_message_bytes)
            super().connection_made(transport)

        def data_received(self, data: bytes) -> None:
            if not self.handshake_initiated:  # the request for the upgrade
                super().data_received(data)
                return
            passed = self._filter.feed(data)
            if passed:
                super().data_received(passed)
            self._watch()

        async def receive(self) -> Any:
            message = await super().receive()
            self._watch()
            return message

        def connection_lost(self, exc: Exception | None) -> None:
            self._disarm()
            super().connection_lost(exc)

        def _watch(self) -> None:
            """Lets the time run while a message has begun and not ended, unless it is the server that does not read on."""
            if not self._filter.incomplete or self.read_paused:
                self._disarm()
            elif self._timer is None:
                self._timer = self.loop.call_later(read_timeout_s, self._too_slow)

        def _disarm(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _too_slow(self) -> None:
            if self.close_sent or self.transport.is_closing():
                return
            reason = f"message: expected the rest of it within {read_timeout_s:g} s"
            self.conn.send_text(reason.encode())
            self.conn.send_close(1008, reason)
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.close_sent = True
            self.transport.close()

    class GuardedHttp(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._arm()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.conn.their_state is h11.IDLE and self.transport.get_protocol() is self:
                self._arm()  # a request line or headers that are not complete
            else:
                self._disarm()

        def connection_lost(self, exc: Exception | None) -> None:
            self._disarm()
            super().connection_lost(exc)

        def _arm(self) -> None:
            if self._timer is None:
                self._timer = self.loop.call_later(read_timeout_s, self._too_slow)

        def _disarm(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _too_slow(self) -> None:
            self._timer = None
            if self.conn.their_state is h11.IDLE and self.transport.get_protocol() is self:
                self.transport.close()

    return GuardedHttp, GuardedWebSocket
