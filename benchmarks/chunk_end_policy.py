"""The small policy of `benchmarks.chunk_end`: demonstrations, training, and closed loop, all from poses instead of pictures.

State: tool point, yaw and opening of the working arm's gripper, pose of the object, place of the pad. Action: absolute targets
of tool point [m], yaw [rad] and opening [m], which the arm's inverse kinematics turns into joint targets, as the scripted
expert's own are. Left is mirrored to right, so that one arm is all there is to learn. The model is the real one: loss and
flow are `SyVLAModel.action_loss` and `sample_actions`, with no view present and constant query states.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from syvla.evaluation.environments import make_environment, make_expert
from syvla.evaluation.environments.arm_kinematics import rotation_about_z
from syvla.evaluation.environments.base import EVALUATION_SEED_OFFSET
from syvla.evaluation.environments.tabletop.scene import SIDES
from syvla.modeling_syvla import SyVLAConfig, SyVLAExpertConfig, SyVLAModel
from syvla.modeling_syvla.expert_inputs import ExpertObservation

STATE_DIM, ACTION_DIM = 5 + 4 + 2, 5
JOINTS = 6
EPISODE_SECONDS = 3  # the scripted expert needs 0.8 (lift) to 1.4 (place)
NO_PICTURES = {
    "model_type": "bit", "num_channels": 3, "embedding_size": 8, "hidden_sizes": [8], "depths": [1],
    "layer_type": "preactivation", "num_groups": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Robot:
    """Task of the tabletop and its control rate [Hz]."""

    task: str
    control_hz: float

    def make(self) -> Any:
        return make_environment(
            "tabletop",
            self.task,
            control_hz=self.control_hz,
            image_size=2,
            max_steps=round(EPISODE_SECONDS * self.control_hz),
        )


class Arm:
    """The working arm of an environment after its reset, in coordinates in which it is the right one."""

    def __init__(self, env: Any) -> None:
        self.env = env.unwrapped
        side = self.env.layout.arms[0]
        self.start = SIDES.index(side) * (JOINTS + 1)
        self.mirror = np.array([1.0, 1.0 if side == "right" else -1.0, 1.0])
        self.kinematics = self.env.kinematics[side]
        self.idle = self.env.state.copy()

    def state(self) -> np.ndarray:
        """What the policy reads, float32 (STATE_DIM,)."""
        body = self.env.data.body("object")
        pad = np.array([*self.env.layout.poses.get("pad", (0.0, 0.0))[:2], 0.0]) * self.mirror
        thing = [*(body.xpos * self.mirror), _yaw(body.xmat.reshape(3, 3)) * self.mirror[1]]
        return np.concatenate([self.pose(self.env.state), thing, pad[:2]]).astype(np.float32)

    def pose(self, joints: np.ndarray) -> np.ndarray:
        """Tool point, yaw and opening (5,) of all joint values (14,)."""
        point, rotation = self.kinematics.forward(joints[self.start : self.start + JOINTS])
        return np.array([*(point * self.mirror), _yaw(rotation) * self.mirror[1], joints[self.start + JOINTS]])

    def joint_targets(self, action: np.ndarray) -> np.ndarray:
        """All joint targets (14,) of an action (5,); the other arm stays where it was."""
        targets = self.idle.copy()
        own = slice(self.start, self.start + JOINTS)
        rotation = rotation_about_z(float(action[3]) * self.mirror[1])
        targets[own] = self.kinematics.inverse(action[:3] * self.mirror, rotation, self.env.state[own])
        targets[self.start + JOINTS] = action[4]
        return np.asarray(np.clip(targets, self.env.action_space.low, self.env.action_space.high))


def _yaw(rotation: np.ndarray) -> float:
    """Of the direction in which the gripper closes, or of an object, within a quarter turn either way."""
    yaw = float(np.arctan2(rotation[1, 0], rotation[0, 0]))
    return (yaw + np.pi / 2) % np.pi - np.pi / 2


@cache
def demonstrations(robot: Robot, episodes: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """States (T, STATE_DIM) and actions (T, ACTION_DIM) of the scripted expert's successful episodes."""
    env = robot.make()
    expert = make_expert(env)
    found: list[tuple[np.ndarray, np.ndarray]] = []
    seed = 0
    while len(found) < episodes:
        _, info = env.reset(seed=seed)
        expert.reset()
        arm = Arm(env)
        states, actions, done = [], [], False
        while not done:
            targets = expert.act()[0]
            states.append(arm.state())
            actions.append(arm.pose(targets))
            _, _, terminated, truncated, info = env.step(targets)
            done = terminated or truncated
        if info["success"]:
            found.append((np.stack(states), np.stack(actions)))
        seed += 1
    return found


@dataclass(frozen=True)
class Chunks:
    """Every frame's chunk, normalized: states (N, STATE_DIM), actions (N, T, ACTION_DIM), real steps bool (N, T)."""

    states: torch.Tensor
    actions: torch.Tensor
    real: torch.Tensor

    def rows(self, rows: torch.Tensor) -> Chunks:
        return Chunks(self.states[rows], self.actions[rows], self.real[rows])


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation per dimension, of the training episodes."""

    state: tuple[np.ndarray, np.ndarray]
    action: tuple[np.ndarray, np.ndarray]

    @classmethod
    def of(cls, episodes: list[tuple[np.ndarray, np.ndarray]]) -> Statistics:
        pairs = []
        for part in (0, 1):
            values = np.concatenate([episode[part] for episode in episodes])
            pairs.append((values.mean(0), np.maximum(values.std(0), 1e-2)))
        return cls(*pairs)


def make_chunks(episodes: list[tuple[np.ndarray, np.ndarray]], statistics: Statistics, size: int) -> Chunks:
    """One chunk for each frame; steps after the end are zero and not real."""
    states, actions, real = [], [], []
    for state, action in episodes:
        normalized = (action - statistics.action[0]) / statistics.action[1]
        for t in range(len(state)):
            part = normalized[t : t + size]
            actions.append(np.pad(part, ((0, size - len(part)), (0, 0))))
            real.append(np.arange(size) < len(part))
        states.append((state - statistics.state[0]) / statistics.state[1])
    return Chunks(
        torch.tensor(np.concatenate(states), dtype=torch.float32),
        torch.tensor(np.stack(actions), dtype=torch.float32),
        torch.tensor(np.stack(real)),
    )


def make_model(arm: str, chunk_size: int, seed: int) -> SyVLAModel:
    """Its initial weights depend on chunk length and seed alone."""
    torch.manual_seed(seed)
    config = SyVLAConfig.tiny(
        chunk_size=chunk_size, chunk_end=arm, intention_decoupling=False, expert_vision_config=NO_PICTURES,
        expert_image_size=8, num_query_tokens=1,
        embodiments={"tabletop": {"state_dim": STATE_DIM, "action_dim": ACTION_DIM}},
        expert_config=SyVLAExpertConfig(
            hidden_size=48, num_hidden_layers=2, num_attention_heads=3, head_dim=16, ff_multiple_of=32
        ),
    )  # fmt: skip
    return SyVLAModel(config)


def observation(model: SyVLAModel, states: torch.Tensor) -> tuple[torch.Tensor, ExpertObservation]:
    """Constant query states, and the states with every view missing."""
    count, views = len(states), len(model.config.views)
    width = model.config.vlm_config.text_config.hidden_size
    return torch.ones(count, 1, width), ExpertObservation(
        states, torch.zeros(count, dtype=torch.int64), torch.zeros(count, views, 3, 8, 8),
        torch.zeros(count, views, dtype=torch.bool),
    )  # fmt: skip


def train(model: SyVLAModel, chunks: Chunks, *, steps: int, batch: int, seed: int, learning_rate: float = 2e-3) -> None:
    """Order of the samples, noise and times depend on the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    weights = [p for part in (model.expert, model.adapter) for p in part.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.05)
    model.train()
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        if len(order) < batch:
            order = torch.cat((order, torch.randperm(len(chunks.states), generator=generator)))
        part, order = chunks.rows(order[:batch]), order[batch:]
        noise = torch.randn(part.actions.shape, generator=generator)
        time = model.config.time_max * (
            1 - torch.rand(batch, generator=generator).pow(1 / model.config.time_beta_alpha)
        )
        mask = part.real[..., None].expand_as(part.actions)
        loss, _ = model.action_loss(*observation(model, part.states), part.actions, mask, noise, time)
        optimizer.zero_grad()
        loss.mean().backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
    model.eval()


@torch.no_grad()
def closed_loop(
    model: SyVLAModel, statistics: Statistics, robot: Robot, *, episodes: int, replan_steps: int
) -> list[dict[str, Any]]:
    """Outcome of each evaluation seed. The noise of a call depends on the episode's seed and the call's number."""
    seeds = [EVALUATION_SEED_OFFSET + i for i in range(episodes)]
    envs = [robot.make() for _ in seeds]
    for env, seed in zip(envs, seeds, strict=True):
        env.reset(seed=seed)
    arms = [Arm(env) for env in envs]
    outcomes: dict[int, dict[str, Any]] = {}
    steps, call = 0, 0
    while len(outcomes) < episodes:
        active = [i for i in range(episodes) if i not in outcomes]
        states = np.stack([arms[i].state() for i in active])
        states = (states - statistics.state[0]) / statistics.state[1]
        shape = (model.config.chunk_size, ACTION_DIM)
        noise = np.stack([np.random.default_rng([seeds[i], call]).standard_normal(shape) for i in active])
        chunk = model.sample_actions(
            *observation(model, torch.tensor(states, dtype=torch.float32)),
            noise=torch.tensor(noise, dtype=torch.float32),
        )
        actions = chunk.numpy() * statistics.action[1] + statistics.action[0]
        for row, i in enumerate(active):
            for k in range(replan_steps):
                _, _, terminated, truncated, info = envs[i].step(arms[i].joint_targets(actions[row, k]))
                if terminated or truncated:
                    outcomes[i] = {"seed": seeds[i], "success": bool(info["success"]), "steps": steps + k + 1}
                    envs[i].close()
                    break
        steps, call = steps + replan_steps, call + 1
    return [outcomes[i] for i in range(episodes)]


@torch.no_grad()
def end_errors(model: SyVLAModel, chunks: Chunks, draws: int = 2) -> dict[str, list[float]]:
    """Squared error of the real steps of each chunk that is at least half padding, normalized, mean over draws.

    "as trained": at every flow step stands in the padding what training put there. "as served": what the policy makes of it.
    """
    from syvla.modeling_syvla.expert_inputs import end_chunks
    from syvla.modeling_syvla.flow_matching import euler_sample, interpolate

    part = chunks.rows((~chunks.real).float().mean(1) >= 0.5)
    context = model.encode_expert_context(*observation(model, part.states))
    mask = part.real[..., None].expand_as(part.actions)
    ended, _ = end_chunks(model.config.chunk_end, part.actions, mask)
    attended = part.real if model.config.chunk_end == "masked" else None
    found: dict[str, list[float]] = {}
    for way in ("as trained", "as served"):
        total = torch.zeros(len(part.states))
        for draw in range(draws):
            noise = torch.randn(ended.shape, generator=torch.Generator().manual_seed(draw))

            def velocity(x: torch.Tensor, t: torch.Tensor, noise: torch.Tensor = noise, way: str = way) -> torch.Tensor:
                trained = way == "as trained"
                if trained:
                    x = torch.where(part.real[..., None], x, interpolate(noise, ended, t))
                flow: torch.Tensor = model.expert.predict_velocity(x, t, context, attended if trained else None)
                return flow

            chunk = euler_sample(velocity, noise, model.config.num_inference_steps)
            error = F.mse_loss(chunk, part.actions, reduction="none").where(mask, torch.tensor(0.0))
            total += error.sum((1, 2)) / mask.sum((1, 2))
        found[way] = [round(value, 5) for value in (total / draws).tolist()]
    return found
