"""What a server speaks that is not openpi's websocket protocol, told from its first bytes."""

from __future__ import annotations

import contextlib
import socket
from urllib.parse import urlsplit

PATIENCE = 2.0
"""Seconds that a server has for its first bytes; those that greet do it at once."""

_WANTED = "expected openpi's websocket protocol"
_ZMQ = (
    f"{_WANTED}, found ZeroMQ, which GR00T's inference server speaks; for it give --server tcp://host:port and --dialect "
    "gr00t_libero, or a dialect file of your own"
)
_GRPC = (
    f"{_WANTED}, found HTTP/2, as gRPC; LeRobot's asynchronous policy server speaks it and sends pickles, which are not read "
    "here; serve that policy with integrations/lerobot_policy_server instead"
)
_HTTP = (
    f"{_WANTED}, found HTTP without a websocket; for OpenVLA-OFT's server give its whole address, http://host:port/act"
)


def spoken_instead(url: str) -> str | None:
    """What the server at an address speaks, as the end of a sentence; None if nobody answers or it cannot be told.

    Args:
        url: ws://host:port, or http:// for the same.
    """
    parts = urlsplit(url)
    address = (parts.hostname or "127.0.0.1", parts.port or (443 if parts.scheme in ("wss", "https") else 80))
    greeting = _first_bytes(address, b"")
    if greeting.startswith(b"\xff") and len(greeting) >= 10 and greeting[9] & 1:  # ZMTP's signature
        return _ZMQ
    if _is_settings_frame(greeting):
        return _GRPC
    reply = _first_bytes(address, _upgrade(address[0]))
    if reply.startswith(b"HTTP/1."):  # 101: it does speak websocket; 401 and 403: it may, to others
        return None if reply[9:12] in (b"101", b"401", b"403") else _HTTP
    return _GRPC if _is_settings_frame(reply) else None


def _upgrade(host: str) -> bytes:
    """A websocket's opening request (RFC 6455, section 4.1)."""
    lines = [
        "GET / HTTP/1.1",
        f"Host: {host}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
    ]
    return "\r\n".join([*lines, "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==", "", ""]).encode()


def _is_settings_frame(data: bytes) -> bool:
    """Whether HTTP/2's first frame begins here: length (3 bytes), type 4, flags, stream 0."""
    return len(data) >= 9 and data[3] == 4 and data[5:9] == b"\0\0\0\0" and int.from_bytes(data[:3], "big") % 6 == 0


def _first_bytes(address: tuple[str, int], sent: bytes) -> bytes:
    received = b""
    with contextlib.suppress(OSError), socket.create_connection(address, PATIENCE) as connection:
        connection.settimeout(PATIENCE)
        if sent:
            connection.sendall(sent)
        while len(received) < 12:
            part = connection.recv(64)
            if not part:
                break
            received += part
    return received
