"""Policies without a model for tests of the server: their answers are known in advance, their time is set."""

from __future__ import annotations

import threading
import time

import numpy as np

from syvla.serving.contract.requests import ActAnswer, ActRequest


class CountingPolicy:
    """Answers action t = seed + t in every dimension, after `seconds`. Notes the batches that it was given.

    `hold` makes it work at its next batches until `release`, so that a test needs no clock to find it at work.
    Requests whose instruction is "nan", "huge", "break" or "impossible" get what their name says.
    """

    def __init__(self, seconds: float = 0.0, version: str = "counting", dim: int = 2, horizon: int = 6) -> None:
        self.seconds, self.version, self.dim, self.horizon = seconds, version, dim, horizon
        self.batches: list[list[ActRequest]] = []
        self.running, self._free = threading.Event(), threading.Event()
        self._free.set()
        self.forgotten: list[str] = []

    def hold(self) -> None:
        self.running.clear()
        self._free.clear()

    def release(self) -> None:
        self._free.set()

    def metadata(self) -> dict:
        entry = {"state_dim": self.dim, "action_dim": self.dim, "action_names": ["shoulder", "grip"][: self.dim]}
        return {
            "model": "counting",
            "views": ["center", "left_wrist", "right_wrist"],
            "action_horizon": self.horizon,
            "embodiments": {"arm": {**entry, "control_hz": 10.0}},
        }

    def submit_observation(self, request: ActRequest) -> None:
        """Returns None: no VLM runs in the background."""

    def answer(self, requests) -> list[ActAnswer]:
        self.batches.append(list(requests))
        self.running.set()
        assert self._free.wait(120)
        time.sleep(self.seconds)
        return [self._one(request) for request in requests]

    def _one(self, request: ActRequest) -> ActAnswer:
        if request.instruction == "break":
            raise RuntimeError("secret path /home/me/weights")
        if request.instruction == "impossible":
            raise ValueError("prompt: expected something possible, got 'impossible'")
        steps = (request.seed + np.arange(self.horizon, dtype=np.float32))[:, None]
        actions = np.repeat(steps, self.dim, axis=1).astype(np.float32)
        if request.instruction == "nan":
            actions[3, 1] = np.nan
        if request.instruction == "huge":
            actions[2:] = 1000
        thought = f"thought for {request.instruction} {len(self.batches)}" if request.think else request.thought
        return ActAnswer(actions, thought, {"queries": 0.0, "denoise": self.seconds})

    def take_vlm_seconds(self) -> list[dict[str, float]]:
        """Nothing runs in the background."""
        return []

    def forget(self, session: str) -> None:
        self.forgotten.append(session)

    def warm_up(self, think: bool = False) -> None:
        """Nothing to warm."""

    def close(self) -> None:
        """Nothing to end."""
