"""Several linear layers of the same input as one matrix product, without a second copy of their weights."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .onednn_linear import OneDNNLinear, linear


class FusedProjections:
    """Linear layers without bias whose weights lie one behind the other in one tensor.

    Their parameters become views of it: they are saved, loaded and trained as before, in the plain layout. The product is
    taken only where no gradient is wanted, and only while the views are intact: who moves the model to another device or
    dtype, copies it, or puts an adapter around a layer, gets the plain layers again.

    Args:
        module: Owner of the layers.
        names: Attributes of `module`; their outputs follow each other in this order.

    Raises:
        ValueError: If the layers cannot be fused, which the message explains.
    """

    def __init__(self, module: nn.Module, *names: str) -> None:
        self.module, self.names = module, names
        layers = [getattr(module, name) for name in names]
        if problem := _why_not(layers):
            raise ValueError(f"{', '.join(names)}: cannot be fused: {problem}")
        with torch.no_grad():
            self.weight = torch.cat([layer.weight for layer in layers])  # (sum of the outputs, D)
            for layer, rows in zip(layers, self._rows(layers), strict=True):
                layer.weight.data = rows
        self.onednn = all(type(layer) is OneDNNLinear for layer in layers)

    def _rows(self, layers: list[Any]) -> list[torch.Tensor]:
        return list(self.weight.split([layer.out_features for layer in layers]))

    def usable(self) -> bool:
        """Whether one product may stand for the layers now."""
        if torch.is_grad_enabled():
            return False
        if torch.compiler.is_compiling():
            return True  # `intact` was asked before: see `denoise_loop`
        return self.intact()

    def intact(self) -> bool:
        """Whether the layers' weights are still the views."""
        address, step = self.weight.data_ptr(), self.weight.element_size() * self.weight.shape[1]
        for name in self.names:
            layer = getattr(self.module, name)
            if type(layer) not in (nn.Linear, OneDNNLinear) or layer.weight.data_ptr() != address:
                return False
            address += step * layer.out_features
        return True

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(..., D) -> (..., sum of the outputs)."""
        return linear(x, self.weight) if self.onednn else F.linear(x, self.weight)


def _why_not(layers: list[Any]) -> str | None:
    for layer in layers:
        if type(layer) not in (nn.Linear, OneDNNLinear):
            return f"{type(layer).__name__} is no plain linear layer (merge adapters first)"
        if layer.bias is not None:
            return "a layer has a bias"
        if layer.weight.device.type == "meta" or hasattr(layer, "_hf_hook"):
            return "the weights are kept elsewhere and fetched for every call"
        if type(layer.weight.data) is not torch.Tensor:
            return f"the weights are quantized ({type(layer.weight.data).__name__})"
    kinds = {(layer.weight.dtype, layer.weight.device, layer.in_features) for layer in layers}
    return None if len(kinds) == 1 else "dtype, device or input width differ"
