"""What the action expert and the value model read besides the VLM's query states: checks, padding and masks.

A batch may mix robots of different dimensions, and robots with multi-modal samples that have no action at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from .flow_matching import sample_timesteps
from .known_actions import known_steps


@dataclass(frozen=True)
class ExpertObservation:
    """What the robots of a batch see and feel, as the action expert reads it.

    Attributes:
        state: Normalized, zero-padded, (B, D_state_max).
        embodiment_ids: int64 (B,).
        pixel_values: Low-resolution images of all views, (B, V, 3, h, w).
        view_mask: bool (B, V), False for missing views, whose pixels are never read.
    """

    state: torch.Tensor
    embodiment_ids: torch.Tensor
    pixel_values: torch.Tensor
    view_mask: torch.Tensor

    @classmethod
    def checked(
        cls,
        config: Any,
        count: int,
        state: torch.Tensor | None,
        embodiment_ids: torch.Tensor | None,
        expert_pixel_values: torch.Tensor | None,
        expert_view_mask: torch.Tensor | None = None,
    ) -> ExpertObservation:
        """An observation out of a batch of the processor.

        Args:
            config: Config of the model, with its `views`.
            count: Samples of the batch.
            state, embodiment_ids, expert_pixel_values, expert_view_mask: As the attributes, with one row per sample.
                `expert_view_mask` None: all views are present.

        Raises:
            ValueError: If a tensor is missing, has another number of rows, or lacks a view.
        """
        given = {"embodiment_ids": embodiment_ids, "state": state, "expert_pixel_values": expert_pixel_values}
        for name, value in given.items():
            if value is None:
                raise ValueError(
                    f"{name}: missing; the action expert needs it (the processor makes it from state=, images=)"
                )
            if len(value) != count:
                raise ValueError(f"{name}: expected one row for each of the {count} samples, got {len(value)}")
        assert state is not None
        assert embodiment_ids is not None
        assert expert_pixel_values is not None
        if expert_pixel_values.shape[1] != len(config.views):
            raise ValueError(
                f"expert_pixel_values: expected {len(config.views)} views {config.views}, got shape "
                f"{tuple(expert_pixel_values.shape)}; pass all views and mark missing ones in expert_view_mask"
            )
        if expert_view_mask is None:
            expert_view_mask = torch.ones(
                expert_pixel_values.shape[:2], dtype=torch.bool, device=expert_pixel_values.device
            )
        return cls(state, embodiment_ids, expert_pixel_values, expert_view_mask.bool())

    def select(self, rows: torch.Tensor) -> ExpertObservation:
        """The observation of some samples. rows: bool (B,) or indices."""
        return ExpertObservation(
            self.state[rows], self.embodiment_ids[rows], self.pixel_values[rows], self.view_mask[rows]
        )


def select_rows(x: torch.Tensor | None, rows: torch.Tensor) -> torch.Tensor | None:
    """Rows of an optional tensor."""
    return None if x is None else x[rows]


@dataclass(frozen=True)
class ActionTarget:
    """What the action head is trained towards.

    Attributes:
        actions: Normalized, float32 (B, T, D_action_max); steps after the end as `config.chunk_end` says.
        mask: bool (B, T, D_action_max), True where step and dimension are trained.
        noise: Start of the flow, (B, T, D_action_max); None for the regression head.
        timestep: Time of the flow, (B,), 0 = noise, 1 = action; None for the regression head.
        attended: bool (B, T), steps that the other steps attend to; None: all.
        known: bool (B, T), steps that are given clean and not trained; None: none.
    """

    actions: torch.Tensor
    mask: torch.Tensor
    noise: torch.Tensor | None = None
    timestep: torch.Tensor | None = None
    attended: torch.Tensor | None = None
    known: torch.Tensor | None = None


def action_target(
    config: Any,
    embodiment_ids: torch.Tensor,
    actions: torch.Tensor,
    action_mask: torch.Tensor | None = None,
    noise: torch.Tensor | None = None,
    timestep: torch.Tensor | None = None,
    delay: torch.Tensor | None = None,
) -> ActionTarget:
    """Pads a batch's actions to the model's width and draws noise and time where none are given.

    Args:
        config: [`SyVLAConfig`].
        embodiment_ids: (B,).
        actions: Normalized, (B, T, D), D at least that of the widest robot in the batch.
        action_mask: bool (B, T, D). None: all steps, each robot's own dimensions.
        noise, timestep: See [`ActionTarget`].
        delay: First actions of each chunk that are known, int (B,); None: none.
    """
    actions = full_width(config, "actions", actions.float(), embodiment_ids)
    if action_mask is None:
        action_mask = own_action_dims(config, actions, embodiment_ids)
    action_mask = full_width(config, "action_mask", action_mask, embodiment_ids)
    attended = action_mask.any(-1) if config.chunk_end == "masked" else None
    actions, action_mask = end_chunks(config.chunk_end, actions, action_mask)
    known = None
    if delay is not None:
        known = known_steps(delay, config, action_mask.any(-1))
        action_mask = action_mask & ~known[..., None]
    if config.action_head == "l1_regression":
        return ActionTarget(actions, action_mask)
    if noise is None:
        noise = torch.randn_like(actions)
    noise = full_width(config, "noise", noise, embodiment_ids)
    if timestep is None:
        timestep = sample_timesteps(
            len(actions), config.time_beta_alpha, config.time_beta_beta, config.time_max, device=actions.device
        )
    return ActionTarget(actions, action_mask, noise, timestep, attended, known)


def end_chunks(chunk_end: str, actions: torch.Tensor, action_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What stands in the steps of a chunk after the last real one, and whether it is trained.

    Args:
        chunk_end: See [`SyVLAConfig`].
        actions: Normalized, (B, T, D).
        action_mask: bool (B, T, D), True where step and dimension are real.

    Returns:
        (actions, mask of what is trained), of the same shapes. What `action_mask` excludes is never read.
    """
    actions = torch.where(action_mask, actions, torch.zeros_like(actions))
    if chunk_end not in ("hold", "hold_untrained"):
        return actions, action_mask
    steps = torch.arange(actions.shape[1], device=actions.device)
    real = action_mask.any(-1)  # (B, T)
    last = torch.where(real, steps, 0).cummax(dim=1).values  # (B, T), the last real step up to each
    held = actions.gather(1, last[..., None].expand_as(actions))
    return held, action_mask.any(1, keepdim=True).expand_as(action_mask) if chunk_end == "hold" else action_mask


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
