"""Settings of the policy server, checked before it listens."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from syvla.serving.wire.dialects import MAX_PIXELS
from syvla.serving.wire.msgpack_codec import CodecLimits
from syvla.serving.wire.request_reading import OptionCaps


@dataclass(frozen=True)
class ServerSettings:
    """How a `PolicyServer` listens, queues and protects.

    Attributes:
        host, port: Where to listen; port 0 takes a free one.
        token: Secret that clients must send as `Authorization: Api-Key TOKEN` or `Bearer TOKEN`; None: nothing is asked.
        allowed_hosts: Names under which clients may address the server, beside loopback's. A server on loopback without a
            token refuses all others: a web page may have pointed its own name at this machine.
        insecure: Allow listening beyond loopback without a token.
        dialects: Names or files of the dialects that are understood. A request is read in the one that knows most of its
            keys.
        cameras: View to the camera's name in the native dialect, accepted beside the view's name.
        embodiment: Robot of requests that do not name one; None: the checkpoint's only robot.
        think: For requests that do not say: False, True, or k for a new thought at every k-th call of a session.
        max_batch_size, max_wait_ms, queue_size: See `BatchingWorker`.
        deadline_s: Seconds after which a request that still waits is dropped.
        read_timeout_s: Seconds within which a message that has begun must be complete.
        session_timeout_s: Seconds without a request after which a session is forgotten.
        drain_timeout_s: Seconds that a graceful stop waits for answers.
        max_connections: Open connections.
        max_memory_bytes: Bytes that the requests of all clients may hold at once. An image counts twice, as it came and
            decoded. Ours: room for 28 requests of three uncompressed 1080p images.
        ping_interval_s: Seconds between two keepalive pings, and the time limit for the answer to a ping.
        limits: Of decoded messages.
        caps: Of request options.
        max_pixels: Of one image.
        action_limits: Embodiment to limits, used instead of the checkpoint's; see `serving.contract.action_limits`.
        tls_certificate, tls_key: PEM files for `wss://` and `https://`.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = field(default=None, repr=False)
    allowed_hosts: tuple[str, ...] = ()
    insecure: bool = False
    dialects: tuple[str, ...] = ("lerobot", "libero", "droid", "aloha")
    cameras: Mapping[str, str] = field(default_factory=dict)
    embodiment: str | None = None
    think: bool | int = False
    max_batch_size: int = 8
    max_wait_ms: float = 2.0
    queue_size: int = 64
    deadline_s: float = 30.0
    read_timeout_s: float = 10.0
    session_timeout_s: float = 60.0
    drain_timeout_s: float = 60.0
    max_connections: int = 512
    max_memory_bytes: int = 2**30
    ping_interval_s: float = 20.0
    limits: CodecLimits = field(default_factory=CodecLimits)
    caps: OptionCaps = field(default_factory=OptionCaps)
    max_pixels: int = MAX_PIXELS
    action_limits: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tls_certificate: str | None = None
    tls_key: str | None = None

    def __post_init__(self) -> None:
        for name in ("max_batch_size", "queue_size", "max_connections"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("deadline_s", "read_timeout_s", "session_timeout_s", "ping_interval_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected more than 0 seconds, got {getattr(self, name)}")
        if self.max_wait_ms < 0 or not 0 <= self.port < 65536 or int(self.think) < 0:
            raise ValueError(f"expected max_wait_ms >= 0, a port below 65536, think >= 0, got {self}")
        if self.token is not None and not (self.token and self.token.isascii() and self.token.isprintable()):
            raise ValueError("token: expected printable ASCII characters")
        if not self.token and not self.insecure and not is_loopback(self.host):
            raise ValueError(
                f"host: {self.host} is reachable from other machines, and no token is set; give --token-file, or "
                "--insecure where everyone who reaches this port may move the robot"
            )
        if any(not re.fullmatch(r"[\w.-]+|\[?[0-9a-fA-F:]*:[0-9a-fA-F:.]*\]?", name) for name in self.allowed_hosts):
            raise ValueError(f"allowed_hosts: expected names without ports, got {list(self.allowed_hosts)}")
        least = 2 * self.limits.max_message_bytes + 9 * self.max_pixels
        if self.max_memory_bytes < least:
            raise ValueError(
                f"max_memory_bytes: expected at least {least}, what one message and its three images may take, got "
                f"{self.max_memory_bytes}; raise it or lower the limits of messages and pixels"
            )
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls: expected certificate and key together")


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to `host`. A name other than localhost counts as reachable."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def read_token(path: str | Path) -> str:
    """The token in a file: its only line.

    Raises:
        ValueError: The file cannot be read or is empty.
    """
    try:
        token = Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"token-file: cannot read {path}: {error}") from None
    if not token:
        raise ValueError(
            f"token-file: {path}: expected a token, got an empty file; python -c 'import secrets; "
            "print(secrets.token_urlsafe())' makes one"
        )
    return token
