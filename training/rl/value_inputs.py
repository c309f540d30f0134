"""The value model's batch, the same wherever it is asked: warm-up, calibration, advantages, updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from syvla.modeling_syvla.modeling_value import encode_instructions


def value_inputs(processor: Any, config: Any, items: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """Images, states, and the instruction where the model reads it.

    Args:
        processor: The policy's [`SyVLAProcessor`].
        config: [`SyVLAValueConfig`].
        items: Robot items as `SyVLAProcessor.collate` takes them; `text` is the instruction.
    """
    batch: dict[str, torch.Tensor] = dict(processor.expert_inputs(items))
    if config.instruction_bytes:
        batch["instruction"] = encode_instructions([str(item["text"]) for item in items], config.instruction_bytes)
    return batch
