"""The robot's side of a run of reinforcement learning, over HTTP. No torch."""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from tenacity import Retrying

from .http_client import http_act, http_json
from .policy_client import correction_request, observation_request
from .retries import ClientOptions, PolicyError, retrying

_GIVEN_UP = (404, 410)
"""HTTP statuses of an episode that the server does not have any more."""


class EpisodeAborted(RuntimeError):
    """The server has given the episode up: stop the robot, and begin another one."""


class RunComplete(RuntimeError):
    """The run has all the rollouts that it wanted."""


class RLClient:
    """Runs episodes on a server started with `--rl-run`.

    Args:
        url: `http://host:port`.
        token: The server's, if it wants one.
        options: Patience; requests that got no answer are sent again and have an effect only once.

    Attributes:
        episode_id: Of the last episode that began.
        takeover: Whether a person asked on the page for the robot: let them act, and send `correct` instead of `act`.
    """

    def __init__(self, url: str, token: str | None = None, options: ClientOptions | None = None) -> None:
        self.url, self.token, self.options = url, token, options or ClientOptions()
        self.episode_id: str | None = None
        self.takeover = False

    def begin(self, wait_s: float = 3600.0) -> dict[str, Any]:
        """Opens an episode, waiting while the server changes its policy or an update has all rollouts it needs.

        Raises:
            RunComplete: There will be no further update.
            TimeoutError: No episode could begin within `wait_s` seconds.
        """
        key, until = uuid.uuid4().hex, time.monotonic() + wait_s
        while True:
            try:
                begun = self._post("/rl/episodes", {"request_id": key}, busy=False)
            except PolicyError as error:
                if error.cause == "run_complete":
                    raise RunComplete(str(error)) from None
                if error.status != 503:
                    raise
                if time.monotonic() > until:
                    raise TimeoutError(f"no episode could begin within {wait_s:g} s: {error}") from None
                time.sleep(0.5)
                continue
            self.episode_id, self.takeover = begun["episode_id"], False
            return begun

    def act(self, images: Mapping[str, np.ndarray], state: np.ndarray, prompt: str, **extras: Any) -> dict[str, Any]:
        """Actions for an observation, as from `PolicyClient.act`; `executed_steps` says how many of the last chunk ran.

        Raises:
            EpisodeAborted: Stop.
        """
        seed = secrets.randbits(31)  # so that a repetition gets the chunk that was recorded
        return self._sent(observation_request(images, state, prompt, **{**self._named(), "seed": seed, **extras}))

    def observe(
        self, images: Mapping[str, np.ndarray], state: np.ndarray, prompt: str, **extras: Any
    ) -> dict[str, Any]:
        """Sends an observation between two requests for actions, one control step after the last; it is recorded once.

        Raises:
            EpisodeAborted: Stop.
        """
        return self._sent(observation_request(images, state, prompt, observe_only=True, **{**self._named(), **extras}))

    def correct(
        self, images: Mapping[str, np.ndarray], state: np.ndarray, prompt: str, action: np.ndarray, **extras: Any
    ) -> dict[str, Any]:
        """Records a control step of a person who acts instead of the policy, see `correction_request`.

        Raises:
            EpisodeAborted: Stop.
            PolicyError: The command does not fit the robot.
        """
        return self._sent(correction_request(images, state, prompt, action, **{**self._named(), **extras}))

    def end(self, executed_steps: int | None = None, *, timed_out: bool = False) -> dict[str, Any]:
        """Ends the episode; once this returns, the rollout survives a crash of the server.

        Args:
            executed_steps: How many actions of the last chunk ran.
            timed_out: Whether only a time limit ended it. Labeled 0, it then counts as cut off rather than as failed.
        """
        said = {} if executed_steps is None else {"executed_steps": executed_steps}
        return self._post(f"/rl/episodes/{self.episode_id}/end", {**said, "timed_out": timed_out})

    def reward(
        self, reward: float, episode_id: str | None = None, *, override: bool = False, timed_out: bool | None = None
    ) -> dict[str, Any]:
        """Labels an episode that has ended, by default the last one: 1 success, 0 failure, or between where it is graded.

        Args:
            reward: 1 or 0; with `--rl-graded-rewards` any number from 0 to 1.
            episode_id: None: the last one.
            override: Change another label.
            timed_out: Whether a 0 only means that the time was up (True) or that it failed (False); None: as `end` said.
        """
        name, said = episode_id or self.episode_id, {} if timed_out is None else {"timed_out": timed_out}
        return self._post(f"/rl/episodes/{name}/reward", {"reward": reward, "override": override, **said})

    def abort(self, reason: str = "by the robot") -> None:
        """Drops the open episode."""
        self._post(f"/rl/episodes/{self.episode_id}/abort", {"reason": reason})

    def discard(self, episode_id: str, reason: str = "by request") -> None:
        """Takes a rollout that has ended out of the run, whole: /rl can restore it. Another one may begin in its place."""
        self._post(f"/rl/episodes/{episode_id}/discard", {"reason": reason})

    def status(self) -> dict[str, Any]:
        """`GET /rl/status`."""
        return self._attempts(lambda: http_json(self.url, "/rl/status", token=self.token))

    def _named(self) -> dict[str, Any]:
        """What says of which episode a request is, and makes a repetition known."""
        return {"request_id": uuid.uuid4().hex, "session_id": self.episode_id, "episode_id": self.episode_id}

    def _sent(self, request: Mapping[str, Any]) -> dict[str, Any]:
        reply = self._attempts(lambda: http_act(self.url, request, token=self.token, timeout=self.options.read_timeout))
        self.takeover = bool(reply.get("takeover", False))
        return reply

    def _post(self, path: str, body: dict[str, Any], *, busy: bool = True) -> dict[str, Any]:
        timeout = self.options.read_timeout
        return self._attempts(lambda: http_json(self.url, path, body, token=self.token, timeout=timeout), busy=busy)

    def _attempts(self, work: Callable[[], dict[str, Any]], *, busy: bool = True) -> dict[str, Any]:
        """`work`, again after a lost answer, and with `busy` also where the server asks to come later (503)."""

        def may_pass(error: BaseException) -> bool:
            return error.status == 503 and busy if isinstance(error, PolicyError) else isinstance(error, OSError)

        try:
            return Retrying(**retrying(self.options, self.url, may_pass))(work)
        except PolicyError as error:
            if error.status in _GIVEN_UP:
                raise EpisodeAborted(str(error)) from error
            raise
