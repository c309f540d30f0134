"""What a recorded rollout holds: a LeRobot v3.0 episode, the columns that reinforcement learning needs, and one JSON file.

One row per observation that the server saw. Two kinds of clients lead to two kinds of recordings:

- A client that sends an observation only when it wants a chunk: every row is a decision, rows are `executed_steps`
  control steps apart, and `rollout.control_step` (not the timestamp, which LeRobot counts in rows) is the true time.
- A client that also sends the observations in between (`observe_only`): one row per control step, of which those with
  `rollout.is_decision` hold a chunk. Such an episode is an ordinary demonstration of the policy as well.

`action` is what the robot was told to do at that row: step k of the chunk in force, k rows after its decision.
Of a row that is no decision, `rollout.chunk` is zero, the texts are empty and the seed is -1.

`meta/rollouts/episode-NNNNNN.json` holds what belongs to the whole episode; LeRobot ignores it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from syvla.serving.contract.rollout_sampler import ChainStep

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
float32 (T, D) each, normalised as the model sees actions."""


@dataclass(frozen=True)
class ServedDecision:
    """One answered request.

    Attributes:
        images: Camera to uint8 (H, W, 3), as the policy got them.
        state: float32 (D_state,), physical units.
        instruction: Not empty.
        actions: float32 (T, D_action), physical units, as sent to the robot.
        seed: Of the flow's noise, 0 <= seed < 2**63.
        policy_version: Hash of the weights.
        predicted: The policy's own chunk where safety limits changed it; None: `actions`.
        thought: None if the policy did not think for this decision and none is in force.
        executed_before: How many actions of the previous chunk ran, by the client's word; None if it did not say.
        request_id: Idempotency key: a repetition of the last one is not recorded twice.
        frozen_steps: Actions at the start of the chunk that continue the previous chunk.
        query_age: Age of the query states in seconds; 0 in synchronous use.
        chain: The sampler's stochastic step; None where the flow was integrated as it is.
    """

    images: Mapping[str, np.ndarray]
    state: np.ndarray
    instruction: str
    actions: np.ndarray
    seed: int
    policy_version: str
    predicted: np.ndarray | None = None
    thought: str | None = None
    executed_before: int | None = None
    request_id: str | None = None
    frozen_steps: int = 0
    query_age: float = 0.0
    chain: ChainStep | None = None

    @property
    def nbytes(self) -> int:
        chain = 0 if self.chain is None else self.chain.before.nbytes + self.chain.after.nbytes
        return sum(image.nbytes for image in self.images.values()) + self.actions.nbytes + chain


TIME_OUTS = ("time limit", "timeout")
"""Values of an episode's `ended` that say that a time limit cut it off."""


@dataclass
class EpisodeFacts:
    """Contents of an episode's JSON file.

    Attributes:
        episode_id: The client's or the server's name for it, unique in the data set.
        session: Who ran it.
        embodiment: Name of the robot.
        instruction: The first one, if the client changed it on the way.
        outcome: 1 success, 0 failure, None as long as nobody has said.
        ended: "client", "time limit", "new episode", "disconnected", "expired" or "server stopped".
        cut_off: By the word of who labelled it, whether outcome 0 only means that the time was up (True) or that it failed
            (False); None: as `ended` says.
        started_at, ended_at: Unix time, seconds.
        decisions: Number of chunks.
        policy_versions: Distinct, in order of use; one alone unless weights were swapped in mid-episode.
    """

    episode_id: str
    session: str
    embodiment: str
    instruction: str = ""
    outcome: int | None = None
    ended: str = ""
    cut_off: bool | None = None
    started_at: float = 0.0
    ended_at: float = 0.0
    decisions: int = 0
    policy_versions: list[str] = field(default_factory=list)

    @property
    def timed_out(self) -> bool:
        """Whether a time limit cut it off, so that outcome 0 does not say that it would have failed."""
        return self.ended in TIME_OUTS if self.cut_off is None else self.cut_off


def facts_path(root: Path, episode_index: int) -> Path:
    return root / "meta" / "rollouts" / f"episode-{episode_index:06d}.json"


def rollout_features(
    decision: ServedDecision, state_names: list[str] | None = None, action_names: list[str] | None = None
) -> dict[str, dict[str, Any]]:
    """Features of a data set that starts with this decision, as `RobotDatasetWriter` takes them."""
    steps, width = decision.actions.shape
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
    features[f"{PREFIX}chunk"] = {"dtype": "float32", "shape": [steps, width], "names": None}
    for name, dtype in COLUMNS.items():
        features[PREFIX + name] = {"dtype": dtype, "shape": [1], "names": None}
    if decision.chain is not None:
        for name in CHAIN_STATES:
            features[PREFIX + name] = {"dtype": "float32", "shape": [steps, width], "names": None}
        for name, dtype in CHAIN_COLUMNS.items():
            features[PREFIX + name] = {"dtype": dtype, "shape": [1], "names": None}
    return features


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


def check_outcome(outcome: Any) -> int | None:
    """Raises ValueError unless `outcome` is 0, 1 or None."""
    if outcome is None:
        return None
    if isinstance(outcome, bool) or outcome not in (0, 1):
        raise ValueError(f"outcome: expected 1 (success), 0 (failure) or nothing, got {outcome!r:.80}")
    return int(outcome)
