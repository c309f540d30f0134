"""The small policy of `benchmarks.chunk_seams`: joint targets for both arms from poses instead of pictures.

State: the tabletop's 14 joint values, then the object's position and yaw, the pad's position, and the side of the arm that
works, which a policy of pictures reads from the instruction. The model and its training are those of `chunk_end_policy`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.chunk_end_policy import NO_PICTURES
from syvla.evaluation.environments import make_environment, make_expert
from syvla.modeling_syvla import SyVLAConfig, SyVLAExpertConfig, SyVLAModel

STATE_DIM, ACTION_DIM = 14 + 4 + 2 + 1, 14


@dataclass(frozen=True)
class Robot:
    """Task of the tabletop and its control rate [Hz]; an episode may last 8 s."""

    task: str
    control_hz: float

    def make(self) -> Any:
        return make_environment(
            "tabletop", self.task, control_hz=self.control_hz, image_size=2, max_steps=round(8 * self.control_hz)
        )


def pose_state(env: Any) -> np.ndarray:
    """What the policy reads, float32 (STATE_DIM,)."""
    base = env.unwrapped
    body = base.data.body("object")
    rotation = body.xmat.reshape(3, 3)
    yaw = np.arctan2(rotation[1, 0], rotation[0, 0])
    pad = base.layout.poses.get("pad", (0.0, 0.0, 0.0))[:2]
    side = 1.0 if base.layout.arms == ("left",) else -1.0
    return np.concatenate([base.state, body.xpos, [yaw], pad, [side]]).astype(np.float32)


def demonstrations(robot: Robot, episodes: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """States (T, STATE_DIM) and actions (T, ACTION_DIM) of the scripted expert's successful episodes."""
    env = robot.make()
    expert = make_expert(env)
    found: list[tuple[np.ndarray, np.ndarray]] = []
    seed = 0
    while len(found) < episodes:
        _, info = env.reset(seed=seed)
        expert.reset()
        states, actions, done = [], [], False
        while not done:
            states.append(pose_state(env))
            actions.append(expert.act()[0])
            _, _, terminated, truncated, info = env.step(actions[-1])
            done = terminated or truncated
        if info["success"]:
            found.append((np.stack(states), np.stack(actions)))
        seed += 1
    return found


def make_model(chunk_size: int, seed: int) -> SyVLAModel:
    """Its initial weights depend on chunk length and seed alone."""
    torch.manual_seed(seed)
    config = SyVLAConfig.tiny(
        chunk_size=chunk_size, intention_decoupling=False, expert_vision_config=NO_PICTURES,
        expert_image_size=8, num_query_tokens=1,
        embodiments={"tabletop": {"state_dim": STATE_DIM, "action_dim": ACTION_DIM}},
        expert_config=SyVLAExpertConfig(
            hidden_size=64, num_hidden_layers=3, num_attention_heads=4, head_dim=16, ff_multiple_of=32
        ),
    )  # fmt: skip
    return SyVLAModel(config)
