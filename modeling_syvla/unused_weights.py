"""A zero that keeps distributed training in step when a process's batch leaves parts of the model out."""

from __future__ import annotations

from typing import Any

import torch

from .expert_inputs import ExpertObservation, action_target


def zero_of_unused_weights(model: Any, acted: bool, saw: bool) -> torch.Tensor:
    """Zero that depends on every weight which the batch left out, where several processes train together.

    Data-parallel training waits for each weight's gradient, and sharded training for each module to run, on all
    processes. One whose batch has no robot sample (or no image) therefore runs the expert (or the VLM's image
    encoder) on zeros. A single process waits for nobody: there the zero depends on nothing, costs nothing, and weights that
    were left out get no gradient, by which the optimizer would move them along their old moments.
    """
    zero = torch.zeros((), device=model.device)
    if not in_step_with_others():
        return zero
    parts = [p.sum() for p in model.expert.embodiments.parameters() if p.requires_grad]
    if not acted and model.config.embodiments:
        parts.append(_action_loss_of_zeros(model))
    if not saw:
        encoder = model.vlm.config.vision_config
        patches = torch.zeros(
            encoder.spatial_merge_size**2,
            encoder.in_channels * encoder.temporal_patch_size * encoder.patch_size**2,
            device=model.vlm.device,
        )
        grid = torch.tensor([[1, encoder.spatial_merge_size, encoder.spatial_merge_size]], device=patches.device)
        features = model.vlm.model.get_image_features(patches, grid, return_dict=True).pooler_output
        parts.append(torch.cat(features).float().sum())
    total: torch.Tensor = sum(0.0 * part for part in parts) + zero
    return total


def in_step_with_others() -> bool:
    """Whether this is one of several processes that train together."""
    return (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    )


def _gathers_weights(model: Any) -> bool:
    """Whether every pass gathers weights from all processes (FSDP2, ZeRO-3), so that all have to make as many passes."""
    return hasattr(model, "set_reshard_after_backward") or any(hasattr(p, "ds_id") for p in model.adapter.parameters())


def _action_loss_of_zeros(model: Any) -> torch.Tensor:
    """One pass of adapter and expert on an empty sample of the first robot."""
    config, device = model.config, model.device
    side = config.expert_image_size
    observation = ExpertObservation(
        state=torch.zeros(1, config.max_state_dim, device=device),
        embodiment_ids=torch.full((1,), next(iter(config.embodiments.values()))["id"], device=device),
        pixel_values=torch.zeros(1, len(config.views), 3, side, side, device=device),
        view_mask=torch.ones(1, len(config.views), dtype=torch.bool, device=device),
    )
    query_states = torch.zeros(1, config.num_query_tokens, model.action_queries.embedding_dim, device=device)
    actions = torch.zeros(1, config.chunk_size, config.max_action_dim, device=device)
    # Noise and time are given, so that no random number is drawn that the next step would then miss.
    fixed = {"noise": torch.zeros_like(actions), "timestep": torch.zeros(1, device=device)}
    if _gathers_weights(model):
        loss: torch.Tensor = model.action_loss(query_states, observation, actions, **fixed)[0].sum()
        return loss
    target = action_target(
        config, observation.embodiment_ids, actions, **fixed
    )  # one pass: there is nothing to decouple
    one_pass: torch.Tensor = model.loss_of_states(
        query_states, model.expert.encode_observation(observation), target
    ).sum()
    return one_pass
