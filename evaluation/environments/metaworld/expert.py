"""MetaWorld's own scripted experts, with a thought derived from what hand and object do."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from metaworld.policies import ENV_POLICY_MAP

from .environment import MetaWorldEnv
from .tasks import TASK_WORDS

REACHED = 0.08  # meters between hand and object; hands stay up to 7 cm above what they grasp
MOVED = 0.01  # meters that an object has moved once something happens to it


class MetaWorldExpert:
    """The expert of one task.

    The experts are stateless functions of MetaWorld's full state. The thought goes "reach the ..." until the hand is
    within `REACHED` of the object or has moved it, then "close the gripper on the ..." while the gripper closes and the
    object has not moved, then the instruction itself.

    Args:
        env: The environment (unwrapped) to act in.
    """

    def __init__(self, env: MetaWorldEnv) -> None:
        self._env = env
        policies: dict[str, Any] = ENV_POLICY_MAP
        self._policy = policies[env.task]()
        self._words = TASK_WORDS[env.task]

    def reset(self) -> None:
        """Prepares for the episode the environment has just been reset to."""
        self._reached = self._moved = False
        self._start = self._env.full_state[4:7].copy()

    def act(self) -> tuple[np.ndarray, str]:
        """Action (4,) float32 in -1 to 1, and the thought behind it."""
        state = self._env.full_state
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the experts ask for more than the range allows; the environment clips
            action = np.clip(self._policy.get_action(state), -1, 1).astype(np.float32)
        return action, self._thought(state, effort=float(action[3]))

    def _thought(self, state: np.ndarray, effort: float) -> str:
        if not self._words.object:
            return self._words.instruction
        hand, item = state[:3], state[4:7]
        self._moved |= bool(np.linalg.norm(item - self._start) > MOVED)
        self._reached |= self._moved or bool(np.linalg.norm(hand - item) < REACHED)
        if not self._reached:
            return f"reach the {self._words.object}"
        if not self._moved and effort > 0:
            return f"close the gripper on the {self._words.object}"
        return self._words.instruction


def make_metaworld_expert(env: MetaWorldEnv) -> MetaWorldExpert:
    """The scripted expert of the environment's task."""
    return MetaWorldExpert(env)
