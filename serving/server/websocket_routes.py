"""openpi's websocket protocol: a frame of metadata, then for every request a binary reply, or a text with the error."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from typing import Any

from fastapi import APIRouter, WebSocket, WebSocketDisconnect

from syvla.serving.contract.requests import RequestError
from syvla.serving.wire.msgpack_codec import pack

from .act_service import ActService
from .connection_guards import NO_MEMORY, OVERSIZED

logger = logging.getLogger(__name__)

ERRORS = (WebSocketDisconnect, RuntimeError, OSError)
"""What sending raises after the client has left; it depends on the versions of the libraries."""


def websocket_router(service: ActService) -> APIRouter:
    """The route of one service. It answers at every path, as openpi's server does."""
    router = APIRouter()

    @router.websocket("/{path:path}")
    async def talk(socket: WebSocket, path: str) -> None:
        try:
            await socket.accept()
        except ERRORS as error:
            logger.info("a client left before its connection was open (%s)", type(error).__name__)
            return
        connection = _Connection(service, socket)
        try:
            await connection.serve()
        except ClientLeft as left:
            logger.info("a client left before it had its answer (%s)", left)
        finally:
            connection.close()

    return router


class ClientLeft(Exception):
    """Nobody takes what was to be sent; says what the sending raised."""


class _Connection:
    """One client.

    While a message is being answered, the next one is already read: only a socket that is read answers pings and notices
    that the client has left.
    """

    def __init__(self, service: ActService, socket: WebSocket) -> None:
        self.service, self.socket = service, socket
        self.session = f"connection-{uuid.uuid4().hex}"
        self.gone = asyncio.Event()
        self._messages: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue(1)
        self._reader = asyncio.create_task(self._read())
        self._held = 0  # bytes of messages that were read and not answered yet
        service.clients.connections += 1
        service.sessions.joined(self.session)

    def close(self) -> None:
        self._reader.cancel()
        self.service.memory.give(self._held)
        self.service.disconnected(self.session)

    async def serve(self) -> None:
        """Answers until the client leaves."""
        if not await self._ready():
            return
        await self._send(pack(self.service.metadata()))
        previous_ms: float | None = None
        while (message := await self._messages.get()) is not None:
            started = time.monotonic()
            try:
                if message.get("bytes") is None:
                    raise self._refusal(message.get("text") or "")
                reply: bytes | str = await self.service.handle(
                    message.pop("bytes"), self.gone, connection=self.session, previous_ms=previous_ms
                )
            except RequestError as error:
                if error.cause == "disconnected":
                    return
                reply = str(error)
            self._held -= message["admitted_bytes"]
            self.service.memory.give(message["admitted_bytes"])
            await self._send(reply)
            previous_ms = (time.monotonic() - started) * 1000

    async def _send(self, reply: bytes | str) -> None:
        """Sends a frame. Bytes and texts can always be sent, so whatever goes wrong is the connection's end.

        Raises:
            ClientLeft: It is. `gone` need not be set yet: while messages wait, the reader has not come to the last one.
        """
        try:
            await (self.socket.send_bytes(reply) if isinstance(reply, bytes) else self.socket.send_text(reply))
        except ERRORS as error:
            raise ClientLeft(type(error).__name__) from None

    def _refusal(self, text: str) -> RequestError:
        """The error of a text frame: the client's own, or the one that the guards put in place of a message they skipped."""
        refusal = self._reason(text)
        self.service.metrics.count("rejected", "cause", refusal.cause)
        return refusal

    def _reason(self, text: str) -> RequestError:
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
            self._held += message["admitted_bytes"]
            await self._messages.put(dict(message))
            del message  # not kept while the next one is waited for
