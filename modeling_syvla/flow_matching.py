"""Flow matching for action chunks: path, time sampling, masked loss and sampler (paper, section 3.1).

Straight path from noise to action: `x_t = (1 - t) * noise + t * action` with velocity `action - noise`, so t = 0 is noise
and t = 1 the action. All functions are pure; shapes are (B, T, D) = batch, chunk steps, action dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from .flow_solver import FlowSolver, continued


def interpolate(noise: torch.Tensor, actions: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """Point on the path at `timestep` (B,) between `noise` and `actions` (B, T, D)."""
    t = timestep[:, None, None].to(actions.dtype)
    return (1 - t) * noise + t * actions


def target_velocity(noise: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    """Velocity of the straight path, constant in t. (B, T, D)"""
    return actions - noise


def sample_timesteps(
    batch_size: int,
    alpha: float,
    beta: float,
    time_max: float,
    device: torch.device,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Training times `time_max * (1 - Beta(alpha, beta))` in [0, time_max], float32 (B,).

    With alpha = 1.5, beta = 1 it is pi0's distribution in this module's direction of time: noisy points come more often.
    """
    # With beta = 1 the inverse CDF has a closed form. It accepts a generator and runs on every device, unlike Beta.sample.
    if beta == 1.0:
        uniform = torch.rand(batch_size, device=device, dtype=torch.float32, generator=generator)
        draw = uniform.pow(1.0 / alpha)
    elif generator is None:
        draw = torch.distributions.Beta(alpha, beta).sample((batch_size,)).to(device)
    else:
        gamma = torch.tensor([[alpha, beta]], dtype=torch.float32).expand(batch_size, 2)
        draw = torch._sample_dirichlet(gamma, generator=generator)[:, 0].to(device)
    return time_max * (1.0 - draw)


def flow_matching_loss(
    velocity: torch.Tensor, noise: torch.Tensor, actions: torch.Tensor, action_mask: torch.Tensor
) -> torch.Tensor:
    """Per-sample squared error of the velocity, averaged over the valid entries only.

    Args:
        velocity: Predicted velocity, (B, T, D).
        noise: (B, T, D).
        actions: Normalized actions, (B, T, D).
        action_mask: bool (B, T, D), True where step and dimension are real.

    Returns:
        float32 (B,). A sample without any valid entry has loss 0.
    """
    error = velocity.float() - target_velocity(noise, actions).float()
    error = torch.where(action_mask, error, torch.zeros_like(error))  # also stops NaN in padding
    count = action_mask.sum(dim=(1, 2)).clamp(min=1)
    return error.square().sum(dim=(1, 2)) / count


def integrate(
    velocity_fn: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    noise: torch.Tensor,
    solver: FlowSolver,
    continuation: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Follow the flow from noise (t = 0) to actions (t = 1).

    Args:
        velocity_fn: Maps (x (B, T, D), t (B,)) to the velocity (B, T, D).
        noise: (B, T, D).
        solver: Evaluations and steps.
        continuation: Actions to continue (B, T, D) and weights in [0, 1], (B, T, 1); see `continued`.
    """
    x, previous = noise, None
    for step in range(solver.num_steps):
        time = solver.times[step]
        t = torch.full((noise.shape[0],), time, device=noise.device, dtype=torch.float32)
        velocity = continued(velocity_fn(x, t).to(x.dtype), x, time, continuation)
        x, previous = solver.advance(x, velocity, step, previous), velocity
    return x


def euler_sample(
    velocity_fn: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    noise: torch.Tensor,
    num_steps: int,
    continuation: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """`integrate` in `num_steps` equal Euler steps."""
    return integrate(velocity_fn, noise, FlowSolver(num_steps), continuation)


def continuation_weights(delay: int, overlap: int, num_steps: int) -> torch.Tensor:
    """How strongly each step of a chunk is bound to the previous chunk: the soft mask of real-time chunking (eq. 5).

    Args:
        delay: First steps, which will have run by the time the chunk is there: weight 1.
        overlap: Steps for which the previous chunk has actions; from `delay` on the weight decays to 0 at `overlap`.
        num_steps: T.

    Returns:
        float32 (T,).
    """
    if not 0 <= delay <= overlap <= num_steps:
        raise ValueError(f"expected 0 <= delay <= overlap <= {num_steps} steps, got {delay=} {overlap=}")
    step = torch.arange(num_steps, dtype=torch.float32)
    decay = ((overlap - step) / (overlap - delay + 1)).clamp(0, 1)
    weights = decay * torch.expm1(decay) / math.expm1(1.0)
    return torch.where(step < delay, torch.ones_like(weights), weights)
