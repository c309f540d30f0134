"""Intention Decoupling: zero the query states that hardly move the action loss (paper, section 3.2, appendix B)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


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
    return gradient.float().norm(dim=-1)


def decoupling_mask(norms: torch.Tensor, quantile: float = 0.05, scope: str = "sample") -> torch.Tensor:
    """Which query states stay: those whose gradient norm reaches the threshold tau.

    Args:
        norms: Gradient norms, (B, N).
        quantile: q; tau is the q-quantile of the norms with linear interpolation.
        scope: "sample": one tau per sample over its N norms; "batch": one tau over all B * N norms.

    Returns:
        bool (B, N), False where the state is to be zeroed. `quantile=0` keeps everything.
    """
    if scope == "sample":
        tau = _quantile(norms, quantile)  # (B, 1)
    elif scope == "batch":
        tau = _quantile(norms.flatten(), quantile)  # (1,)
    else:
        raise ValueError(f"decoupling_scope: expected 'sample' or 'batch', got {scope!r}")
    return norms >= tau


def decouple(
    query_states: torch.Tensor,
    per_sample_loss_fn: Callable[[torch.Tensor], torch.Tensor],
    quantile: float,
    scope: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """First pass: find the weak states on detached H and return the masked H that is still attached to the VLM.

    Args:
        query_states: H, (B, N, D).
        per_sample_loss_fn: Maps query states to the action loss per sample (B,). It must use the same noise and
            timestep as the second pass; otherwise the mask answers another question.
        quantile, scope: See `decoupling_mask`.

    Returns:
        (masked query states (B, N, D), mask (B, N) bool, True = kept).
    """
    with torch.enable_grad():
        probe = query_states.detach().requires_grad_(True)
        norms = gradient_norms(per_sample_loss_fn(probe), probe)
    mask = decoupling_mask(norms, quantile, scope)
    return query_states * mask[..., None].to(query_states.dtype), mask


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
