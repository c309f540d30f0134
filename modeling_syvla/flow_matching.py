"""Flow matching for action chunks: path, time sampling, masked loss and Euler sampler (paper, section 3.1).

Straight path from noise to action: `x_t = (1 - t) * noise + t * action` with velocity `action - noise`, so t = 0 is noise
and t = 1 the action. All functions are pure; shapes are (B, T, D) = batch, chunk steps, action dimensions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch


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
    # Inverse CDF where it is closed (beta = 1): it honours a generator and runs on any device.
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
        actions: Normalised actions, (B, T, D).
        action_mask: bool (B, T, D), True where step and dimension are real.

    Returns:
        float32 (B,). A sample without any valid entry has loss 0.
    """
    error = velocity.float() - target_velocity(noise, actions).float()
    error = torch.where(action_mask, error, torch.zeros_like(error))  # also stops NaN in padding
    count = action_mask.sum(dim=(1, 2)).clamp(min=1)
    return error.square().sum(dim=(1, 2)) / count


def euler_sample(
    velocity_fn: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], noise: torch.Tensor, num_steps: int
) -> torch.Tensor:
    """Integrate the flow from noise (t = 0) to actions (t = 1) in `num_steps` equal Euler steps.

    Args:
        velocity_fn: Maps (x (B, T, D), t (B,)) to the velocity (B, T, D).
        noise: (B, T, D).
        num_steps: Number of velocity evaluations, at least 1.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps: expected at least 1 flow step, got {num_steps}")
    x = noise
    for step in range(num_steps):
        t = torch.full((noise.shape[0],), step / num_steps, device=noise.device, dtype=torch.float32)
        x = x + velocity_fn(x, t).to(x.dtype) / num_steps
    return x
