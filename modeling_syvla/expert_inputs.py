"""Checks and masks of what the action expert receives, for batches that mix robots."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F


def robot_rows(
    config: Any,
    query_states: torch.Tensor,
    input_ids: torch.Tensor | None,
    embodiment_ids: torch.Tensor | None,
    state: torch.Tensor | None,
    expert_pixel_values: torch.Tensor | None,
    expert_view_mask: torch.Tensor | None,
) -> dict[str, torch.Tensor]:
    """Checked inputs of the expert for the samples that have query states, and the index of those samples."""
    count = len(query_states) if input_ids is None else len(input_ids)
    given = {"embodiment_ids": embodiment_ids, "state": state, "expert_pixel_values": expert_pixel_values}
    for name, value in given.items():
        if value is None:
            raise ValueError(
                f"{name}: missing; the action expert needs it (the processor makes it from state=, images=)"
            )
        if len(value) != count:
            raise ValueError(f"{name}: expected one row for each of the {count} samples, got {len(value)}")
    assert embodiment_ids is not None
    assert state is not None
    assert expert_pixel_values is not None
    if input_ids is None:
        rows = torch.arange(count, device=query_states.device)
    else:
        rows = (input_ids == config.query_token_id).any(-1).nonzero().squeeze(1)
    if expert_view_mask is None:
        expert_view_mask = torch.ones(expert_pixel_values.shape[:2], dtype=torch.bool, device=rows.device)
    if expert_pixel_values.shape[1] != len(config.views):
        raise ValueError(
            f"expert_pixel_values: expected {len(config.views)} views {config.views}, got shape "
            f"{tuple(expert_pixel_values.shape)}; pass all views and mark missing ones in expert_view_mask"
        )
    return {
        "rows": rows,
        "state": state[rows],
        "embodiment_ids": embodiment_ids[rows],
        "expert_pixel_values": expert_pixel_values[rows],
        "expert_view_mask": expert_view_mask[rows].bool(),
    }


def action_dims(config: Any, embodiment_ids: torch.Tensor) -> torch.Tensor:
    """Action dimensions of each sample's robot, (B,)."""
    dims = torch.zeros_like(embodiment_ids)
    for embodiment in config.embodiments.values():
        dims = torch.where(embodiment_ids == embodiment["id"], embodiment["action_dim"], dims)
    return dims


def own_action_dims(config: Any, actions: torch.Tensor, embodiment_ids: torch.Tensor) -> torch.Tensor:
    """True at the embodiment's own dimensions, all steps. bool, shape of `actions`."""
    own = torch.arange(actions.shape[-1], device=actions.device) < action_dims(config, embodiment_ids)[:, None]
    return own[:, None, :].expand_as(actions)


def full_width(config: Any, name: str, x: torch.Tensor, embodiment_ids: torch.Tensor) -> torch.Tensor:
    """Zero-pad (B, T, D) to the model's widest robot; a processor may know only some of the model's robots."""
    width = config.max_action_dim
    if x.shape[-1] == width:
        return x
    least = int(action_dims(config, embodiment_ids).max())
    if not least <= x.shape[-1] < width:
        raise ValueError(
            f"{name}: expected {width} dimensions (zero-padded; at least {least} for these robots), got shape "
            f"{tuple(x.shape)}"
        )
    return F.pad(x, (0, width - x.shape[-1]))
