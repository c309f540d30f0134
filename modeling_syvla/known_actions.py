"""Chunks whose first actions are known, since they run while the chunk is computed: real-time chunking by training.

A simulated delay d (arXiv 2512.05964): in training the first d actions of a sample stand there clean, their time is that of
the action end, and the loss is on the others. At inference the actions that will run meanwhile are given in the same way, so
a flow step costs no gradient. A model with one time for the whole chunk takes the time of single steps as the difference of
their timestep token from the chunk's, which is zero where nothing is known; so there are no new weights.
"""

from __future__ import annotations

from typing import Any

import torch

from .flow_solver import FlowSolver

CLEAN_TIME = 1.0
"""Time of a known action: the end of the flow."""


def draw_delays(count: int, config: Any, generator: torch.Generator | None = None) -> torch.Tensor:
    """Delays of training samples, uniform from 0 to `config.simulated_delay`, int64 (count,)."""
    return torch.randint(0, config.simulated_delay + 1, (count,), generator=generator)


def known_steps(delay: torch.Tensor, config: Any, real: torch.Tensor) -> torch.Tensor:
    """Which steps of each chunk are known, bool (B, T).

    Args:
        delay: int (B,).
        real: bool (B, T), steps that have an action.

    Raises:
        ValueError: A delay that the model is not trained for.
    """
    if len(delay) and not 0 <= int(delay.min()) <= int(delay.max()) <= config.simulated_delay:
        raise ValueError(
            f"delay: expected 0 to {config.simulated_delay} steps, the config's simulated_delay, got "
            f"{int(delay.min())} to {int(delay.max())}; train with a larger one, or give fewer"
        )
    steps = torch.arange(real.shape[1], device=real.device)
    return (steps < delay.to(real.device)[:, None]) & real


def velocity_after(
    expert: Any,
    noisy_actions: torch.Tensor,
    timestep: torch.Tensor,
    context: Any,
    known: torch.Tensor,
    attended: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `ActionExpert.predict_velocity`, where the known steps, bool (B, T), stand clean in `noisy_actions`."""
    time = expert.encode_times(timestep)
    clean = expert.encode_times(torch.full_like(timestep, CLEAN_TIME))
    later = known[..., None] * (clean - time)[:, None]
    velocity: torch.Tensor = expert.velocity_at(noisy_actions, time, context, attended, later)
    return velocity


def sample_after(
    expert: Any, noise: torch.Tensor, context: Any, solver: FlowSolver, actions: torch.Tensor, known: torch.Tensor
) -> torch.Tensor:
    """As `flow_matching.integrate`, with the known actions in their places at every step. (B, T, D)

    Args:
        expert: The action expert.
        noise, context, solver: See `ActionExpert.predict_velocity` and `flow_matching.integrate`.
        actions: Normalized, (B, T, D); read where known.
        known: bool (B, T).
    """
    x, previous = torch.where(known[..., None], actions, noise), None
    for step in range(solver.num_steps):
        t = torch.full((noise.shape[0],), solver.times[step], device=noise.device, dtype=torch.float32)
        velocity = velocity_after(expert, x, t, context, known).to(x.dtype)
        x, previous = torch.where(known[..., None], actions, solver.advance(x, velocity, step, previous)), velocity
    return x
