"""Which parts of a model stay as they are: presets of `--freeze`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn

FREEZE_PRESETS = ("none", "vlm", "vision", "vlm_and_vision", "all_but_embodiments")
"""Presets by name.

- "none": everything is trained.
- "vlm": the vision-language model is frozen; queries, adapter and expert are trained.
- "vision": both image encoders are frozen, the VLM's and the expert's.
- "vlm_and_vision": the VLM and the expert's image encoder are frozen.
- "all_but_embodiments": only encoders and decoders of the robots, queries and adapter are trained.
"""


def freeze(model: Any, preset: str = "none", embodiments: Collection[str] | None = None) -> None:
    """Set `requires_grad` of all weights; a frozen weight gets no gradient and no optimizer state.

    Args:
        model: A [`SyVLAModel`].
        preset: One of `FREEZE_PRESETS`.
        embodiments: Robots that the run has data of. The coders of all others are frozen under every preset: they get no
            gradient, but weight decay would still shrink them. None: all robots.

    Raises:
        ValueError: If the preset is unknown.
    """
    if preset not in FREEZE_PRESETS:
        raise ValueError(f"freeze: expected one of {', '.join(FREEZE_PRESETS)}, got {preset!r}")
    model.requires_grad_(preset != "all_but_embodiments")
    for module in _frozen_parts(model, preset):
        module.requires_grad_(False)
    if preset == "all_but_embodiments":
        for module in (model.action_queries, model.adapter, model.expert.embodiments):
            module.requires_grad_(True)
    for name, coders in model.expert.embodiments.items():
        if embodiments is not None and name not in embodiments:
            coders.requires_grad_(False)


def trainable_parameters(model: nn.Module) -> tuple[int, int]:
    """Numbers of trained and of all parameters."""
    counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trained in counts if trained), sum(n for n, _ in counts)


def _frozen_parts(model: Any, preset: str) -> list[nn.Module]:
    own = getattr(model.expert, "vision_tower", None)  # the regression baseline has none
    tower = [own] if own is not None and preset in ("vision", "vlm_and_vision") else []
    if preset == "vision":
        return [model.vlm.model.visual, *tower]
    return [model.vlm, *tower] if preset in ("vlm", "vlm_and_vision") else []
