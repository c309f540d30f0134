"""Who may talk to the page's server: this machine alone, or who has the token; no other web page.

A page of any site that the person visits can send requests to a server on loopback. So a request must name this machine as
its host (else a foreign name may point here), and one that comes from a page must come from the server's own.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

OPEN_PATHS = ("/",)
"""The page itself, which holds no data and asks for the token."""

PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src blob: data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
}

_MAX_TOKEN_BYTES = 4096


class AccessControl:
    """ASGI middleware in front of every route.

    Args:
        app: The application behind.
        token: What requests must send; None: none, which only loopback may go without.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], token: str | None) -> None:
        self._app = app
        self._expected = None if token is None else _digest(token.encode())

    async def __call__(self, scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        """Passes a request on, or refuses it."""
        if scope["type"] == "http" and (refusal := self._refusal(scope)):
            await _send(send, *refusal)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._app(scope, receive, send)

    def _refusal(self, scope: dict[str, Any]) -> tuple[int, str] | None:
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        if self._expected is None and not is_loopback(_name(host)):
            return 421, f"host: expected localhost, got {_name(host)[:60]!r}; is a web page asking?"
        if scope["path"] in OPEN_PATHS:
            return None
        if b"origin" in headers and headers[b"origin"].decode("latin-1") != f"{scope.get('scheme', 'http')}://{host}":
            return 403, "origin: expected the server's own page, got a request of another one"
        if self._expected is not None and not self._authorized(headers.get(b"authorization", b"")):
            return 401, "authorization: expected 'Bearer TOKEN' with the server's token"
        return None

    def _authorized(self, header: bytes) -> bool:
        scheme, _, token = header.partition(b" ")
        right = hmac.compare_digest(_digest(token.strip()), self._expected or b"")
        return right and scheme.lower() == b"bearer"


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to `host`. A name other than localhost counts as reachable."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower().removesuffix(".") == "localhost"


def read_token(path: Path) -> str:
    """The token in a file: its only line.

    Raises:
        ValueError: There are none or several lines, or the file is too large.
    """
    if path.stat().st_size > _MAX_TOKEN_BYTES:
        raise ValueError(f"token-file: {path} has {path.stat().st_size} bytes, more than a token has")
    lines = path.read_text(encoding="utf-8").split()
    if len(lines) != 1:
        raise ValueError(f"token-file: {path}: expected one line with the token, got {len(lines)}")
    return lines[0]


async def _send(send: Callable[..., Any], status: int, text: str) -> None:
    body = json.dumps({"error": text}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": body})


def _name(host: str) -> str:
    """The host that a request names, without port and brackets."""
    host = host.strip().lower()
    name, _, port = host.rpartition(":")
    if not name or not port.isdecimal() or (":" in name and not name.endswith("]")):
        name = host
    return name.strip("[]")


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
