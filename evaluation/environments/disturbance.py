"""Disturbed execution for recordings: the robot executes something else than the expert said, the label stays clean.

Both kinds show the policy states beside the expert's own path together with the action that leads back (Laskey et al.
2017, "DART: noise injection for robust imitation learning"). Both are off by default, as clean demonstrations are
shorter and simpler to learn from on a small budget.
"""

from __future__ import annotations

import numpy as np

BURST_PROBABILITY = 0.06  # per control step
BURST_STEPS = 3
BURST_SIZE = 0.4  # standard deviation as a share of the largest motion per control step
OPEN_PROBABILITY = 0.3  # share of bursts that also open the grippers, so that a held object falls


def check_action_noise(action_noise: float) -> None:
    """Raises a `ValueError` unless the noise is a sensible share of the motion per step."""
    if not 0 <= action_noise <= 2:
        raise ValueError(f"action_noise: expected 0 to 2 (share of the motion per step), got {action_noise}")


class Disturbance:
    """Turns the expert's action into the one that is executed.

    Args:
        action_noise: Standard deviation of independent Gaussian noise in every step, as a share of the largest motion
            per control step (`env.max_step_motion`): 0.1 means 0.03 rad per joint of the tabletop. Grippers are spared.
        recovery: Whether to push the robot away for a few steps now and then, sometimes opening its grippers.
        max_step_motion: Largest motion per control step in each action dimension (D,).
        low: Smallest action (D,).
        high: Largest action (D,).
        gripper: True for gripper dimensions (D,).
        rng: Source of randomness.
    """

    def __init__(
        self,
        *,
        action_noise: float,
        recovery: bool,
        max_step_motion: np.ndarray,
        low: np.ndarray,
        high: np.ndarray,
        gripper: np.ndarray,
        rng: np.random.Generator,
    ) -> None:
        check_action_noise(action_noise)
        self._noise = action_noise * np.where(gripper, 0.0, max_step_motion)
        self._recovery = recovery
        self._burst_size = BURST_SIZE * np.where(gripper, 0.0, max_step_motion)
        self._low, self._high, self._gripper, self._rng = low, high, gripper, rng
        self._remaining = 0
        self._offset = np.zeros_like(self._noise)
        self._opens = False

    def __call__(self, action: np.ndarray) -> np.ndarray:
        """The action to execute instead of `action` (D,); equal to it without noise and recovery."""
        executed = action + self._rng.standard_normal(action.shape) * self._noise
        if self._recovery:
            executed = self._pushed(executed)
        return np.clip(executed, self._low, self._high).astype(action.dtype)

    def _pushed(self, action: np.ndarray) -> np.ndarray:
        if self._remaining == 0 and self._rng.random() < BURST_PROBABILITY:
            self._remaining = BURST_STEPS
            self._offset = self._rng.standard_normal(action.shape) * self._burst_size
            self._opens = bool(self._rng.random() < OPEN_PROBABILITY)
        if self._remaining == 0:
            return action
        self._remaining -= 1
        pushed = action + self._offset
        return np.where(self._gripper & self._opens, self._high, pushed)
