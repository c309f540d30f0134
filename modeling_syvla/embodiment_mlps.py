"""Every robot has its own MLPs for states and actions; a batch may mix robots (paper, appendix A)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


def make_mlp(in_features: int, hidden: int, out_features: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(in_features, hidden), nn.SiLU(), nn.Linear(hidden, out_features))


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
