"""The small policy of `benchmarks.augmentation`: it sees pictures and joint values, and has the real expert and flow.

Light, camera and background are a matter of the expert's image encoder, so the VLM is left out: its query states are constant.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

from syvla.evaluation.environments import make_environment, make_expert
from syvla.evaluation.environments.base import EVALUATION_SEED_OFFSET
from syvla.evaluation.environments.tabletop.environment import TabletopEnv
from syvla.modeling_syvla import SyVLAConfig, SyVLAExpertConfig, SyVLAModel
from syvla.modeling_syvla.expert_inputs import ExpertObservation
from syvla.processing.augmentation import Augmentation, augmentation_settings

ROBOT = "tabletop"
DIM = 14  # of state and action
VIEWS = tuple(TabletopEnv.view_cameras)
CHUNK, REPLAN_STEPS = 8, 4
EPISODE_STEPS = 50  # at 10 Hz; the scripted expert needs about 15


@dataclass(frozen=True)
class Demonstrations:
    """Every frame of successful episodes.

    Attributes:
        pictures: By view, uint8 (N, H, W, 3).
        states: Raw, float32 (N, DIM).
        chunks: Normalized actions, float32 (N, CHUNK, DIM); the last one is held beyond the end.
        statistics: Mean and standard deviation by dimension, of state and action.
    """

    pictures: dict[str, np.ndarray]
    states: np.ndarray
    chunks: torch.Tensor
    statistics: dict[str, tuple[np.ndarray, np.ndarray]]


def make_world(task: str, shift: str | None = None) -> Any:
    return make_environment(ROBOT, task, max_steps=EPISODE_STEPS, shift=shift)


@cache
def demonstrations(task: str, episodes: int) -> Demonstrations:
    """The scripted expert's, without any shift."""
    env = make_world(task)
    expert = make_expert(env)
    found: list[tuple[list[dict[str, np.ndarray]], np.ndarray, np.ndarray]] = []
    seed = 0
    while len(found) < episodes:
        observation, info = env.reset(seed=seed)
        expert.reset()
        seen, states, actions, done = [], [], [], False
        while not done:
            seen.append({view: observation["images"][camera] for view, camera in TabletopEnv.view_cameras.items()})
            states.append(observation["state"])
            actions.append(expert.act()[0])
            observation, _, terminated, truncated, info = env.step(actions[-1])
            done = terminated or truncated
        if info["success"]:
            found.append((seen, np.stack(states), np.stack(actions)))
        seed += 1
    states, actions = (np.concatenate([episode[part] for episode in found]) for part in (1, 2))
    statistics = {
        name: (values.mean(0), np.maximum(values.std(0), 1e-2))
        for name, values in (("state", states), ("action", actions))
    }
    mean, std = statistics["action"]
    chunks = [
        (episode[np.minimum(np.arange(t, t + CHUNK), len(episode) - 1)] - mean) / std
        for _, _, episode in found
        for t in range(len(episode))
    ]
    frames = [frame for seen, _, _ in found for frame in seen]
    pictures = {view: np.stack([frame[view] for frame in frames]) for view in VIEWS}
    return Demonstrations(pictures, states, torch.tensor(np.stack(chunks), dtype=torch.float32), statistics)


def make_model(seed: int) -> SyVLAModel:
    """Its initial weights depend on the seed alone."""
    torch.manual_seed(seed)
    expert = SyVLAExpertConfig(
        hidden_size=64, num_hidden_layers=3, num_attention_heads=4, head_dim=16, ff_multiple_of=32
    )
    config = SyVLAConfig.tiny(
        chunk_size=CHUNK, intention_decoupling=False, num_query_tokens=1, expert_config=expert,
        embodiments={ROBOT: {"state_dim": DIM, "action_dim": DIM}},
    )  # fmt: skip
    return SyVLAModel(config)


def observation_of(
    model: SyVLAModel, items: list[dict[str, Any]], statistics: dict[str, tuple[np.ndarray, np.ndarray]]
) -> tuple[torch.Tensor, ExpertObservation]:
    """Constant query states, and what the expert sees of items with `images` by view and a raw `state`."""
    mean, std = statistics["state"]
    states = np.stack([(item["state"] - mean) / std for item in items])
    present = torch.tensor([[view in item["images"] for view in VIEWS] for item in items])
    blank = np.zeros_like(next(iter(items[0]["images"].values())))
    pictures = np.stack([[item["images"].get(view, blank) for view in VIEWS] for item in items])
    pixels = torch.from_numpy(pictures).permute(0, 1, 4, 2, 3).float() / 127.5 - 1
    width = model.config.vlm_config.text_config.hidden_size
    return torch.ones(len(items), 1, width), ExpertObservation(
        torch.tensor(states, dtype=torch.float32), torch.zeros(len(items), dtype=torch.int64), pixels, present
    )


def train(model: SyVLAModel, data: Demonstrations, *, strength: str, steps: int, batch: int, seed: int) -> float:
    """Order of the samples, noise and times depend on the seed alone; returns the mean loss of the last tenth."""
    settings = augmentation_settings(strength)
    augmentation = None if settings is None else Augmentation(settings, {}, seed)
    generator = torch.Generator().manual_seed(seed)
    weights = [p for part in (model.expert, model.adapter) for p in part.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps, pct_start=0.05)
    model.train()
    order, epoch, losses = torch.empty(0, dtype=torch.int64), -1, []
    for _ in range(steps):
        if len(order) < batch:
            order, epoch = torch.cat((order, torch.randperm(len(data.states), generator=generator))), epoch + 1
        rows, order = order[:batch], order[batch:]
        items = [
            {"images": {view: data.pictures[view][row] for view in VIEWS}, "state": data.states[row]}
            for row in rows.tolist()
        ]
        if augmentation is not None:
            items = [augmentation(item, (epoch, row)) for item, row in zip(items, rows.tolist(), strict=True)]
        chunk = data.chunks[rows]
        noise = torch.randn(chunk.shape, generator=generator)
        uniform = torch.rand(batch, generator=generator)
        time = model.config.time_max * (1 - uniform.pow(1 / model.config.time_beta_alpha))
        mask = torch.ones_like(chunk, dtype=torch.bool)
        loss, _ = model.action_loss(*observation_of(model, items, data.statistics), chunk, mask, noise, time)
        optimizer.zero_grad()
        loss.mean().backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.mean().item())
    model.eval()
    return float(np.mean(losses[-max(1, steps // 10) :]))


@torch.no_grad()
def closed_loop(
    model: SyVLAModel,
    statistics: dict[str, tuple[np.ndarray, np.ndarray]],
    task: str,
    shift: str | None,
    *,
    episodes: int,
) -> list[dict[str, Any]]:
    """Outcome of each evaluation seed. The noise of a call depends on the episode's seed and the call's number."""
    seeds = [EVALUATION_SEED_OFFSET + i for i in range(episodes)]
    envs = [make_world(task, shift) for _ in seeds]
    seen = [env.reset(seed=seed)[0] for env, seed in zip(envs, seeds, strict=True)]
    outcomes: dict[int, dict[str, Any]] = {}
    steps, call = 0, 0
    mean, std = statistics["action"]
    while len(outcomes) < episodes:
        active = [i for i in range(episodes) if i not in outcomes]
        items = [
            {
                "images": {view: seen[i]["images"][camera] for view, camera in TabletopEnv.view_cameras.items()},
                "state": seen[i]["state"],
            }
            for i in active
        ]
        noise = np.stack([np.random.default_rng([seeds[i], call]).standard_normal((CHUNK, DIM)) for i in active])
        chunk = model.sample_actions(
            *observation_of(model, items, statistics), noise=torch.tensor(noise, dtype=torch.float32)
        )
        actions = chunk.numpy() * std + mean
        for row, i in enumerate(active):
            for k in range(REPLAN_STEPS):
                seen[i], _, terminated, truncated, info = envs[i].step(actions[row, k])
                if terminated or truncated:
                    outcomes[i] = {"seed": seeds[i], "success": bool(info["success"]), "steps": steps + k + 1}
                    envs[i].close()
                    break
        steps, call = steps + REPLAN_STEPS, call + 1
    return [outcomes[i] for i in range(episodes)]
