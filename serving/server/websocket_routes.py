"""openpi's websocket protocol: the metadata frame, then a binary reply, or a text with the error, for every request."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any

from fastapi import APIRouter, WebSocket, WebSocketDisconnect

from syvla.serving.contract.requests import RequestError
from syvla.serving.wire.msgpack_codec import pack, unpack

from .act_service import ActService
from .connection_guards import NO_MEMORY, OVERSIZED
from .memory_budget import Holding
from .replies import encode_reply

ERRORS = (WebSocketDisconnect, RuntimeError, OSError)
"""What sending to a client that has gone raises, by the version of the libraries."""


def websocket_router(service: ActService) -> APIRouter:
    """The route of one service, at every path, as openpi's server has it."""
    router = APIRouter()

    @router.websocket("/{path:path}")
    async def talk(socket: WebSocket, path: str) -> None:
        await socket.accept()
        connection = _Connection(service, socket)
        try:
            await connection.serve()
        except ERRORS:
            if not connection.gone.is_set() and not service.draining:
                raise
        finally:
            connection.close()

    return router


class _Connection:
    """One client.

    Messages are taken from the socket as they come, one ahead of the one being answered: only a socket that is read
    answers pings and notices that the client has left.
    """

    def __init__(self, service: ActService, socket: WebSocket) -> None:
        self.service, self.socket = service, socket
        self.session = f"connection-{uuid.uuid4().hex}"
        self.gone = asyncio.Event()
        self._messages: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue(1)
        self._reader = asyncio.create_task(self._read())
        self._previous_ms: float | None = None
        self._held = Holding(service.memory)
        service.connections += 1
        service.sessions.joined(self.session)

    def close(self) -> None:
        self._reader.cancel()
        self._held.release()
        self.service.disconnected(self.session)

    async def serve(self) -> None:
        """Answers until the client leaves."""
        if not await self._ready():
            return
        await self.socket.send_bytes(pack(self.service.metadata()))
        while (message := await self._messages.get()) is not None:
            started = time.monotonic()
            try:
                answer: bytes | str = await self._answer(message)
            except RequestError as error:
                if error.cause == "disconnected":
                    return
                answer = str(error)
            self._held.give(len(message.get("bytes") or ""))
            if isinstance(answer, bytes):
                await self.socket.send_bytes(answer)
            else:
                await self.socket.send_text(answer)
            self._previous_ms = (time.monotonic() - started) * 1000

    async def _answer(self, message: dict[str, Any]) -> bytes:
        data, text = message.get("bytes"), message.get("text") or ""
        if data is None:
            refusal = self._refusal(text)
            self.service.metrics.count("rejected", "cause", refusal.cause)
            raise refusal
        limits = self.service.settings.limits
        reply, codec = await self.service.act(lambda: unpack(data, limits), self.session, self.gone)
        return encode_reply(reply, codec, self.service.metrics, self._previous_ms)

    def _refusal(self, text: str) -> RequestError:
        """The error of a text frame, be it the client's or one that stands for a message which was skipped."""
        for mark in (OVERSIZED, NO_MEMORY):
            size = text.removeprefix(mark)
            if size != text and size.isdecimal() and len(size) < 20:
                if mark == NO_MEMORY:
                    return self.service.memory.refusal(int(size))
                limit = self.service.settings.limits.max_message_bytes
                return RequestError(f"message: expected at most {limit} bytes, got {size}", cause="oversized")
        return RequestError(f"message: expected a binary frame of msgpack, got a text of {len(text)} characters")

    async def _ready(self) -> bool:
        """Waits until the policy is loaded; False if the client leaves or the server stops before."""
        while not self.service.ready:
            if self.gone.is_set() or self.service.draining:
                return False
            await asyncio.sleep(0.05)
        return True

    async def _read(self) -> None:
        while True:
            message = await self.socket.receive()
            if message["type"] == "websocket.disconnect":
                self.gone.set()
                await self._messages.put(None)
                return
            self._held.keep(len(message.get("bytes") or ""))
            await self._messages.put(dict(message))
