"""Clients of the policy server: `PolicyClient` for a plain loop, `AsyncPolicyClient` for asyncio. No torch.

They speak openpi's websocket protocol, so they also work with other servers that do. Every request carries a seed and a
request id chosen here: a request that is sent again after a lost connection gets the same actions and is recorded once.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import numpy as np
from tenacity import AsyncRetrying, Retrying

from syvla.serving.contract.requests import broken_promises
from syvla.serving.wire.msgpack_codec import CodecLimits, pack, unpack

from .retries import ClientOptions, PolicyError, retrying

logger = logging.getLogger(__name__)

_REPLY_LIMITS = CodecLimits()


def observation_request(
    images: Mapping[str, np.ndarray], state: np.ndarray, prompt: str, **extras: Any
) -> dict[str, Any]:
    """A request in the server's native dialect (LeRobot's keys).

    Args:
        images: Camera to uint8 (H, W, 3).
        state: (D,), physical units.
        prompt: The instruction.
        **extras: Options of the server, such as `seed`, `think`, `episode_id`, `executed_steps`, `prev_chunk`, `noise`.
    """
    named = {f"observation.images.{camera}": np.asarray(image) for camera, image in images.items()}
    state = np.asarray(state, dtype=np.float32)
    return {**named, "observation.state": state, "prompt": prompt, **{k: v for k, v in extras.items() if v is not None}}


def correction_request(
    images: Mapping[str, np.ndarray], state: np.ndarray, prompt: str, action: np.ndarray, **extras: Any
) -> dict[str, Any]:
    """A request that records a control step of a person who acts instead of the policy (HG-DAgger); the server must record.

    From the first one on the chunk in force is over. Send one at every control step until the person lets go; then ask for
    actions again, or end the episode.

    Args:
        images, state, prompt: The observation at which the person acted.
        action: The person's command, (D_action,), physical units, as the policy's actions are.
        **extras: As of `observation_request`; with the first one `executed_steps`, how many actions of the last chunk ran.
    """
    command = np.asarray(action, np.float32)
    return observation_request(images, state, prompt, observe_only=True, intervention=True, action=command, **extras)


class _Conversation:
    """Builds messages and reads replies for both clients, and keeps a pending reset."""

    def __init__(self, extras: bool) -> None:
        self.session = uuid.uuid4().hex
        self._extras = extras
        self._resets = self._told = 0  # asked for, and answered by the server
        self._sent = 0

    def request(self, request: Mapping[str, Any]) -> tuple[bytes, str]:
        """The message, and its request id."""
        if not self._extras:
            return pack(dict(request)), ""
        full = {"seed": secrets.randbits(31), "request_id": uuid.uuid4().hex, "session_id": self.session, **request}
        self._sent = self._resets
        if self._resets > self._told:
            full.setdefault("reset", True)
        return pack(full), str(full["request_id"])

    def answered(self) -> None:
        self._told = self._sent  # a reset that came while the request was under way is still to be told

    def reset(self) -> None:
        self._resets += 1

    @staticmethod
    def metadata(message: str | bytes, before: Mapping[str, Any]) -> dict[str, Any]:
        """What the server says when it is connected to, compared with what it said the last time.

        Raises:
            PolicyError: The server refuses, or is another one now, whose actions mean something else.
        """
        if isinstance(message, str):
            raise PolicyError(message)
        metadata: dict[str, Any] = unpack(message, _REPLY_LIMITS)[0]
        if problems := broken_promises(before, metadata):
            raise PolicyError(f"the server is not what it was: {'; '.join(problems)[:1000]}; make a new client for it")
        for key in ("model", "policy_version", "action_horizon"):
            if before and before.get(key) != metadata.get(key):
                logger.warning(
                    "after the connection was lost, %s is %s, was %s", key, metadata.get(key), before.get(key)
                )
        return metadata

    def reply(self, message: str | bytes, request_id: str) -> dict[str, Any]:
        if isinstance(message, str):
            raise PolicyError(message)
        reply = unpack(message, _REPLY_LIMITS)[0]
        known = not self._extras or (isinstance(reply, dict) and bool({"actions", "observed"} & set(reply)))
        if not isinstance(reply, dict) or not known:  # servers without our extras may call the actions otherwise
            raise PolicyError(f"reply: expected a map with actions, got {str(reply)[:200]}")
        if request_id and reply.get("request_id", request_id) != request_id:
            raise ConnectionError(f"reply: expected the answer to {request_id}, got that to {reply['request_id']}")
        return reply


class PolicyClient:
    """A policy behind a websocket.

    Args:
        url: `ws://host:port` (or `wss://`).
        options: Patience and token.
        **changes: Single fields of `ClientOptions`, such as `token="..."`.

    The connection is opened at once, and again whenever it is lost. Arrays in replies are read-only; copy them to write.

    Raises:
        Unreachable: No server there, or it never answers.
        PolicyError: The server refuses the token or the request.
    """

    def __init__(self, url: str, options: ClientOptions | None = None, **changes: Any) -> None:
        self.url, self.options = websocket_url(url), ClientOptions(**{**vars(options or ClientOptions()), **changes})
        self._conversation = _Conversation(self.options.extras)
        self._socket: Any = None
        self._metadata: dict[str, Any] = {}
        self._attempts(lambda: self._connected())

    @property
    def metadata(self) -> dict[str, Any]:
        """What the server said about itself when the connection was opened."""
        return self._metadata

    def infer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Sends a request in any dialect of the server, and adds the entries of `ClientOptions.extras` that it lacks.

        Returns:
            The reply; `actions` is float32 (T, D), physical units.
        """
        message, request_id = self._conversation.request(request)

        def ask() -> dict[str, Any]:
            socket = self._connected()
            socket.send(message)
            return self._conversation.reply(socket.recv(timeout=self.options.read_timeout), request_id)

        reply: dict[str, Any] = self._attempts(ask)
        self._conversation.answered()
        return reply

    def act(self, images: Mapping[str, np.ndarray], state: np.ndarray, prompt: str, **extras: Any) -> dict[str, Any]:
        """Actions for an observation; arguments as for `observation_request`, reply as from `infer`."""
        return self.infer(observation_request(images, state, prompt, **extras))

    def correct(
        self, images: Mapping[str, np.ndarray], state: np.ndarray, prompt: str, action: np.ndarray, **extras: Any
    ) -> dict[str, Any]:
        """Records a control step of a person who acts instead of the policy, see `correction_request`."""
        return self.infer(correction_request(images, state, prompt, action, **extras))

    def reset(self) -> None:
        """Makes the next request begin a new episode."""
        self._conversation.reset()

    def close(self) -> None:
        socket, self._socket = self._socket, None
        if socket is not None:
            socket.close()

    def __enter__(self) -> PolicyClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _connected(self) -> Any:
        if self._socket is None:
            from websockets.sync.client import connect

            options = self.options
            # Entered, as newer websockets ask for, and left by `close`.
            socket = connect(self.url, open_timeout=options.connect_timeout, **_connect_arguments(options)).__enter__()
            try:
                hello = socket.recv(timeout=options.connect_timeout)
                self._metadata = _Conversation.metadata(hello, self._metadata)
            except BaseException:
                socket.close()
                raise
            self._socket = socket
        return self._socket

    def _attempts(self, work: Any) -> Any:
        def attempt() -> Any:
            with _one_attempt(self):
                return work()

        return Retrying(**retrying(self.options, self.url, _may_pass))(attempt)

    def _drop(self) -> None:
        socket, self._socket = self._socket, None
        if socket is not None:
            socket.close_timeout = 0.1
            socket.close()


class AsyncPolicyClient:
    """`PolicyClient` for asyncio: `async with AsyncPolicyClient(url) as client: reply = await client.act(...)`.

    Requests of one client are answered one after the other; use several clients for more at once.
    """

    def __init__(self, url: str, options: ClientOptions | None = None, **changes: Any) -> None:
        self.url, self.options = websocket_url(url), ClientOptions(**{**vars(options or ClientOptions()), **changes})
        self._conversation = _Conversation(self.options.extras)
        self._socket: Any = None
        self._metadata: dict[str, Any] = {}
        self._turn = asyncio.Lock()

    @property
    def metadata(self) -> dict[str, Any]:
        """What the server said about itself; empty before the first connection."""
        return self._metadata

    async def infer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """See `PolicyClient.infer`."""
        message, request_id = self._conversation.request(request)

        async def ask() -> dict[str, Any]:
            socket = await self._connected()
            await socket.send(message)
            async with asyncio.timeout(self.options.read_timeout):
                return self._conversation.reply(await socket.recv(), request_id)

        async with self._turn:
            reply: dict[str, Any] = await self._attempts(ask)
        self._conversation.answered()
        return reply

    async def act(
        self, images: Mapping[str, np.ndarray], state: np.ndarray, prompt: str, **extras: Any
    ) -> dict[str, Any]:
        """See `PolicyClient.act`."""
        return await self.infer(observation_request(images, state, prompt, **extras))

    async def correct(
        self, images: Mapping[str, np.ndarray], state: np.ndarray, prompt: str, action: np.ndarray, **extras: Any
    ) -> dict[str, Any]:
        """See `PolicyClient.correct`."""
        return await self.infer(correction_request(images, state, prompt, action, **extras))

    def reset(self) -> None:
        """Makes the next request begin a new episode."""
        self._conversation.reset()

    async def close(self) -> None:
        socket, self._socket = self._socket, None
        if socket is not None:
            await socket.close()

    async def __aenter__(self) -> AsyncPolicyClient:
        await self._attempts(self._connected)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _connected(self) -> Any:
        if self._socket is None:
            from websockets.asyncio.client import connect

            options = self.options
            async with asyncio.timeout(options.connect_timeout):
                socket = await connect(self.url, open_timeout=None, **_connect_arguments(options))
                try:
                    self._metadata = _Conversation.metadata(await socket.recv(), self._metadata)
                except BaseException:
                    socket.transport.abort()
                    raise
            self._socket = socket
        return self._socket

    async def _attempts(self, work: Any) -> Any:
        async def attempt() -> Any:
            with _one_attempt(self):
                return await work()

        return await AsyncRetrying(**retrying(self.options, self.url, _may_pass))(attempt)

    def _drop(self) -> None:
        socket, self._socket = self._socket, None
        if socket is not None:
            socket.transport.abort()


def websocket_url(url: str) -> str:
    """`url` with a websocket scheme: `ws` if it has no scheme, `ws` or `wss` instead of `http` or `https`."""
    scheme, separator, rest = url.partition("://")
    return f"{ {'http': 'ws', 'https': 'wss'}.get(scheme, scheme) }://{rest}" if separator else f"ws://{url}"


def _connect_arguments(options: ClientOptions) -> dict[str, Any]:
    """What both of websockets' `connect` functions are called with."""
    headers = {"Authorization": f"Api-Key {options.token}"} if options.token else None
    return {
        "compression": None,
        "max_size": _REPLY_LIMITS.max_message_bytes,
        "additional_headers": headers,
        "ping_interval": options.ping_interval,
        "ping_timeout": options.ping_interval,
    }


@contextmanager
def _one_attempt(client: PolicyClient | AsyncPolicyClient) -> Iterator[None]:
    """Drops the connection of a client whose attempt failed or was canceled, and names a refusal of the connection.

    A connection that failed is never used again: a late answer must not be taken for that to the next request.

    Raises:
        PolicyError: The server refused the request, or the connection itself.
    """
    try:
        yield
    except PolicyError:
        raise  # the answer has come
    except BaseException as error:
        client._drop()
        refusal = _refusal(error)
        if refusal:
            raise PolicyError(f"{client.url}: {refusal}") from error
        raise


def _refusal(error: BaseException) -> str | None:
    """Why the server refused the connection itself, where it did; another attempt would end alike."""
    from websockets.exceptions import ConnectionClosed, InvalidStatus

    if isinstance(error, InvalidStatus) and error.response.status_code < 500:
        body = (error.response.body or b"").decode(errors="replace").strip()[:300]
        return f"refused with HTTP {error.response.status_code}: {body or 'check the token'}"
    if isinstance(error, ConnectionClosed) and error.rcvd is not None and error.rcvd.code in (1008, 1009):
        return f"closed by the server with {error.rcvd.code}: {error.rcvd.reason}"
    return None


def _may_pass(error: BaseException) -> bool:
    from websockets.exceptions import WebSocketException

    return isinstance(error, OSError | EOFError | WebSocketException)
