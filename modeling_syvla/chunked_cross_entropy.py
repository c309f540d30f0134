"""Cross-entropy over a large vocabulary without the logits of all tokens at once.

Qwen's 151,936 logits in float32 are 0.6 MB for each token, and its plain loss holds them about three times. Here a chunk of
tokens after the other gets its logits; the backward pass computes them once more, which is a third more work of the head.
Loss and gradients are the plain ones up to rounding.

Torch has the like (`linear_cross_entropy`) in its newest releases alone, Liger's kernels need Triton.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

LOGITS_AT_ONCE = 2**25
"""Logits of a chunk: 220 tokens of Qwen's vocabulary, 134 MB in float32. Ours."""

VOCABULARY_AT_ONCE = 2**14
"""Rows of the head whose gradient is added to at once. Ours."""


def token_losses(head: nn.Module, hidden: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each token.

    Args:
        head: From hidden states to logits. One that is no plain linear layer (adapted, quantized, gathered from other
            processes) gives all logits at once.
        hidden: (tokens, D).
        target: int64 (tokens,).

    Returns:
        float32 (tokens,).
    """
    if type(head) is nn.Linear and head.bias is None and not _is_gathered(head):
        rows = max(1, LOGITS_AT_ONCE // head.out_features)
        # The gradient of a trained head takes as much as the logits of so many tokens, in either way.
        least = head.in_features // 2 if head.weight.requires_grad else 0
        if len(hidden) > max(rows, least):
            losses: torch.Tensor = _ChunkedCrossEntropy.apply(hidden, head.weight, target, rows)
            return losses
    return F.cross_entropy(head(hidden).float(), target, reduction="none")


def _is_gathered(head: nn.Module) -> bool:
    """Whether a call of the module gathers its weight (ZeRO-3, FSDP2 around the head alone), as only a call then can."""
    return hasattr(head, "set_reshard_after_backward") or hasattr(head.weight, "ds_id")


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Of (hidden (tokens, D), weight (vocabulary, D), target (tokens,), tokens per chunk)."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor, rows: int) -> torch.Tensor:
        device = hidden.device.type
        ctx.dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        ctx.rows, ctx.device = rows, device
        losses, norms = (hidden.new_empty(len(hidden), dtype=torch.float32) for _ in range(2))
        with torch.autocast(device, enabled=False):
            cast = weight.to(ctx.dtype)
            for part in _parts(len(hidden), rows):
                logits = F.linear(hidden[part].to(ctx.dtype), cast).float()
                norms[part] = logits.logsumexp(-1)
                losses[part] = norms[part] - logits.gather(1, target[part, None])[:, 0]
        ctx.save_for_backward(hidden, weight, target, norms)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
        (gradient,) = gradients
        hidden, weight, target, norms = ctx.saved_tensors
        of_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        of_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        with torch.autocast(ctx.device, enabled=False):
            cast = weight.to(ctx.dtype)
            for part in _parts(len(hidden), ctx.rows):
                inputs = hidden[part].to(ctx.dtype)
                slope = F.linear(inputs, cast).float().sub_(norms[part, None]).exp_()  # softmax
                slope.scatter_add_(1, target[part, None], slope.new_full((len(inputs), 1), -1.0))
                of_logits = slope.mul_(gradient[part, None]).to(ctx.dtype)
                if of_hidden is not None:
                    of_hidden[part] = (of_logits @ cast).to(hidden.dtype)
                if of_weight is not None:  # in parts, since a product of its size would be as large again
                    for some in _parts(len(weight), VOCABULARY_AT_ONCE):
                        of_weight[some] += of_logits[:, some].T @ inputs
        return of_hidden, None if of_weight is None else of_weight.to(weight.dtype), None, None


def _parts(length: int, most: int) -> Iterator[slice]:
    """Slices of at most `most` entries, of nearly equal length."""
    count = -(-length // most)
    for number in range(count):
        yield slice(number * length // count, (number + 1) * length // count)
