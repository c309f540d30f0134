"""Makes an optimiser step a function of its samples alone, however processes and micro-batches share them.

Both losses are means over the whole step: over all its robot samples, and over all its answer tokens. A mean of means, one
per process, would weigh a token of a process with few of them higher than the same token elsewhere. Flow noise and time
belong to the sample's place in the step, so that processes draw different ones and a resumed run draws the same again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from syvla.modeling_syvla.flow_matching import sample_timesteps


@dataclass(frozen=True)
class StepTotals:
    """Divisors of one process's loss sums; the mean of all processes' losses is then the loss of the step.

    Attributes:
        robot_samples: Robot samples of the step over the number of processes.
        label_tokens: The same of answer tokens.
    """

    robot_samples: float
    label_tokens: float


def count_samples(batch: Any) -> tuple[int, int]:
    """Robot samples with actions and label tokens of a batch."""
    robots = int((batch["embodiment_ids"] >= 0).sum()) if batch.get("actions") is not None else 0
    labels = batch.get("labels")
    return robots, 0 if labels is None else int((labels[:, 1:] != -100).sum())


def plan_step(
    batches: Sequence[Any],
    gather: Callable[[torch.Tensor], torch.Tensor],
    rank: int,
    config: Any,
    seed: tuple[int, ...],
) -> StepTotals:
    """Count the step's samples over all processes, and give every robot sample its noise and time.

    Args:
        batches: This process's micro-batches of one optimiser step. `noise` (B, T, D_action_max) and `timestep` (B,) are
            added where they are missing and the model has a flow to train.
        gather: Concatenates a tensor of every process along its first dimension.
        rank: Number of this process.
        config: The model's [`SyVLAConfig`].
        seed: Seed of the run and number of the step.
    """
    own = torch.tensor([[count_samples(batch) for batch in batches]])  # (1, micro-batches, 2)
    counts = gather(own).cpu().numpy()  # (processes, micro-batches, 2)
    if config.action_head != "l1_regression":
        robots = counts[:, :, 0].T  # in the order in which the sampler draws: process after process in a micro-batch
        first = np.cumsum(robots) - robots.ravel()
        for position, batch in enumerate(batches):
            if batch.get("actions") is not None and "noise" not in batch:
                add_noise(batch, int(first[position * len(counts) + rank]), config, seed)
    robot_samples, label_tokens = counts.sum(axis=(0, 1)).tolist()
    return StepTotals(max(robot_samples, 1) / len(counts), max(label_tokens, 1) / len(counts))


def add_noise(batch: Any, first: int, config: Any, seed: tuple[int, ...]) -> None:
    """Draw noise and time of a batch's robot samples, which are number `first` and following of their step."""
    actions = batch["actions"]
    noise = torch.zeros(len(actions), config.chunk_size, config.max_action_dim)
    timestep = torch.zeros(len(actions))
    rows = (batch["embodiment_ids"] >= 0).nonzero()[:, 0].tolist()
    for number, row in enumerate(rows, start=first):
        key = np.random.SeedSequence((*seed, number)).generate_state(1, dtype=np.uint64)
        generator = torch.Generator().manual_seed(int(key[0]))
        noise[row] = torch.randn(noise.shape[1:], generator=generator)
        options = (config.time_beta_alpha, config.time_beta_beta, config.time_max)
        timestep[row] = sample_timesteps(1, *options, torch.device("cpu"), generator)[0]
    batch["noise"], batch["timestep"] = noise.to(actions.device), timestep.to(actions.device)
