"""Guidance of the flow towards a running chunk, as published for real-time chunking (Black et al. 2025, arXiv 2506.07339).

`flow_solver.continued` has the same with the identity for the Jacobian of the predicted end point, without gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from .flow_solver import FlowSolver
from .packed_weights import ADVICE, is_packed


def guided_sample(
    velocity_fn: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    noise: torch.Tensor,
    solver: FlowSolver,
    continuation: tuple[torch.Tensor, torch.Tensor],
    max_guidance_weight: float,
) -> torch.Tensor:
    """As `integrate` with a continuation, guided as published for real-time chunking (Black et al. 2025, eq. 2 to 4).

    Each velocity v becomes `v + g J^T (w (y - e))`, where `e = x + (1 - t) v` is the predicted end point, J its Jacobian by x
    and `g = min(beta, ((1 - t)^2 + t^2) / (t (1 - t)))`; pseudo-inverse guidance. J makes steps with w = 0 move such that the
    others come closer to y. Every step takes a backward pass through the flow, not to the weights.

    Args:
        velocity_fn: See `integrate`; differentiable in x.
        noise, solver, continuation: See `integrate`.
        max_guidance_weight: beta. The paper takes 5 with 5 flow steps; larger ones can overshoot, since a step of 1 / n moves
            the end by beta / n of its error.

    Raises:
        ValueError: beta is not a positive number.
    """
    if not 0 < max_guidance_weight < math.inf:
        raise ValueError(f"max_guidance_weight: expected a positive number, got {max_guidance_weight}")
    target, weights = continuation
    x, previous = noise.clone(), None  # a tensor of inference mode could not take part in a backward pass
    for step in range(solver.num_steps):
        time = solver.times[step]
        t = torch.full((noise.shape[0],), time, device=noise.device, dtype=torch.float32)
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            velocity = velocity_fn(at, t).to(x.dtype)
            end = at + (1 - time) * velocity
            (pull,) = torch.autograd.grad(end, at, weights * (target - end.detach()))
        guided = velocity.detach() + guidance_weight(time, max_guidance_weight) * pull
        x, previous = solver.advance(x, guided, step, previous), guided
    return x


def guidance_weight(time: float, most: float) -> float:
    """g of `guided_sample` at `time` in [0, 1): `most` at t = 0, where it would be infinite."""
    return most if time == 0 else min(most, ((1 - time) ** 2 + time**2) / (time * (1 - time)))


def check_guidance(model: Any, continuation: Any) -> None:
    """Raises ValueError where a guidance weight would have no effect, or where no gradient passes the expert."""
    if continuation is None:
        raise ValueError("max_guidance_weight: expected together with continuation, which it guides; got it alone")
    if model.config.action_head != "flow_matching":
        raise ValueError(
            f"max_guidance_weight: expected a flow to guide, but action_head is {model.config.action_head!r}; leave it out"
        )
    if is_packed(model):
        raise ValueError(f"max_guidance_weight: guidance takes gradients, but {ADVICE.format('guide it')}")
