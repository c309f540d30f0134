"""The VLM's last layer on the tokens alone that somebody reads.

No layer follows the last one, so of the tokens that are not read it owes their keys and values and nothing else. Its MLP, eight
ninths of such a token's work in Qwen2.5-VL-3B's layer, then runs on the query tokens of a prompt instead of on all its
tokens (20 of 300). Inference alone: a training step may run the layer again in its backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import nn
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as qwen

_READ: ContextVar[torch.Tensor | None] = ContextVar("tokens that are read", default=None)


@contextmanager
def tokens_read(read: torch.Tensor) -> Iterator[None]:
    """Within it, passes over as many tokens leave in the others' final hidden states what nobody may read.

    Args:
        read: bool (B, L), True where the final hidden state is read. A pass of another shape is a whole one.
    """
    token = _READ.set(read)
    try:
        yield
    finally:
        _READ.reset(token)


def read_in_last_layer(vlm: nn.Module) -> None:
    """Have the last layer of a Qwen2.5-VL's language model heed `tokens_read`. Weights and names stay."""
    layers = getattr(getattr(vlm.model, "language_model", None), "layers", None)
    if layers and type(layers[-1].mlp) is qwen.Qwen2MLP:
        layers[-1].mlp.__class__ = LastMLP


class LastMLP(qwen.Qwen2MLP):
    """`Qwen2MLP` that leaves out tokens which are not read."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As the method that this one replaces: (B, L, D)."""
        read = None if torch.compiler.is_compiling() or torch.is_grad_enabled() else _READ.get()
        if read is None or read.shape != x.shape[:2]:
            whole: torch.Tensor = super().forward(x)
            return whole
        out = torch.zeros_like(x)
        out[read] = super().forward(x[read])
        return out
