"""A policy behind GR00T's inference server: ZeroMQ, one msgpack message each way, arrays as .npy or msgpack-numpy.

A request is `{"endpoint": "get_action", "data": {"observation": ..., "options": None}}`, with `api_token` where the server
wants one; the reply is `[actions by name, info]`, or `{"error": text}`. Read from `gr00t/policy/server_client.py` of N1.6 and
`gr00t/eval/service.py` of N1.5, whose data is the observation itself. Nothing that comes back is unpickled. Imports no torch.

Tested against a stand-in alone: no GR00T checkpoint was run.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from syvla.serving.contract.action_chunks import ActionChunks
from syvla.serving.wire.dialects import Dialect
from syvla.serving.wire.msgpack_codec import CodecLimits, DecodeError, pack, unpack

from .client_dialects import load_client_dialect
from .environments.base import Observation, RobotEnvironment

_LIMITS = CodecLimits()


class GrootClient:
    """Asks endpoints of GR00T's server.

    Args:
        url: tcp://host:port.
        token: The server's, if it wants one.
        timeout: Seconds within which it has to answer.
        codec: How arrays are written, see `msgpack_codec`.

    Raises:
        ImportError: If pyzmq is not installed.
        ValueError: If the address is no tcp://host:port.
    """

    def __init__(self, url: str, token: str | None = None, timeout: float = 60.0, codec: str = "gr00t") -> None:
        try:
            import zmq
        except ModuleNotFoundError as error:
            raise ImportError("GR00T's server needs pyzmq; run: pip install 'syvla[gr00t]'") from error
        parts = urlsplit(url)
        if parts.scheme != "tcp" or not parts.hostname or not parts.port:
            raise ValueError(f"server: expected tcp://host:port, got {url!r}")
        self.url, self.token, self.timeout, self.codec = url, token, timeout, codec
        self._zmq = zmq
        self._socket: Any = None

    def call(self, endpoint: str, data: Any = None) -> Any:
        """The endpoint's answer, plain values and arrays.

        Raises:
            ConnectionError: If no answer came in time.
            RuntimeError: If the server refuses; the text is the server's own.
            ValueError: If the answer is not one that can be read safely.
        """
        request = {"endpoint": endpoint} | ({} if data is None else {"data": data})
        if self.token is not None:
            request["api_token"] = self.token
        try:
            socket = self._connected()
            socket.send(pack(request, self.codec))
            message: bytes = socket.recv()
        except self._zmq.error.ZMQError as error:
            self.close()  # a socket that waits for an answer takes no further request
            raise ConnectionError(
                f"{self.url}: no answer within {self.timeout:g} s ({error}); is GR00T's server running there?"
            ) from error
        if message == b"ERROR":
            raise RuntimeError(f"{self.url}: the server failed on {endpoint}; its own log says why")
        try:
            answer = unpack(message, _LIMITS)[0]
        except DecodeError as error:
            raise ValueError(
                f"{self.url}: {endpoint}: expected msgpack with arrays of plain numbers, and nothing pickled: {error}"
            ) from error
        if isinstance(answer, Mapping) and "error" in answer:
            raise RuntimeError(f"{self.url}: {endpoint}: {str(answer['error'])[:1000]}")
        return answer

    def close(self) -> None:
        """Closes the connection; the next call opens another."""
        socket, self._socket = self._socket, None
        if socket is not None:
            socket.close(linger=0)

    def _connected(self) -> Any:
        if self._socket is None:
            zmq = self._zmq
            socket = zmq.Context.instance().socket(zmq.REQ)
            for option in (zmq.RCVTIMEO, zmq.SNDTIMEO):
                socket.setsockopt(option, int(1000 * self.timeout))
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.MAXMSGSIZE, _LIMITS.max_message_bytes)
            socket.connect(self.url)
            self._socket = socket
        return self._socket


class GrootPolicy:
    """Asks GR00T's server for action chunks.

    Args:
        url: tcp://host:port.
        environment: Names the cameras; it is reset once, and its observation is sent, to learn the chunk's length.
        dialect: Name or file of a dialect that says what the observation is called, such as "gr00t_libero".
        token: The server's `api_token`.
        timeout: Seconds within which the server has to answer.
        prompt: Instruction that is sent instead of the environment's; None: the environment's.
        name: For reports; None takes the URL.
        options: Others of the policy servers; any that is set is refused, since this protocol has no place for it.

    Attributes:
        replan_steps: How many actions of a chunk the dialect's own client executes; None: all.

    Raises:
        ImportError, ConnectionError, RuntimeError, ValueError: As `GrootClient`; ValueError also if the dialect does not fit
            the server's modalities or the environment, or an option has no place here.
    """

    def __init__(
        self,
        url: str,
        environment: RobotEnvironment,
        *,
        dialect: str = "lerobot",
        token: str | None = None,
        timeout: float = 60.0,
        prompt: str | None = None,
        name: str | None = None,
        **options: Any,
    ) -> None:
        given = sorted(key for key, value in options.items() if value and (key, value) != ("connections", 1))
        if given:
            raise ValueError(f"{url}: GR00T's protocol has no place for {', '.join(given)}; leave them out")
        self.dialect = load_client_dialect(dialect)
        if self.dialect.is_plain:
            raise ValueError(
                f"{url}: dialect {dialect!r} does not say how GR00T's server is asked; use gr00t_libero, or a file of your own "
                "like it"
            )
        self.url, self.name, self.prompt = url, name or url, prompt
        self.replan_steps = self.dialect.observation.replan_steps
        self._cameras = dict(environment.view_cameras)
        self._client = GrootClient(url, token, timeout, self.dialect.codec)
        self._modalities = self._client.call("get_modality_config")
        _check_modalities(url, self._modalities, _modality_keys(self.dialect.observation))
        observation, info = environment.reset(seed=0)
        self.chunk_size = len(self._ask(observation, str(info["instruction"]))[0])

    def identity(self) -> dict[str, Any]:
        """The address and the modalities, since the protocol does not say which policy answers."""
        text = json.dumps(self._modalities, sort_keys=True, default=str)
        prompt = {} if self.prompt is None else {"prompt": self.prompt}
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        own = {"policy": "GR00T server", "url": self.url, "modalities": digest}
        return {**own, "dialect": self.dialect.identity, **prompt}

    def predict(
        self, observations: Sequence[Observation], instructions: Sequence[str], *, seeds: Sequence[int]
    ) -> ActionChunks:
        """See `syvla.evaluation.policy.Policy.predict`; the server draws noise of its own.

        Raises:
            ConnectionError, RuntimeError, ValueError: As the class.
        """
        answers = [self._ask(*pair) for pair in zip(observations, instructions, strict=True)]
        lengths = {len(actions) for actions, _ in answers}
        if lengths != {self.chunk_size}:
            raise ValueError(
                f"{self.url}: expected chunks of {self.chunk_size} actions as before, got {sorted(lengths)}"
            )
        return ActionChunks(np.stack([actions for actions, _ in answers]), None, [seconds for _, seconds in answers])

    def close(self) -> None:
        """Closes the connection."""
        self._client.close()

    def _ask(self, observation: Observation, instruction: str) -> tuple[np.ndarray, float]:
        """Actions float32 (T, D) in the environment's units, and the seconds that they took."""
        views = {view: np.asarray(observation["images"][camera]) for view, camera in self._cameras.items()}
        request = self.dialect.to_request(
            views, observation["state"], instruction if self.prompt is None else self.prompt
        )
        key = self.dialect.observation_key
        data = request if key is None else {key: request, "options": None}
        began = time.monotonic()
        answer = self._client.call("get_action", data)
        seconds = time.monotonic() - began
        if isinstance(answer, list) and answer:  # [actions, info]; N1.5 answers with the actions alone
            answer = answer[0]
        try:
            return self.dialect.read_actions(answer), seconds
        except ValueError as error:
            raise ValueError(f"{self.url}: {error}") from error


def _modality_keys(dialect: Dialect) -> dict[str, set[str]]:
    """The names that a dialect sends under each modality, written as `[video, image]` or as `video.image`."""
    keys = [entry[0] for entry in dialect.images.values()] + [part.key for part in dialect.state]
    names: dict[str, set[str]] = {"video": set(), "state": set(), "language": set()}
    for modality, _, name in (".".join(key).partition(".") for key in keys):
        names.setdefault(modality, set()).add(name)
    names["language"].add(".".join(dialect.prompt[0]).removeprefix("language."))
    return names


def _check_modalities(url: str, config: Any, keys: Mapping[str, set[str]]) -> None:
    """Compares the dialect's keys with those that the server says it needs, where it says so.

    Raises:
        ValueError: If they differ; names both.
    """
    if not isinstance(config, Mapping):
        return
    for modality in ("video", "state", "language"):
        entry = config.get(modality)
        described = entry.get("as_json") if isinstance(entry, Mapping) else None
        if isinstance(described, str):
            try:
                described = json.loads(described)
            except ValueError:
                described = None
        names = described.get("modality_keys") if isinstance(described, Mapping) else None
        if not isinstance(names, list):
            continue
        wanted = {str(name).removeprefix(f"{modality}.") for name in names}
        have = keys[modality]
        if wanted != have:
            raise ValueError(
                f"{url}: the server needs {modality} {sorted(wanted)}, the dialect sends {sorted(have)}; use a "
                "dialect file with the server's names"
            )
