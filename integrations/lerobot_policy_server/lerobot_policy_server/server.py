"""openpi's websocket protocol around a policy: metadata first, then a reply per request; errors as text, connection kept.

Messages are read and written by SyVLA's codec, which unpickles nothing and checks sizes before it takes memory.
"""

from __future__ import annotations

import http
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.sync.server import Server, ServerConnection, serve

from syvla.serving.wire.msgpack_codec import CodecLimits, DecodeError, pack, unpack

from .policy import ServedPolicy

logger = logging.getLogger(__name__)
LIMITS = CodecLimits()


class WebsocketPolicyServer:
    """Serves one policy to any number of clients, one request at a time.

    Args:
        policy: Answers `act` and `metadata`.
        host: Where to listen.
        port: 0 chooses one.

    Attributes:
        url: Where it listens.
    """

    def __init__(self, policy: ServedPolicy, host: str = "127.0.0.1", port: int = 8000) -> None:
        self.policy = policy
        self._turn = threading.Lock()
        self._server: Server = serve(
            self._converse,
            host,
            port,
            compression=None,
            max_size=LIMITS.max_message_bytes,
            ping_interval=None,  # openpi's own clients answer none while they wait
            process_request=_health,
        )
        port = self._server.socket.getsockname()[1]
        self.url = f"ws://{host}:{port}"

    def run(self) -> None:
        """Serves until `close`."""
        self._server.serve_forever()

    def close(self) -> None:
        """Stops listening."""
        self._server.shutdown()

    @contextmanager
    def running(self) -> Iterator[str]:
        """Serves in a thread until the block ends; yields the URL."""
        thread = threading.Thread(target=self.run, daemon=True)
        thread.start()
        try:
            yield self.url
        finally:
            self.close()
            thread.join()

    def _converse(self, connection: ServerConnection) -> None:
        try:
            connection.send(pack(self.policy.metadata()))
            for message in connection:
                connection.send(self._answer(message))
        except ConnectionClosed:
            return

    def _answer(self, message: str | bytes) -> bytes | str:
        """The reply, or why there is none, which openpi's clients raise as text."""
        began = time.monotonic()
        try:
            if isinstance(message, str):
                raise ValueError("message: expected msgpack in a binary frame, got text")
            request, codec = unpack(message, LIMITS)
            if not isinstance(request, dict):
                raise ValueError(f"message: expected a map, got {type(request).__name__}")
            with self._turn:
                actions = self.policy.act(request)
        except (ValueError, DecodeError) as error:
            return str(error)
        except Exception as error:
            logger.exception("a request failed")
            return f"the policy failed: {type(error).__name__}: {error}"
        reply: dict[str, Any] = {"actions": actions, "server_timing": {"infer_ms": 1000 * (time.monotonic() - began)}}
        return pack(reply, codec)


def _health(connection: ServerConnection, request: Any) -> Any:
    return connection.respond(http.HTTPStatus.OK, "OK\n") if request.path == "/healthz" else None
