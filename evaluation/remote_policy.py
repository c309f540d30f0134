"""A policy behind a server: ours, or any that speaks openpi's websocket protocol (pi0, GR00T, LeRobot policies, ...).

Every server is asked in the same way: it gets an observation in its dialect (see `serving/wire/dialects.py`) and returns an
action chunk in the units of the environment's actions. A SyVLA server, recognized by its `protocol_version`, also gets the
options that make its answers repeatable: `seed`, `think`, `max_new_tokens`, `num_steps`. Other servers get only the dialect's
keys and draw their own noise.

`evaluation/README.md` says how to compare policies on equal terms. Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from queue import SimpleQueue
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from syvla.serving.client.policy_client import PolicyClient
from syvla.serving.client.retries import ClientOptions
from syvla.serving.contract.action_chunks import ActionChunks

from .client_dialects import ClientDialect, load_client_dialect
from .environments.base import Observation, RobotEnvironment
from .foreign_protocols import spoken_instead

DEFAULT_TIMEOUT = 60.0
"""Seconds within which a server has to answer. Ours: far more than any policy's call takes; a server that compiles at its
first request needs more."""

NATIVE_DIALECT = "lerobot"


class RemotePolicy:
    """Asks a policy server for action chunks.

    Args:
        url: ws://host:port, or http:// or https:// for the same.
        environment: Environment that names the embodiment and the cameras. If the server does not say how long its chunks
            are, the environment is reset once and its observation is sent; this also shows whether the server understands it.
        dialect: Name or file of the dialect in which observations are written.
        token: The server's token, if it asks for one.
        timeout: Seconds within which the server has to answer.
        connections: Requests of one batch that are sent at the same time. With 1, a SyVLA server answers each request
            alone, so that an evaluation repeats to the bit; with more, the server may batch them.
        think: For a SyVLA server, as in `SyVLAPolicy`.
        max_new_tokens: As `think`.
        num_steps: As `think`.
        prompt: Instruction that is sent instead of the environment's own; None: the environment's.
        name: For reports; None takes the URL.

    Attributes:
        replan_steps: How many actions of a chunk the dialect's own client executes; None: all, as for a SyVLA server.

    Raises:
        ConnectionError: If nobody answers at the URL; the message names it.
        ValueError: If another server than SyVLA's is given an option that only SyVLA's knows, the server does not know the
            embodiment, or the observation does not fit the dialect.
        RuntimeError: If the server refuses the token or the first observation; the text is the server's own.
    """

    def __init__(
        self,
        url: str,
        environment: RobotEnvironment,
        *,
        dialect: str = NATIVE_DIALECT,
        token: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        connections: int = 1,
        think: bool = False,
        max_new_tokens: int | None = None,
        num_steps: int | None = None,
        prompt: str | None = None,
        name: str | None = None,
    ) -> None:
        if connections < 1 or not timeout > 0:
            raise ValueError(f"expected connections >= 1 and timeout > 0, got {connections=} {timeout=}")
        self.url, self.name = url, name or url
        self.view_cameras = dict(environment.view_cameras)
        self.embodiment = environment.embodiment
        written = load_client_dialect(dialect)
        # Two attempts to connect, and the pause between them, stay within the time.
        patience = ClientOptions(token=token, connect_timeout=0.45 * timeout, read_timeout=timeout, retries=1)
        try:
            with PolicyClient(url, patience) as first:
                self.metadata = dict(first.metadata)
        except ConnectionError as error:
            other = spoken_instead(url)
            if other is None:
                port = urlsplit(url).port or 80
                raise ConnectionError(f"{error} Start one: syvla-serve --model CHECKPOINT --port {port}") from error
            raise ConnectionError(f"{url}: {other}") from error
        self.own_server = "protocol_version" in self.metadata
        self.prompt = prompt
        self._check_dialect(written)
        self.replan_steps = None if self.own_server else written.observation.replan_steps
        sends = written.observation.sends
        if not self.own_server and sends is not None:
            self.view_cameras = {view: self.view_cameras[view] for view in sends if view in self.view_cameras}
        if not self.own_server:  # it may refuse keys it does not know, and answer no pings while its policy computes
            patience = replace(patience, extras=False, ping_interval=None)
        self._options = {"think": think, "max_new_tokens": max_new_tokens, "num_steps": num_steps}
        self._check_options()
        self.dialect = self._for_cameras(written)
        self._clients: SimpleQueue[PolicyClient] = SimpleQueue()
        for _ in range(connections):
            self._clients.put(PolicyClient(url, patience))
        self._threads = ThreadPoolExecutor(connections, thread_name_prefix="policy-server")
        horizon = self.metadata.get("action_horizon")
        try:
            self.chunk_size = horizon if isinstance(horizon, int) and horizon > 0 else self._first_chunk(environment)
        except BaseException:
            self.close()
            raise

    @property
    def control_hz(self) -> float | None:
        """Actions per second that a SyVLA server says its policy was trained with; None if it does not say, or is another."""
        entry = self.metadata.get("embodiments", {}).get(self.embodiment, {}) if self.own_server else {}
        rate = entry.get("control_hz")
        return float(rate) if isinstance(rate, int | float) and rate > 0 else None

    def identity(self) -> dict[str, Any]:
        """The policy version that the server gives; if it gives none, its address and a hash of its metadata."""
        version = self.metadata.get("policy_version")
        if isinstance(version, str) and version:
            identity: dict[str, Any] = {"policy": "server", "policy_version": version}
        else:
            text = json.dumps(self.metadata, sort_keys=True, default=_plain)
            digest = hashlib.sha256(text.encode()).hexdigest()[:16]
            identity = {"policy": "server", "url": self.url, "metadata": digest}
        options = {"embodiment": self.embodiment, **self._options} if self.own_server else {}
        options |= {} if self.prompt is None else {"prompt": self.prompt}
        return {**identity, "dialect": self.dialect.identity, **options}

    def predict(
        self, observations: Sequence[Observation], instructions: Sequence[str], *, seeds: Sequence[int]
    ) -> ActionChunks:
        """See `syvla.evaluation.policy.Policy.predict`; `seconds` of the answer holds the latency of each request.

        Raises:
            ConnectionError: If the server is gone or too slow.
            RuntimeError: If the server refuses a request, with the server's own text, or changes its policy.
            ValueError: If a reply holds no actions of the length announced.
        """
        answers = list(self._threads.map(self._ask, observations, instructions, seeds))
        short = min(len(actions) for actions, _, _ in answers)
        if short < self.chunk_size:
            raise ValueError(
                f"{self.url}: expected chunks of {self.chunk_size} actions as before, got one of {short}; set "
                f"replan_steps to {short} or less and have the server announce action_horizon {short}"
            )
        actions = np.stack([actions[: self.chunk_size] for actions, _, _ in answers])
        thoughts = None
        if any(thought is not None for _, thought, _ in answers):
            thoughts = [thought or "" for _, thought, _ in answers]
        return ActionChunks(actions, thoughts, [seconds for _, _, seconds in answers])

    def close(self) -> None:
        """Closes the connections."""
        self._threads.shutdown()
        while not self._clients.empty():
            self._clients.get().close()

    def _ask(self, observation: Observation, instruction: str, seed: int) -> tuple[np.ndarray, str | None, float]:
        """Actions float32 (T, D), thought if there was one, and the seconds that they took."""
        images = observation["images"]
        views = {view: images[camera] for view, camera in self.view_cameras.items()}
        request = self.dialect.to_request(
            views, observation["state"], instruction if self.prompt is None else self.prompt
        )
        if self.own_server:
            given = {name: value for name, value in self._options.items() if value is not None}
            request |= {"seed": seed, "embodiment": self.embodiment, **given}
        client = self._clients.get()
        began = time.monotonic()
        try:
            reply = client.infer(request)
        finally:
            self._clients.put(client)
        seconds = time.monotonic() - began
        self._check_version(reply)
        try:
            actions = self.dialect.read_actions(reply)
        except ValueError as error:
            raise ValueError(f"{self.url}: {error}") from error
        thought = reply.get("thought")
        return actions, thought if isinstance(thought, str) else None, seconds

    def _first_chunk(self, environment: RobotEnvironment) -> int:
        observation, info = environment.reset(seed=0)
        return len(self._ask(observation, str(info["instruction"]), 0)[0])

    def _check_options(self) -> None:
        if not self.own_server:
            given = sorted(name for name, value in self._options.items() if value)
            if given:
                raise ValueError(f"{self.url}: is no SyVLA server and knows nothing of {', '.join(given)}")
            return
        if self.metadata.get("dual_system"):
            raise ValueError(
                f"{self.url}: its answers depend on what it was asked before, in whichever episode; start it without --async"
            )
        known = self.metadata.get("embodiments", {})
        if self.embodiment not in known:
            raise ValueError(
                f"{self.url}: expected a policy for {self.embodiment!r}, got one for {sorted(known)}; serve a checkpoint "
                f"that was fine-tuned on data of {self.embodiment!r}"
            )

    def _check_dialect(self, dialect: ClientDialect) -> None:
        name = dialect.identity.split()[0]
        if self.own_server and not dialect.is_plain:
            raise ValueError(
                f"{self.url}: dialect {name!r} has fields for other projects' servers, and this is a SyVLA server; leave out "
                "--dialect"
            )
        if dialect.codec != "openpi" or dialect.observation_key is not None:
            raise ValueError(
                f"{self.url}: dialect {name!r} is for a ZeroMQ server (codec, observation_key); give its address as "
                "tcp://host:port"
            )

    def _for_cameras(self, dialect: ClientDialect) -> ClientDialect:
        """The dialect with the server's names of the cameras: ours uses the model's views, others the dataset's names."""
        observation = dialect.observation
        if observation.camera_key is None or self.own_server:
            return dialect
        return dialect.with_observation(observation.for_views(list(self.view_cameras), self.view_cameras))

    def _check_version(self, reply: Mapping[str, Any]) -> None:
        announced, came = self.metadata.get("policy_version"), reply.get("policy_version")
        if announced and came and came != announced:
            raise RuntimeError(
                f"{self.url}: the server changed its policy from version {announced} to {came} during the evaluation; "
                "start again"
            )


def _plain(leaf: Any) -> Any:
    return leaf.tolist() if isinstance(leaf, np.ndarray | np.generic) else str(leaf)
