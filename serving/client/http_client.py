"""The policy server's HTTP routes for programs that keep no connection. No torch."""

from __future__ import annotations

import contextlib
import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from syvla.serving.wire.msgpack_codec import pack, unpack

from .retries import PolicyError, check_token

_MSGPACK = "application/msgpack"
_MAX_BYTES = 32 * 2**20
_MAX_REASON_BYTES = 2000


def http_act(
    url: str, request: Mapping[str, Any], *, token: str | None = None, timeout: float = 30.0
) -> dict[str, Any]:
    """`POST /v1/act`: a request in any of the server's dialects, answered as over the websocket.

    Args:
        url: `http://host:port`.
        request: For example from `syvla.serving.client.policy_client.observation_request`; give a `seed` and a
            `request_id` to repeat it.
        token: The server's token, if it asks for one.
        timeout: Seconds without a byte from the server.

    Raises:
        PolicyError: The server refuses the request; holds status and reason.
        OSError: No server, or no answer in time.
    """
    answer: dict[str, Any] = unpack(_call(url, "/v1/act", pack(dict(request)), _MSGPACK, token, timeout))[0]
    return answer


def http_metadata(url: str, *, token: str | None = None, timeout: float = 10.0) -> dict[str, Any]:
    """`GET /v1/metadata`."""
    metadata: dict[str, Any] = json.loads(_call(url, "/v1/metadata", None, "application/json", token, timeout))
    return metadata


def http_json(
    url: str, path: str, body: Mapping[str, Any] | None = None, *, token: str | None = None, timeout: float = 30.0
) -> dict[str, Any]:
    """Asks one of the server's further routes, such as `/rl/episodes`: `POST path` with a body, `GET path` without one.

    Raises:
        PolicyError: The server refuses the request; holds status, cause and reason.
        OSError: No server, or no answer in time.
    """
    data = None if body is None else json.dumps(body).encode()
    answer: dict[str, Any] = json.loads(_call(url, path, data, "application/json", token, timeout))
    return answer


def http_ready(url: str, *, timeout: float = 5.0) -> bool:
    """Whether the server answers and can take requests (`GET /readyz`)."""
    try:
        _call(url, "/readyz", None, "*/*", None, timeout)
    except (PolicyError, OSError):
        return False
    return True


def _call(url: str, path: str, body: bytes | None, kind: str, token: str | None, timeout: float) -> bytes:
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"url: expected http://host:port, got {url!r}")
    headers = {"Accept": kind}
    if body is not None:
        headers["Content-Type"] = kind
    check_token(token)
    if token:
        headers["Authorization"] = f"Bearer {token}"
    call = urllib.request.Request(url.rstrip("/") + path, data=body, headers=headers)
    try:
        with urllib.request.urlopen(call, timeout=timeout) as response:
            answer = _body(response, _MAX_BYTES + 1)
    except urllib.error.HTTPError as error:
        reason = _body(error, _MAX_REASON_BYTES).decode(errors="replace").strip()
        refusal = PolicyError(f"{url}{path}: HTTP {error.code}: {reason}")
        refusal.status = error.code
        with contextlib.suppress(ValueError, AttributeError):
            refusal.cause = json.loads(reason).get("cause")
        raise refusal from error
    except http.client.HTTPException as error:
        raise ConnectionError(f"{url}{path}: the answer ended early ({error!r})") from error
    if len(answer) > _MAX_BYTES:
        raise PolicyError(f"{url}{path}: expected at most {_MAX_BYTES} bytes, got more")
    return answer


def _body(response: Any, limit: int) -> bytes:
    """At most `limit` bytes of an answer that says how long it is.

    `read` with a limit returns a body that was cut off without a word, so that a server which dies while it answers would
    be read as one that answers nonsense; a body of unknown length cannot be told from a cut one.
    """
    body: bytes = response.read(limit)
    if response.headers.get("Transfer-Encoding", "").lower() == "chunked":
        return body
    announced = response.headers.get("Content-Length")
    if announced is None or len(body) < min(int(announced), limit):
        raise ConnectionError(f"the answer ended after {len(body)} of {announced} bytes")
    return body
