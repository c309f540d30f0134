"""Stochastic sampling of the flow, for rollouts whose likelihood is to be known (Flow-GRPO, pi_RL; not in the paper).

Euler steps of the flow give a chunk without a density. One of them is replaced by a Gaussian step with the same marginals;
the density of that step is the chunk's likelihood in `ratio_method="flow_sde"`. Evaluation keeps to `euler_sample`.
Pure functions; time as in `flow_matching`: t = 0 is noise, t = 1 the action.
"""

from __future__ import annotations

from collections.abc import Callable

import torch


def sde_step(
    timestep: torch.Tensor, num_steps: int, noise_level: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gaussian step of the stochastic sampler from t to t + d, d = 1 / num_steps: x' ~ N(keep * x + gain * v, std^2).

    Flow-GRPO's step in this repository's direction of time. With tau = 1 - t: noise scale s = a * sqrt(tau / (1 - tau)),
    mean = a_hat * (1 - tau + d) + n_hat * (tau - d - s^2 d / (2 tau)) for a_hat = x + tau * v and n_hat = x - (1 - tau) * v.
    At the first step (tau = 1) the scale of the second one is taken for 1 - tau, as Flow-GRPO does, since s would be
    infinite. It has the marginals of the deterministic flow.

    Returns:
        (keep, gain, std), shape of `timestep`.
    """
    if num_steps < 2 or noise_level <= 0:
        raise ValueError(
            f"flow_sde: expected at least 2 flow steps and a positive noise level, got {num_steps} and {noise_level}"
        )
    d = 1.0 / num_steps
    tau = 1.0 - timestep
    variance = noise_level**2 * tau / (1.0 - tau).clamp(min=d)  # s^2
    toward_action = 1.0 - tau + d
    toward_noise = tau - d - variance * d / (2 * tau)
    return (
        toward_action + toward_noise,
        toward_action * tau - toward_noise * (1.0 - tau),
        (variance * d).sqrt(),
    )


def sample_with_sde_step(
    velocity_fn: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    noise: torch.Tensor,
    kick: torch.Tensor,
    step: torch.Tensor,
    *,
    num_steps: int,
    noise_level: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Denoise with one stochastic step per sample, the others being Euler steps (pi_RL's sampler for rollouts).

    Args:
        velocity_fn: Maps (x (B, T, D), t (B,)) to the velocity.
        noise: (B, T, D).
        kick: Standard normal noise of the stochastic step, (B, T, D).
        step: Number of each sample's stochastic step, int (B,).
        num_steps: K.
        noise_level: a; the stochastic step adds noise of scale a * sqrt((1 - t) / t).

    Returns:
        (actions, x before the stochastic step, x after it), (B, T, D) each.
    """
    x, before, after = noise, torch.empty_like(noise), torch.empty_like(noise)
    for number in range(num_steps):
        t = torch.full((len(noise),), number / num_steps, device=noise.device)
        velocity = velocity_fn(x, t).float()
        keep, gain, std = (part[:, None, None] for part in sde_step(t, num_steps, noise_level))
        stochastic = keep * x + gain * velocity + std * kick
        chosen = (step == number)[:, None, None]
        before = torch.where(chosen, x, before)
        x = torch.where(chosen, stochastic, x + velocity / num_steps)
        after = torch.where(chosen, x, after)
    return x, before, after
