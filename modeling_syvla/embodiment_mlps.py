"""Every robot has its own MLPs for states and actions; a batch may mix robots (paper, appendix A)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


def make_mlp(in_features: int, hidden: int, out_features: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(in_features, hidden), nn.SiLU(), nn.Linear(hidden, out_features))


def apply_per_embodiment(
    mlps: Mapping[str, Any],
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
    out: torch.Tensor | None = None
    matched = 0
    for name, mlp in mlps.items():
        rows = (embodiment_ids == embodiments[name]["id"]).nonzero().squeeze(1)
        if rows.numel() == 0:
            continue
        if x.shape[-1] < mlp[0].in_features:
            raise ValueError(
                f"embodiment {name!r}: expected at least {mlp[0].in_features} dimensions of state or action, got shape "
                f"{tuple(x.shape)}"
            )
        y = mlp(x[rows, :, : mlp[0].in_features].to(mlp[0].bias.dtype))
        y = F.pad(y, (0, out_width - y.shape[-1]))
        if rows.numel() == x.shape[0]:
            return y
        matched += rows.numel()
        out = y.new_zeros(*x.shape[:2], out_width) if out is None else out
        out = out.index_copy(0, rows, y)
    if out is None or matched < x.shape[0]:
        raise ValueError(
            f"embodiment_ids: {embodiment_ids.tolist()} are not all among this model's embodiments "
            f"{ {name: e['id'] for name, e in embodiments.items()} }"
        )
    return out
