"""A policy behind OpenVLA-OFT's HTTP server: `POST http://host:port/act` with json-numpy bodies.

json-numpy writes an array as `{"__numpy__": BASE64, "dtype": "<f4", "shape": [8, 7]}`. What comes back is checked before it
becomes an array: no pickles, plain numbers only, bounded sizes. Imports no torch.

Keys, forms of the reply and the gripper's convention were compared with public copies of that project's `deploy.py` and of its
clients. Tested against a stand-in alone: no OpenVLA-OFT checkpoint was run.
"""

from __future__ import annotations

import base64
import binascii
import json
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

import numpy as np

from syvla.serving.contract.action_chunks import ActionChunks
from syvla.serving.wire.msgpack_codec import DecodeError, array_from_buffer

from .environments.base import Observation, RobotEnvironment

MAX_REPLY_BYTES = 8 * 2**20
GRIPPERS = ("environment", "openvla")
"""How the server's last action dimension is read: as the environment's, or as OpenVLA's (0 closes, 1 opens; made -1 or 1)."""


class ActServerPolicy:
    """Asks OpenVLA-OFT's server.

    Args:
        url: http://host:port/act.
        environment: Names the cameras; it is reset once, and its observation is sent, to learn the chunk's length.
        timeout: Seconds within which the server has to answer.
        prompt: Instruction that is sent instead of the environment's; None: the environment's.
        gripper: One of `GRIPPERS`; None: "openvla" in LIBERO, as that project's own evaluation there, else "environment".
        name: For reports; None takes the URL.
        options: Others of the policy servers; any that is set is refused, since this protocol has no place for it.

    Raises:
        ValueError: On an option that this protocol does not have, or a reply without actions.
        ConnectionError: If nobody answers; the message names the address.
        RuntimeError: If the server refuses a request.
    """

    def __init__(
        self,
        url: str,
        environment: RobotEnvironment,
        *,
        timeout: float = 60.0,
        prompt: str | None = None,
        gripper: str | None = None,
        name: str | None = None,
        **options: Any,
    ) -> None:
        defaults = {"dialect": "lerobot", "connections": 1}
        given = sorted(key for key, value in options.items() if value and value != defaults.get(key))
        if given:
            raise ValueError(f"{url}: OpenVLA-OFT's protocol has no place for {', '.join(given)}; leave them out")
        self.url, self.name, self.timeout, self.prompt = url, name or url, timeout, prompt
        self.gripper = gripper or ("openvla" if environment.embodiment == "libero" else "environment")
        if self.gripper not in GRIPPERS:
            raise ValueError(f"gripper: expected one of {', '.join(GRIPPERS)}, got {gripper!r}")
        self._cameras = self._keys(environment.view_cameras)
        observation, info = environment.reset(seed=0)
        self.chunk_size = len(self._ask(observation, str(info["instruction"]))[0])

    def identity(self) -> dict[str, Any]:
        """The address, since the protocol does not say which policy answers."""
        prompt = {} if self.prompt is None else {"prompt": self.prompt}
        return {"policy": "OpenVLA-OFT server", "url": self.url, "gripper": self.gripper, **prompt}

    def predict(
        self, observations: Sequence[Observation], instructions: Sequence[str], *, seeds: Sequence[int]
    ) -> ActionChunks:
        """See `syvla.evaluation.policy.Policy.predict`; the server draws noise of its own, if any.

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

    @staticmethod
    def _keys(view_cameras: dict[str, str]) -> dict[str, str]:
        """The protocol's key of each camera: one wrist alone is `wrist_image`."""
        both = {"left_wrist", "right_wrist"} <= set(view_cameras)
        names = {"center": "full_image", "left_wrist": "left_wrist_image", "right_wrist": "right_wrist_image"}
        if not both:
            names |= {"left_wrist": "wrist_image", "right_wrist": "wrist_image"}
        return {camera: names[view] for view, camera in view_cameras.items() if view in names}

    def _ask(self, observation: Observation, instruction: str) -> tuple[np.ndarray, float]:
        """Actions float32 (T, D) in the environment's units, and the seconds that they took."""
        images = {key: np.asarray(observation["images"][camera]) for camera, key in self._cameras.items()}
        state = np.asarray(observation["state"], dtype=np.float32)
        body = {**images, "state": state, "instruction": instruction if self.prompt is None else self.prompt}
        began = time.monotonic()
        actions = self._actions(self._post({key: _written(value) for key, value in body.items()}))
        if self.gripper == "openvla":
            actions[:, -1] = np.where(actions[:, -1] > 0.5, -1.0, 1.0)
        return actions, time.monotonic() - began

    def _post(self, body: dict[str, Any]) -> bytes:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                reply: bytes = response.read(MAX_REPLY_BYTES + 1)
        except urllib.error.HTTPError as error:
            reason = error.read(500).decode(errors="replace")
            raise RuntimeError(f"{self.url}: HTTP {error.code}: {reason}") from error
        except OSError as error:
            raise ConnectionError(
                f"{self.url}: no answer within {self.timeout:g} s ({error}); is the server running?"
            ) from error
        if len(reply) > MAX_REPLY_BYTES:
            raise ValueError(f"{self.url}: expected a reply of at most {MAX_REPLY_BYTES} bytes, got more")
        return reply

    def _actions(self, reply: bytes) -> np.ndarray:
        try:
            value = json.loads(reply)
            if isinstance(value, str):  # the server's own "double encoding"; it sends "error" where it failed
                value = value if value == "error" else json.loads(value)
            if value == "error":
                raise RuntimeError(f"{self.url}: the server failed on this request; its own log says why")
            actions = np.asarray(_read(value), dtype=np.float32)
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{self.url}: expected actions in json-numpy, got {reply[:80]!r} ({error})") from error
        if actions.ndim == 1 and actions.size:
            actions = actions[None]
        if actions.ndim != 2 or not len(actions):
            raise ValueError(f"{self.url}: actions: expected numbers (T, D), got {actions.shape}")
        return actions.copy()


def _written(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return value
    data = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
    return {"__numpy__": data, "dtype": value.dtype.str, "shape": list(value.shape)}


def _read(value: Any) -> Any:
    """Lists of numbers and arrays, with json-numpy's maps as arrays."""
    if isinstance(value, list):
        return [_read(item) for item in value]
    if isinstance(value, dict):
        try:
            data = base64.b64decode(value["__numpy__"], validate=True)
            return array_from_buffer(data, value["dtype"], value["shape"], MAX_REPLY_BYTES, 3)
        except (KeyError, binascii.Error, DecodeError) as error:
            raise ValueError(f"no json-numpy array: {error}") from None
    return value
