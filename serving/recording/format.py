"""What a recorded rollout holds: a LeRobot v3.0 episode with the columns that reinforcement learning needs.

One row per observation that the server saw. Two kinds of clients lead to two kinds of recordings:

- A client that sends an observation only when it wants a chunk: every row is a decision, rows are `executed_steps`
  control steps apart, and `rollout.control_step` (not the timestamp, which LeRobot counts in rows) is the true time.
- A client that also sends the observations in between (`observe_only`): one row per control step, of which those with
  `rollout.is_decision` hold a chunk. Such an episode is an ordinary demonstration of the policy as well.

`action` is what the robot was told to do at that row: step k of the chunk in force, k rows after its decision.
At a row with `intervention` a person acted, and `action` is the person's command. Such rows come one per control step, after
the `rollout.executed_steps` that ran of the chunk in force. Recordings from before that column have no such rows.
Of a row that is no decision, `rollout.chunk` is zero, the texts are empty and the seed is -1.

What belongs to the whole episode lies beside it, see `episode_facts`; LeRobot ignores that.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from syvla.serving.contract.rollout_sampler import ChainStep

from .decision import Decision

INTERVENTION = "intervention"
"""bool: a person acted at this row instead of the policy. The column's name and type are those of LeRobot's own DAgger."""
IMAGE_PREFIX = "observation.images."
STATE, ACTION = "observation.state", "action"
PREFIX = "rollout."
COLUMNS: dict[str, str] = {
    "is_decision": "bool",  # the policy was asked here
    "decision_index": "int64",  # number of the decision in force, from 0 within the episode
    "control_step": "int64",  # control steps since the episode began
    "executed_steps": "int64",  # how many actions of this decision's chunk ran
    "executed_known": "bool",  # whether the client said so, or sent every step; otherwise it is an assumption
    "seed": "int64",  # of the flow's initial noise
    "frozen_steps": "int64",  # first actions of the chunk that were carried over from the previous one
    "query_age": "float32",  # seconds between the observation of the query states and this one
    "chunk_id": "string",  # unique: episode id and decision index
    "policy_version": "string",
    "thought": "string",  # exactly as this decision's reply had it; `language_persistent` holds it for imitation
}
"""dtype of each column of single values; `rollout.chunk`, float32 (T, D), comes besides: the chunk before safety limits."""
CHAIN_COLUMNS: dict[str, str] = {
    "chain_step": "int64",  # number of the stochastic step, from 0; -1 where there is none
    "chain_num_steps": "int64",  # K, steps of the sampler; the step's time is chain_step / K
    "chain_noise_level": "float64",
}
CHAIN_STATES = ("chain_before", "chain_after")
"""In recordings of a stochastic sampler (`rollout_sampler`) besides: the columns above, and x before and after the step,
float32 (T, D) each, normalized as the model sees actions."""


def rollout_features(
    decision: Decision, state_names: list[str] | None = None, action_names: list[str] | None = None
) -> dict[str, dict[str, Any]]:
    """Features of a dataset that starts with this decision, as `RobotDatasetWriter` takes them."""
    steps, width = decision.chunk.shape
    features: dict[str, dict[str, Any]] = {
        f"{IMAGE_PREFIX}{camera}": {
            "dtype": "image",
            "shape": list(image.shape),
            "names": ["height", "width", "channels"],
        }
        for camera, image in sorted(decision.images.items())
    }
    features[STATE] = {"dtype": "float32", "shape": list(decision.state.shape), "names": state_names}
    features[ACTION] = {"dtype": "float32", "shape": [width], "names": action_names}
    features[INTERVENTION] = {"dtype": "bool", "shape": [1], "names": None}
    features[f"{PREFIX}chunk"] = {"dtype": "float32", "shape": [steps, width], "names": None}
    for name, dtype in COLUMNS.items():
        features[PREFIX + name] = {"dtype": dtype, "shape": [1], "names": None}
    if decision.chain is not None:
        for name in CHAIN_STATES:
            features[PREFIX + name] = {"dtype": "float32", "shape": [steps, width], "names": None}
        for name, dtype in CHAIN_COLUMNS.items():
            features[PREFIX + name] = {"dtype": dtype, "shape": [1], "names": None}
    return features


def chunk_id(episode_id: str, decision_index: int) -> str:
    """Unique name of a chunk."""
    return f"{episode_id}:{decision_index}"


def chain_row(chain: ChainStep | None, like: np.ndarray) -> dict[str, Any]:
    """A row's values of the columns of the sampler's step; zeros and -1 without one.

    Args:
        chain: The step.
        like: A chunk, for the shape.
    """
    if chain is None:
        states = dict.fromkeys(CHAIN_STATES, np.zeros_like(like))
        return {**states, "chain_step": -1, "chain_num_steps": 0, "chain_noise_level": 0.0}
    sampler = chain.sampler
    values = (chain.before, chain.after, chain.step, sampler.num_steps, sampler.noise_level)
    return dict(zip((*CHAIN_STATES, *CHAIN_COLUMNS), values, strict=True))
