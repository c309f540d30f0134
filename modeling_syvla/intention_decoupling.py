"""Intention Decoupling: zero the query states that hardly move the action loss (paper, section 3.2, appendix B).

A training step runs the action expert twice. The first pass finds the mask, the second one trains with it:

    probe = query_states.detach().requires_grad_()
    mask = find_decoupling_mask(per_sample_loss(probe), probe, quantile, scope)
    loss = per_sample_loss(keep_states(query_states, mask))

Both passes must use the same noise and timestep; otherwise the mask answers another question.

Three controls ask whether it matters which states are masked, or whether any disturbance helps like dropout does: masking
random states or the strongest ones (`choice`), and noise on all of them (`noisy_states`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .consistent_design import DECOUPLING_CHOICES


def gradient_norms(per_sample_loss: torch.Tensor, query_states: torch.Tensor) -> torch.Tensor:
    """l2 norms of dL_action/dH, one per query state.

    The samples' losses are summed, so that a sample's gradient does not depend on the batch it comes in. Only the
    gradient with respect to `query_states` is computed; no weight receives one.

    Args:
        per_sample_loss: (B,), a function of `query_states`.
        query_states: Leaf that requires a gradient, H in the paper, (B, N, D).

    Returns:
        float32 (B, N).
    """
    (gradient,) = torch.autograd.grad(per_sample_loss.sum(), query_states)  # G in the paper
    norms: torch.Tensor = gradient.float().norm(dim=-1)
    return norms


def decoupling_mask(
    norms: torch.Tensor, quantile: float = 0.05, scope: str = "sample", choice: str = "weakest"
) -> torch.Tensor:
    """Which query states stay: those whose gradient norm reaches the threshold tau.

    Args:
        norms: Gradient norms, (B, N).
        quantile: q; tau is the q-quantile of the norms with linear interpolation.
        scope: "sample": one tau per sample over its N norms; "batch": one tau over all B * N norms.
        choice: One of `DECOUPLING_CHOICES`. "random": uniform numbers of torch's global generator take the place of the norms.
            "strongest": the norms count negative. As many states are masked in any case, ties aside.

    Returns:
        bool (B, N), False where the state is to be zeroed. `quantile=0` keeps everything.
    """
    if choice == "random":
        norms = torch.rand_like(norms)
    elif choice == "strongest":
        norms = -norms
    elif choice != "weakest":
        raise ValueError(
            f"decoupling_choice: expected one of {', '.join(map(repr, DECOUPLING_CHOICES))}, got {choice!r}"
        )
    if scope == "sample":
        tau = _quantile(norms, quantile)  # (B, 1)
    elif scope == "batch":
        tau = _quantile(norms.flatten(), quantile)  # (1,)
    else:
        raise ValueError(f"decoupling_scope: expected 'sample' or 'batch', got {scope!r}")
    return norms >= tau


def find_decoupling_mask(
    per_sample_loss: torch.Tensor, probe: torch.Tensor, quantile: float, scope: str, choice: str = "weakest"
) -> torch.Tensor:
    """Which query states stay, from the first pass over the action expert.

    Args:
        per_sample_loss: Action loss of the first pass, (B,).
        probe: The query states that it was computed on: H detached from the VLM, (B, N, D).
        quantile, scope, choice: See `decoupling_mask`.

    Returns:
        bool (B, N), True where the state stays.
    """
    return decoupling_mask(gradient_norms(per_sample_loss, probe), quantile, scope, choice)


def keep_states(query_states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Zeroes the states (B, N, D) that `mask` (B, N) excludes; the others stay attached to the VLM."""
    return query_states * mask[..., None].to(query_states.dtype)


def noisy_states(query_states: torch.Tensor, strength: float) -> torch.Tensor:
    """Adds Gaussian noise to the states (B, N, D).

    Args:
        query_states: (B, N, D).
        strength: Standard deviation as a multiple of each state's own root mean square. 1 / sqrt(N) disturbs as much, in
            expected squared change, as zeroing one of N states of equal size does.
    """
    scale = query_states.detach().float().square().mean(-1, keepdim=True).sqrt() * strength  # (B, N, 1)
    return query_states + torch.randn_like(query_states) * scale.to(query_states.dtype)


@contextmanager
def first_pass(model: Any) -> Iterator[None]:
    """Around the first pass: what is not as in other passes of a sharded or compiled model."""
    with gathered_weights(model), uncompiled_layers(model):
        yield


@contextmanager
def gathered_weights(model: Any) -> Iterator[None]:
    """Around the first pass: its backward leaves the weights of a sharded model (FSDP2) gathered.

    It runs in the middle of a forward pass, which goes on with the same weights. Changes nothing for other models.
    """
    if not hasattr(model, "set_reshard_after_backward"):
        yield
        return
    model.set_is_last_backward(False)
    model.set_reshard_after_backward(False)
    try:
        yield
    finally:
        model.set_is_last_backward(True)
        model.set_reshard_after_backward(True)


@contextmanager
def uncompiled_layers(model: Any) -> Iterator[None]:
    """Around the first pass: layers that went through `torch.compile` run as they are.

    The backward pass of compiled code computes the gradients of all its weights, asked for or not.
    """
    if all(layer._compiled_call_impl is None for layer in model.expert.modules()):
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def _quantile(values: torch.Tensor, quantile: float) -> torch.Tensor:
    """Quantile of the last dimension, kept with size 1, by linear interpolation.

    The position is computed in Python: where it falls on a value, the result is that very value, so that `>=` keeps it
    (`torch.quantile` computes it in float32 and may land a rounding error above).
    """
    position = quantile * (values.shape[-1] - 1)
    ordered = values.sort(dim=-1).values
    low = int(position)
    high = min(low + 1, values.shape[-1] - 1)
    return torch.lerp(ordered[..., low : low + 1], ordered[..., high : high + 1], position - low)
