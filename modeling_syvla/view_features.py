"""Features of the camera views from any `transformers` vision backbone, for the action expert and the value model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoModel


def encode_views(
    vision_tower: Any, pixel_values: torch.Tensor, view_mask: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Features of all views in one tower call.

    Args:
        vision_tower: Vision backbone; see `feature_width`.
        pixel_values: (B, V, 3, h, w).
        view_mask: bool (B, V); pixels of missing views are replaced by zeros, whatever they hold.
        dtype: What the tower computes in.

    Returns:
        (B, V, tokens per view, tower width).
    """
    pixel_values = torch.where(view_mask[:, :, None, None, None], pixel_values, torch.zeros_like(pixel_values))
    features = vision_tower(pixel_values=pixel_values.to(dtype).flatten(0, 1)).last_hidden_state
    if features.ndim == 4:  # convolutional backbones give a map (B * V, C, h, w) without a sense of place
        features = features + _sincos_2d(features).to(features.dtype)
        features = features.flatten(2).transpose(1, 2)
    by_view: torch.Tensor = features.unflatten(0, view_mask.shape)
    return by_view


def project_views(projection: nn.Module, features: torch.Tensor) -> torch.Tensor:
    """A linear layer on (B, V, P, width), which 8-bit layers take in three dimensions only."""
    projected: torch.Tensor = projection(features.flatten(0, 1)).unflatten(0, features.shape[:2])
    return projected


def all_rows(embedding: nn.Embedding, device: torch.device) -> torch.Tensor:
    """The table of an embedding on `device`; its forward is what fetches weights that are kept on disk."""
    rows: torch.Tensor = embedding(torch.arange(embedding.num_embeddings, device=device)).to(device)
    return rows


def make_vision_tower(vision_config: Any) -> Any:
    """Backbone of a config; a convolutional one, without attention, takes every `attn_implementation`."""
    convolutional = bool(getattr(vision_config, "hidden_sizes", None))
    tower = AutoModel.from_config(vision_config, **({"attn_implementation": "eager"} if convolutional else {}))
    if convolutional:
        tower._supports_sdpa = tower._supports_flash_attn = tower._supports_flex_attn = True
    return tower


def feature_width(vision_config: Any) -> int:
    """Channels of a backbone's last hidden state."""
    sizes = getattr(vision_config, "hidden_sizes", None)
    width: int = sizes[-1] if sizes else vision_config.hidden_size
    return width


def _sincos_2d(features: torch.Tensor) -> torch.Tensor:
    """Fixed 2-D sinusoidal position code for a feature map (B, C, h, w) -> float32 (C, h, w)."""
    channels, height, width = features.shape[1:]
    quarter = -(-channels // 4)
    frequency = torch.pi * 2.0 ** torch.arange(quarter, device=features.device, dtype=torch.float32).remainder(6)
    y = (torch.arange(height, device=features.device) + 0.5) / height
    x = (torch.arange(width, device=features.device) + 0.5) / width
    rows = (frequency[:, None] * y).unsqueeze(-1).expand(-1, -1, width)  # (quarter, h, w)
    columns = (frequency[:, None] * x).unsqueeze(1).expand(-1, height, -1)
    return torch.cat((rows.sin(), rows.cos(), columns.sin(), columns.cos()))[:channels]
