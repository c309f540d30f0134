"""Makes an optimizer step a function of its samples alone, however processes and micro-batches share them.

Both losses are means over the whole step: over all its robot samples, and over all its answer tokens. Averaging one mean
per micro-batch instead would weigh a token among few others higher than a token among many.

Noise and time of the flow belong to a sample's place in the step. Processes therefore draw different ones, and a resumed
run draws the same ones again.

Three functions do it, in this order: `count_samples` before the step's samples are known to other processes,
`set_loss_divisors` and `draw_noise_and_time` with the counts of all of them. The last two write into the batches, under
names of `SyVLAModel.forward`'s arguments. After the backward pass `absent_parts` names what none of the samples used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from syvla.modeling_syvla.flow_matching import sample_timesteps
from syvla.modeling_syvla.known_actions import draw_delays


def count_samples(batches: Sequence[Any], config: Any) -> torch.Tensor:
    """Counts robot samples with actions, answer tokens, and the samples of each robot, in each micro-batch.

    Args:
        batches: Micro-batches of this process.
        config: The model's [`SyVLAConfig`].

    Returns:
        int64 (1, micro-batches, 2 + E), the robots in the order of `config.embodiments`; gathered along the first dimension
        it holds the counts of every process.
    """
    ids = [entry["id"] for entry in config.embodiments.values()]
    counts = torch.zeros(1, len(batches), 2 + len(ids), dtype=torch.long)
    for number, batch in enumerate(batches):
        if batch.get("actions") is not None:
            counts[0, number, 0] = (batch["embodiment_ids"] >= 0).sum()
            for column, robot in enumerate(ids, start=2):
                counts[0, number, column] = (batch["embodiment_ids"] == robot).sum()
        if batch.get("labels") is not None:
            counts[0, number, 1] = (batch["labels"][:, 1:] != -100).sum()
    return counts


def set_loss_divisors(batches: Sequence[Any], counts: torch.Tensor) -> None:
    """Adds `robot_samples` and `answer_tokens` to this process's micro-batches.

    They are what the model divides its loss sums by. With them the mean over processes and micro-batches, which is what
    data-parallel training and gradient accumulation take, is the loss of the whole step.

    Args:
        batches: Micro-batches of this process.
        counts: Counts of every process, (processes, micro-batches, 2 + E), from `count_samples`.
    """
    parts = counts.shape[0] * counts.shape[1]
    robot_samples, answer_tokens = counts[:, :, :2].sum(dim=(0, 1)).clamp(min=1).tolist()  # a step may lack one of them
    for batch in batches:
        batch["robot_samples"], batch["answer_tokens"] = robot_samples / parts, answer_tokens / parts


def draw_noise_and_time(
    batches: Sequence[Any], counts: torch.Tensor, rank: int, config: Any, seed: tuple[int, ...]
) -> None:
    """Adds what is random in their loss to this process's micro-batches that have actions.

    That is `noise` (B, T, D_action_max), `timestep` (B,) and, with the config's `simulated_delay`, `delay` (B,).

    A batch that already has noise keeps it. A model without a flow gets none.

    Args:
        batches: Micro-batches of this process.
        counts: Counts of every process, (processes, micro-batches, 2 + E), from `count_samples`.
        rank: Number of this process.
        config: The model's [`SyVLAConfig`].
        seed: Seed of the run and number of the step.
    """
    if config.action_head == "l1_regression":
        return
    robots = counts[:, :, 0].T  # in the order in which the sampler draws: process after process in a micro-batch
    first = (robots.flatten().cumsum(0) - robots.flatten()).view_as(robots)[:, rank].tolist()
    shape = (config.chunk_size, config.max_action_dim)
    time_distribution = (config.time_beta_alpha, config.time_beta_beta, config.time_max)
    for batch, begin in zip(batches, first, strict=True):
        if batch.get("actions") is None or "noise" in batch:
            continue
        size, device = len(batch["actions"]), batch["actions"].device
        noise, timestep = torch.zeros(size, *shape), torch.zeros(size)
        delay = torch.zeros(size, dtype=torch.int64)
        rows = (batch["embodiment_ids"] >= 0).nonzero()[:, 0].tolist()
        for number, row in enumerate(rows, start=begin):
            key = np.random.SeedSequence((*seed, number)).generate_state(1, dtype=np.uint64)
            generator = torch.Generator().manual_seed(int(key[0]))
            noise[row] = torch.randn(shape, generator=generator)
            timestep[row] = sample_timesteps(1, *time_distribution, torch.device("cpu"), generator)[0]
            if config.simulated_delay:
                delay[row] = draw_delays(1, config, generator)[0]
        batch["noise"], batch["timestep"] = noise.to(device), timestep.to(device)
        if config.simulated_delay:
            batch["delay"] = delay.to(device)


def absent_parts(policy: Any, counts: torch.Tensor) -> Iterator[nn.Module]:
    """Modules that no sample of the step uses: coders of absent robots; without any robot all that acts.

    Args:
        policy: The [`SyVLAModel`].
        counts: Counts of every process, (processes, micro-batches, 2 + E), from `count_samples`.
    """
    present = (counts[:, :, 2:] > 0).any(dim=1).any(dim=0).tolist()
    if not any(present):
        yield from (policy.expert, policy.adapter)
        return
    for name, here in zip(policy.config.embodiments, present, strict=True):
        if not here:
            yield policy.expert.embodiments[name]
