"""FLOPs of a training step at the paper's size, counted on the meta device: nothing is computed, no weight exists."""

from __future__ import annotations

import torch
import torch.fx.experimental._config as tracing
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from benchmarks.reporting import FlopCount
from benchmarks.scaled_model import TEXT_TOKENS, VIEW_SIZE, image_tokens, scaled_config
from syvla.modeling_syvla import SyVLAModel
from syvla.modeling_syvla.expert_inputs import ExpertObservation


def counted_ratios() -> dict[str, float]:
    """FLOPs with Intention Decoupling over those without, by the names of `benchmarks.decoupling`'s variants."""
    ratios = {}
    forward, backward = vlm_flops()
    for scope, name in (("all", "exact"), ("suffix", "suffix")):
        off, on = expert_flops(scope, False), expert_flops(scope, True)
        ratios[name] = (forward + backward + on) / (forward + backward + off)
        prefix = "checkpointed, exact" if scope == "all" else "checkpointed suffix"
        ratios[prefix] = (2 * forward + backward + on) / (2 * forward + backward + off)
    return ratios


def vlm_flops(views: int = 3, text_tokens: int = TEXT_TOKENS) -> tuple[int, int]:
    """Forward and backward of the VLM on one robot sample."""
    config = scaled_config(1, 1)
    with torch.device("meta"):
        model = SyVLAModel(config).train().vlm.model
    vision = config.vlm_config.vision_config
    side = VIEW_SIZE // vision.patch_size
    grid = torch.tensor([[1, side, side]] * views)
    windows, boundaries = get_vision_window_index(
        grid,
        spatial_merge_size=vision.spatial_merge_size,
        window_size=vision.window_size,
        patch_size=vision.patch_size,
    )
    patches = torch.empty(int(grid.prod(-1).sum()), vision.patch_size**2 * 3 * vision.temporal_patch_size)
    with FlopCount() as forward:
        images = model.visual(
            patches.to("meta"),
            grid_thw=grid,
            position_ids=get_vision_position_ids(grid, vision.spatial_merge_size).to("meta"),
            window_index=windows.to("meta"),
            cu_window_seqlens=boundaries,
        ).pooler_output
        length = views * len(image_tokens(config)) + text_tokens + config.num_query_tokens
        embeds = torch.empty(1, length, model.language_model.config.hidden_size, device="meta", requires_grad=True)
        positions = torch.zeros(3, 1, length, dtype=torch.long, device="meta")
        hidden = model.language_model(inputs_embeds=embeds, position_ids=positions, use_cache=False).last_hidden_state
    with FlopCount() as backward:
        (images.sum() + hidden.sum()).backward()
    return forward.total, backward.total


def expert_flops(scope: str, decoupling: bool) -> int:
    """Forward and backward of adapter, expert and its image encoder on one robot sample."""
    config = scaled_config(1, 1, cross_attention_scope=scope)
    config.intention_decoupling = decoupling
    with torch.device("meta"):
        model = SyVLAModel(config).train()
    # With a single robot every sample is routed to it, which the meta device cannot know.
    with torch.device("meta"), tracing.patch(meta_nonzero_assume_all_nonzero=True), FlopCount() as count:
        width = config.get_text_config().hidden_size
        losses, _ = model.action_loss(
            torch.empty(1, config.num_query_tokens, width, requires_grad=True),
            ExpertObservation(
                state=torch.empty(1, 14),
                embodiment_ids=torch.zeros(1, dtype=torch.long),
                pixel_values=torch.empty(1, 3, 3, VIEW_SIZE, VIEW_SIZE),
                view_mask=torch.ones(1, 3, dtype=torch.bool),
            ),
            torch.empty(1, config.chunk_size, 14),
            noise=torch.empty(1, config.chunk_size, 14),
            timestep=torch.empty(1),
        )
        losses.sum().backward()
    return count.total
