"""What [`SyVLAModel`] returns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput


@dataclass
class SyVLAOutput(ModelOutput):
    """Output of `SyVLAModel.forward`. R counts the samples of the batch that carry query tokens (robot samples).

    Attributes:
        loss: Weighted sum of the losses that the batch allows.
        action_loss: Flow-matching loss, mean over robot samples.
        lm_loss: Cross-entropy on the label tokens, mean over tokens.
        action_loss_per_sample: float32 (R,), second pass.
        lm_loss_sums: float32 (B,), cross-entropy summed over each sample's label tokens.
        label_tokens: int64 (B,), their numbers.
        query_states: H in the paper, (R, N, D_vlm), before masking.
        query_mask: bool (R, N), True where Intention Decoupling kept the state.
        hidden_states: The embeddings and every layer's output in the language model, each (B, L, D_vlm), if asked for.
        attentions: Every layer's attention weights in the language model, each (B, heads, L, L), if asked for.
    """

    loss: torch.Tensor | None = None
    action_loss: torch.Tensor | None = None
    lm_loss: torch.Tensor | None = None
    action_loss_per_sample: torch.Tensor | None = None
    lm_loss_sums: torch.Tensor | None = None
    label_tokens: torch.Tensor | None = None
    query_states: torch.Tensor | None = None
    query_mask: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class SyVLAActionOutput(ModelOutput):
    """Output of `SyVLAModel.predict_actions`.

    Attributes:
        actions: Normalized action chunks, float32 (B, T, D_action_max); `processor.decode_actions` gives physical units.
        thoughts: Chain of thought per sample, or None without thinking.
        thought_ids: Its token ids, (B, G), padded after the end token; None without thinking.
        query_states: (B, N, D_vlm); with `conditioning="all_hidden_states"` all of them, (B, L, D_vlm).
        condition_mask: bool (B, L), True for real tokens; None where the query states alone condition the expert.
    """

    actions: torch.Tensor | None = None
    thoughts: list[str] | None = None
    thought_ids: torch.Tensor | None = None
    query_states: torch.Tensor | None = None
    condition_mask: torch.Tensor | None = None
