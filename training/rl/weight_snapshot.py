"""The policy's trained weights at the start of an update, to return to when the update fails its guard."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

SNAPSHOT_FILE = "rl_update_start.safetensors"


class WeightSnapshot:
    """Copies in main memory.

    Args:
        weights: Trained weights by name.
    """

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        self.weights = weights

    @classmethod
    def take(cls, model: nn.Module) -> WeightSnapshot:
        return cls({name: p.detach().to("cpu", copy=True) for name, p in model.named_parameters() if p.requires_grad})

    @torch.no_grad()
    def restore(self, model: nn.Module) -> None:
        """Give the model these weights again, bit for bit."""
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(self.weights[name])

    def save(self, folder: str | Path) -> None:
        save_file({name: weight.contiguous() for name, weight in self.weights.items()}, Path(folder) / SNAPSHOT_FILE)

    @classmethod
    def load(cls, folder: str | Path) -> WeightSnapshot:
        return cls(load_file(Path(folder) / SNAPSHOT_FILE))
