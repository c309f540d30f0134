"""Attention of Qwen2.5-VL's image encoder over windows: equal ones in one call, where `transformers` makes a call for each.

Three views of 224 x 224 pixels are twelve windows of 64 patches in 28 of the encoder's 32 layers, and three images in the other
four: 32 calls instead of 348. The results are the same, in training as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as qwen
from transformers.utils.generic import is_flash_attention_requested


def batch_windows(vlm: nn.Module) -> None:
    """Have every image encoder of Qwen2.5-VL in `vlm` attend to equal windows in one call. Weights and names stay."""
    for module in vlm.modules():
        if type(module) is qwen.Qwen2_5_VLVisionAttention:
            module.__class__ = BatchedWindowAttention


class BatchedWindowAttention(qwen.Qwen2_5_VLVisionAttention):
    """`Qwen2_5_VLVisionAttention` whose windows of one length are a batch."""

    def forward(  # type: ignore[override]  # the method's other arguments change with the release
        self, hidden_states: torch.Tensor, cu_seqlens: torch.Tensor, *, position_embeddings: Any, **kwargs: Any
    ) -> Any:
        """As the method that this one replaces: patches (S, D), of windows with ends at `cu_seqlens` (windows + 1,)."""
        windows: Counter[int] = Counter()
        if not is_flash_attention_requested(self.config):  # which reads the windows' ends by itself
            windows.update(cu_seqlens.diff().tolist())
        if not windows or max(windows.values()) == 1:
            return super().forward(hidden_states, cu_seqlens, position_embeddings=position_embeddings, **kwargs)
        attend: Callable[..., Any] = qwen.ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, qwen.eager_attention_forward
        )
        qkv = self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, -1))  # (S, 3, heads, D / heads)
        query, key = qwen.apply_rotary_pos_emb_vision(qkv[:, 0], qkv[:, 1], *position_embeddings)
        parts = (query, key, qkv[:, 2])
        if len(windows) == 1:
            return self.proj(self._attend(attend, parts, next(iter(windows)), kwargs).reshape(len(qkv), -1))
        lengths = cu_seqlens.diff().repeat_interleave(cu_seqlens.diff())  # of each patch's window
        out = torch.empty_like(query)
        for length in windows:
            of_length = (lengths == length).nonzero()[:, 0]
            one = self._attend(attend, [part[of_length] for part in parts], length, kwargs)
            out = out.index_copy(0, of_length, one)
        return self.proj(out.reshape(len(qkv), -1))

    def _attend(
        self, attend: Callable[..., Any], parts: Sequence[torch.Tensor], length: int, kwargs: dict[str, Any]
    ) -> torch.Tensor:
        """Windows of one length, patches (S', heads, d) each of query, key and value -> (S', heads, d)."""
        query, key, value = (part.unflatten(0, (-1, length)).transpose(1, 2) for part in parts)
        dropout = self.attention_dropout if self.training else 0.0
        settings = {"scaling": self.scaling, "dropout": dropout, "is_causal": False}
        out: torch.Tensor = attend(self, query, key, value, attention_mask=None, **settings, **kwargs)[0]
        return out.flatten(0, 1)
