"""Runs the language model without padding tokens: a batch's samples one after the other in a single row.

Attention stays within each sample, and positions are those of the padded batch (mRoPE, images included), so hidden states,
losses and gradients are the padded ones. "Padding-free" is TRL's word for it; samples are not joined to fill a length.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

SDPA_BY_SEGMENT = "sdpa_by_segment"
"""Name of `sdpa_by_segment` among the attention implementations of `transformers`."""


def padding_free_problem(model: Any) -> str | None:
    """Why a [`SyVLAModel`] has to pad its batches; None if it need not."""
    others = sorted(_layer_types(model.config.get_text_config()) - {"full_attention", "sliding_attention"})
    if others:
        return (
            f"the VLM ({model.config.vlm_config.model_type}) has {others[0]} layers, whose state would run from one sample "
            "into the next"
        )
    return None


def set_padding_free(model: Any, enabled: bool = True) -> None:
    """Let `model.encode` drop padding tokens, or keep them.

    SDPA is then called once per sample, flash attention in its form for unequal lengths; every other attention gets a
    block-diagonal causal mask from `transformers`. Nothing of it is saved with the model.

    Args:
        model: A [`SyVLAModel`].

    Raises:
        ValueError: If the model cannot do it.
    """
    problem = padding_free_problem(model) if enabled else None
    if problem:
        raise ValueError(f"padding_free: {problem}; leave it off")
    config = model.vlm.model.language_model.config
    if enabled and config._attn_implementation == "sdpa" and "sliding_attention" not in _layer_types(config):
        AttentionInterface.register(SDPA_BY_SEGMENT, sdpa_by_segment)
        AttentionMaskInterface.register(SDPA_BY_SEGMENT, AttentionMaskInterface()["sdpa"])
        config._attn_implementation = SDPA_BY_SEGMENT
    elif not enabled and config._attn_implementation == SDPA_BY_SEGMENT:
        config._attn_implementation = "sdpa"
    model.padding_free = enabled


def _layer_types(text_config: Any) -> set[str]:
    return set(getattr(text_config, "layer_types", None) or ())


class FlattenedBatch:
    """Maps tensors of a padded batch to one row of its real tokens, and back.

    Args:
        attention_mask: (B, L), non-zero at real tokens.
    """

    def __init__(self, attention_mask: torch.Tensor) -> None:
        self.real = attention_mask.bool()
        self.lengths = tuple(self.real.sum(-1).tolist())

    def flatten(self, x: torch.Tensor) -> torch.Tensor:
        """(..., B, L) -> (..., 1, tokens)."""
        return x[..., self.real][..., None, :]

    def restore(self, hidden: torch.Tensor) -> torch.Tensor:
        """(1, tokens, D) -> (B, L, D), zero at padding."""
        padded = hidden.new_zeros(*self.real.shape, hidden.shape[-1])
        return padded.index_put((self.real,), hidden[0])

    def attention_arguments(self, position_ids: torch.Tensor, implementation: str) -> dict[str, Any]:
        """What keeps the language model's attention within the samples.

        Args:
            position_ids: mRoPE positions of the row, (3, 1, tokens).
            implementation: The language model's attention.
        """
        if implementation == SDPA_BY_SEGMENT:
            return {"position_ids": position_ids, "segment_lengths": self.lengths}
        # `transformers` finds the samples by plain positions, in a fourth row, where there is no attention mask.
        plain = self.flatten(self.real.cumsum(-1) - 1)
        return {"position_ids": torch.cat((plain[None], position_ids))}


def sdpa_by_segment(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    segment_lengths: tuple[int, ...] | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal SDPA within each segment of a row; without segments the SDPA of `transformers`.

    The cost is that of the segments, not of the square of their sum, and no mask is built.

    Args:
        query, key, value: (1, heads, tokens, head_dim), by segments.
        segment_lengths: Tokens of each segment.

    Returns:
        (attention output (1, tokens, heads, head_dim), None).
    """
    sdpa = AttentionInterface()["sdpa"]
    if segment_lengths is None:
        attended: tuple[torch.Tensor, None] = sdpa(module, query, key, value, attention_mask, **kwargs)
        return attended
    parts = zip(*(x.split(segment_lengths, dim=2) for x in (query, key, value)), strict=True)
    return torch.cat([sdpa(module, q, k, v, None, **kwargs)[0] for q, k, v in parts], dim=1), None
