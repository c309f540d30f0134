"""A policy's control rate beside its environment's: one that differs is refused, or its chunks are resampled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from syvla.serving.contract.action_chunks import ActionChunks

from .environments.base import Observation, RobotEnvironment
from .policy import Policy

CONTROL_RATES = ("refuse", "resample")
"""What happens where the policy's rate is not the environment's."""


class ResampledPolicy:
    """A policy whose chunks are read at another rate: targets between two of its steps are interpolated.

    Args:
        policy: Its actions are target positions, `policy_hz` of them a second.
        policy_hz: Rate of the policy's actions.
        control_hz: Rate of the actions that it is to give.
    """

    def __init__(self, policy: Policy, policy_hz: float, control_hz: float) -> None:
        self.policy, self.policy_hz, self.control_hz = policy, policy_hz, control_hz
        self.name = policy.name
        self.chunk_size = math.floor((policy.chunk_size - 1) * control_hz / policy_hz + 1e-9) + 1

    def identity(self) -> dict[str, Any]:
        """The policy's, with both rates."""
        return {**self.policy.identity(), "resampled_hz": [self.policy_hz, self.control_hz]}

    def predict(
        self, observations: Sequence[Observation], instructions: Sequence[str], *, seeds: Sequence[int]
    ) -> ActionChunks:
        """See `Policy.predict`; step k is the policy's target at the time k / `control_hz`."""
        answer = self.policy.predict(observations, instructions, seeds=seeds)
        actions = np.asarray(answer.actions)
        at = np.arange(self.chunk_size) * self.policy_hz / self.control_hz  # in steps of the policy
        before = np.minimum(np.floor(at).astype(int), actions.shape[1] - 1)
        after = np.minimum(before + 1, actions.shape[1] - 1)
        share = (at - before)[None, :, None]
        mixed = (1.0 - share) * actions[:, before] + share * actions[:, after]
        return replace(answer, actions=mixed.astype(actions.dtype))


def at_the_environments_rate(policy: Policy, environment: RobotEnvironment, mode: str) -> tuple[Policy, dict[str, Any]]:
    """The policy, resampled where that is asked for, and the rates for the summary.

    Args:
        policy: Its attribute `control_hz` is its rate; a policy without one is taken as it is.
        environment: Where it is to act.
        mode: One of `CONTROL_RATES`.

    Raises:
        ValueError: If the rates differ and `mode` is "refuse", or the actions are moves, which cannot be resampled.
    """
    ours, theirs = getattr(policy, "control_hz", None), float(environment.control_hz)
    rates = {"policy_hz": ours, "environment_hz": theirs, "resampled": False}
    if ours is None or math.isclose(ours, theirs, rel_tol=1e-3):
        return policy, rates
    difference = (
        f"control_rate: {policy.name} gives {ours:g} actions per second, the environment executes {theirs:g}: its motions "
        f"would be {theirs / ours:.3g} times as fast"
    )
    if mode == "refuse":
        raise ValueError(
            f"{difference}; evaluate at {ours:g} Hz, or pass control_rate='resample' (--control-rate resample)"
        )
    if tuple(environment.state_names) != tuple(environment.action_names):
        raise ValueError(
            f"{difference}; they cannot be resampled, since actions here are moves per step ({environment.action_names[0]}, "
            "...), not targets"
        )
    return ResampledPolicy(policy, ours, theirs), {**rates, "resampled": True}
