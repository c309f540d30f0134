"""What the robot sees and feels, as tokens: camera views by any `transformers` vision backbone, states and actions by MLPs.

The action expert, the regression head and the value model share these layers. Every robot has its own MLPs for states and
actions; a batch may mix robots (paper, appendix A).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModel

# ---------------------------------------------------------------------- camera views


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


# ---------------------------------------------------------------------- states and actions


def make_mlp(in_features: int, hidden: int, out_features: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(in_features, hidden), nn.SiLU(), nn.Linear(hidden, out_features))


class EmbodimentCoders(nn.Module):
    """State encoder, action encoder and action decoder of one robot (paper: a dataset-specific MLP pair)."""

    def __init__(self, hidden_size: int, state_dim: int, action_dim: int) -> None:
        super().__init__()
        self.state_encoder = make_mlp(state_dim, hidden_size, hidden_size)
        self.action_encoder = make_mlp(action_dim, hidden_size, hidden_size)
        self.action_decoder = make_mlp(hidden_size, hidden_size, action_dim)


Route = list[tuple[str, torch.Tensor | None]]
"""Robots of a batch: name, and the rows of its samples; None for all of them."""


def apply_per_embodiment(
    mlps: Mapping[str, Any] | nn.ModuleDict,
    embodiments: Mapping[str, Mapping[str, int]],
    x: torch.Tensor,
    embodiment_ids: torch.Tensor,
    out_width: int,
) -> torch.Tensor:
    """Apply each sample's own MLP.

    Args:
        mlps: Embodiment name -> MLP of `make_mlp`.
        embodiments: `config.embodiments`, which gives the ids.
        x: (B, T, features), zero-padded where robots differ in dimension.
        embodiment_ids: (B,).
        out_width: Results of narrower MLPs are zero-padded to it.

    Returns:
        (B, T, out_width).

    Raises:
        ValueError: If an id is unknown, or `x` is narrower than its robot needs.
    """
    return apply_routed(mlps, embodiment_route(embodiments, embodiment_ids), x, out_width)


def embodiment_route(embodiments: Mapping[str, Mapping[str, int]], embodiment_ids: torch.Tensor) -> Route:
    """Sort a batch by robot, once for all its MLPs: it waits for the device.

    Args:
        embodiments: `config.embodiments`, which gives the ids.
        embodiment_ids: (B,).

    Raises:
        ValueError: If an id is unknown.
    """
    route: Route = []
    matched = 0
    for name, embodiment in embodiments.items():
        rows = (embodiment_ids == embodiment["id"]).nonzero().squeeze(1)
        if rows.numel() == 0:
            continue
        if rows.numel() == len(embodiment_ids):
            return [(name, None)]
        matched += rows.numel()
        route.append((name, rows))
    if not route or matched < len(embodiment_ids):
        raise ValueError(
            f"embodiment_ids: {embodiment_ids.tolist()} are not all among this model's embodiments "
            f"{ {name: e['id'] for name, e in embodiments.items()} }"
        )
    return route


def apply_routed(
    mlps: Mapping[str, Any] | nn.ModuleDict, route: Route, x: torch.Tensor, out_width: int
) -> torch.Tensor:
    """`apply_per_embodiment` on a route."""
    out: torch.Tensor | None = None
    for name, rows in route:
        mlp: Any = mlps[name]
        if x.shape[-1] < mlp[0].in_features:
            raise ValueError(
                f"embodiment {name!r}: expected at least {mlp[0].in_features} dimensions of state or action, got shape "
                f"{tuple(x.shape)}"
            )
        own = x if rows is None else x[rows]
        y = mlp(own[:, :, : mlp[0].in_features].to(mlp[0].bias.dtype))
        y = F.pad(y, (0, out_width - y.shape[-1]))
        if rows is None:
            return y
        out = y.new_zeros(*x.shape[:2], out_width) if out is None else out
        out = out.index_copy(0, rows, y)
    assert out is not None
    return out
