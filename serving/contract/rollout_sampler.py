"""How a run of reinforcement learning has its rollouts sampled, where their likelihood must be known. No torch.

A run with `ratio_method="flow_sde"` publishes `rollout_sampler.json` with each policy. The server of that run then samples
the chunks of its episodes with one stochastic step each (`syvla.modeling_syvla.flow_sde`) and records that step. Requests
outside of episodes, such as an evaluation's, get the flow's own Euler steps.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

SAMPLER_FILE = "rollout_sampler.json"
FLOW_SDE = "flow_sde"


@dataclass(frozen=True)
class RolloutSampler:
    """Settings of the stochastic sampler.

    Attributes:
        num_steps: K, steps of the flow, of which one is stochastic.
        noise_level: a, see `syvla.modeling_syvla.flow_sde.sde_step`.
        method: The one there is.
    """

    num_steps: int
    noise_level: float
    method: str = FLOW_SDE

    def __post_init__(self) -> None:
        if self.method != FLOW_SDE:
            raise ValueError(f"method: expected {FLOW_SDE!r}, got {self.method!r:.60}")
        if type(self.num_steps) is not int or not 2 <= self.num_steps <= 10_000:
            raise ValueError(f"num_steps: expected an integer of at least 2, got {self.num_steps!r:.60}")
        level = self.noise_level
        if isinstance(level, bool) or not isinstance(level, int | float) or not 0 < level < math.inf:
            raise ValueError(f"noise_level: expected a positive number, got {level!r:.60}")

    def describe(self) -> dict[str, Any]:
        """As the server's metadata and the file have it."""
        return asdict(self)

    def save(self, folder: Path) -> None:
        (folder / SAMPLER_FILE).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class ChainStep:
    """The stochastic step of the sampler that made a chunk, normalized as the model sees actions.

    Attributes:
        before, after: x before and after the step, float32 (T, D_action).
        step: Its number, from 0; its time is step / sampler.num_steps.
        sampler: What it was drawn with.
    """

    before: np.ndarray
    after: np.ndarray
    step: int
    sampler: RolloutSampler


def read_sampler(folder: Path) -> RolloutSampler | None:
    """The sampler that a published policy asks for, None where it asks for none.

    Raises:
        ValueError: The file is not one.
    """
    path = folder / SAMPLER_FILE
    if not path.is_file():
        return None
    try:
        return RolloutSampler(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); publish the policy again") from None
