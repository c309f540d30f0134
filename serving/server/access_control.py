"""Who may talk to the server: a token compared in constant time, no web pages, a limit of connections."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Awaitable, Callable
from typing import Any

from .act_service import ActService
from .settings import is_loopback

OPEN_PATHS = ("/healthz", "/readyz", "/", "/rl")
"""Paths that everyone may ask for: they say nothing about the model. `/` and `/rl` are pages without data that ask for the
token."""

OWN_PAGES = ("/live/", "/rl/")
"""Starts of the paths that the server's own pages may ask for."""


class AccessControl:
    """ASGI middleware in front of every route, those of further routers included.

    A request with an `Origin` header comes from a web page; robots send no such header. Without this check, every page that
    the robot's owner visits could reach a server on loopback. Only the server's own pages may send requests, and only for
    paths below `OWN_PAGES`. Without a token, such a page must have been loaded from a loopback address: another host name may
    have been pointed at this machine. For the same reason, a server on loopback without a token refuses every request, on every
    route, that names another host than loopback or `allowed_hosts`.

    Args:
        app: The application behind.
        service: Gives settings, metrics and the number of connections.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], service: ActService) -> None:
        self.app, self.service = app, service
        token = service.settings.token
        self._expected = _digest(token.encode()) if token else None
        settings = service.settings
        self._allowed = {name.strip("[]").lower() for name in settings.allowed_hosts}
        self._checks_host = bool(self._allowed) or (not token and is_loopback(settings.host))

    def __call__(self, scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> Awaitable[None]:
        """What answers a request: the application behind, or a refusal. Checked once, when a connection is opened."""
        if scope["type"] not in ("http", "websocket"):
            return self.app(scope, receive, send)
        headers = dict(scope["headers"])
        if self._checks_host and not self._known_host(headers):
            named = _host(headers)[:60]
            text = f"host: expected localhost or a name of --allowed-hosts, got {named!r}; is a web page asking?"
            return self._refuse(scope, send, 421, text)
        if scope["type"] == "http" and scope["path"] in OPEN_PATHS:
            return self.app(scope, receive, send)
        if b"origin" in headers and not self._own_page(scope, headers):
            return self._refuse(scope, send, 403, "origin: expected a request of a program, got one of a web page")
        if not self._authorized(headers.get(b"authorization", b"")):
            text = "authorization: expected 'Api-Key TOKEN' or 'Bearer TOKEN' with the server's token, got "
            text += "another one" if headers.get(b"authorization") else "none"
            return self._refuse(scope, send, 401, text)
        if scope["type"] == "websocket" and self.service.clients.connections >= self.service.settings.max_connections:
            return self._refuse(scope, send, 503, "connections: the server has as many as it takes")
        return self.app(scope, receive, send)

    def _authorized(self, header: bytes) -> bool:
        if self._expected is None:
            return True
        scheme, _, token = header.partition(b" ")
        right = hmac.compare_digest(_digest(token.strip()), self._expected)  # digests, so that no length leaks either
        return right and scheme.lower() in (b"api-key", b"bearer")

    def _own_page(self, scope: dict[str, Any], headers: dict[bytes, bytes]) -> bool:
        host = headers.get(b"host", b"").decode("latin-1")
        own = headers[b"origin"].decode("latin-1") == f"{scope.get('scheme', 'http')}://{host}"
        safe = self._expected is not None or self._known_host(headers)
        return scope["type"] == "http" and scope["path"].startswith(OWN_PAGES) and own and safe

    def _known_host(self, headers: dict[bytes, bytes]) -> bool:
        named = _host(headers)
        return is_loopback(named) or named in self._allowed

    async def _refuse(self, scope: dict[str, Any], send: Callable[..., Any], status: int, text: str) -> None:
        cause = {401: "unauthorized", 403: "web_page", 421: "host", 503: "connections"}[status]
        self.service.metrics.count("rejected", "cause", cause)
        kind = "websocket.http.response" if scope["type"] == "websocket" else "http.response"
        body = text.encode() if scope["type"] == "websocket" else json.dumps({"error": text}).encode()
        headers = [(b"content-type", b"application/json" if kind == "http.response" else b"text/plain")]
        headers += [(b"content-length", str(len(body)).encode()), (b"connection", b"close")]
        headers += [(b"retry-after", b"2")] if status == 503 else []
        await send({"type": f"{kind}.start", "status": status, "headers": headers})
        await send({"type": f"{kind}.body", "body": body})


def _host(headers: dict[bytes, bytes]) -> str:
    """The host that a request names, without port and brackets, in lower case."""
    host = headers.get(b"host", b"").decode("latin-1").strip().lower()
    name, _, port = host.rpartition(":")
    if not name or not port.isdecimal() or (":" in name and not name.endswith("]")):
        name = host
    return name.strip("[]").removesuffix(".")


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
