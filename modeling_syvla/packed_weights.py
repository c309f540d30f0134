"""Linear layers whose weights lie in oneDNN's own layout, for inference on a CPU.

A plain weight is brought into that layout at every call, which for the few tokens of a flow step takes a sixth of the
product, and memory that is as slow as anything. Packed, each weight exists once, in the other layout: no further memory,
but nothing can be trained, merged or moved any more. `state_dict` and `save_pretrained` give the plain weights, bit by bit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from .inference_linear import OneDNNLinear

USUAL_TOKENS = 51
"""For how many tokens the layout is chosen: those of a flow step. oneDNN took the same for all from 4 to 300 tokens."""

BLOCK = 128
"""Widths that are no multiple of this were up to a sixth slower: the output gets zeros up to the next one, which are cut
off, where that is little (`MOST_PADDING`)."""

MOST_PADDING = 1 / 20

DTYPES = (torch.float32, torch.bfloat16)

ADVICE = "its weights are packed for inference (optimize_for_inference(pack_weights=True)); load the model again to {}"


class PackedLinear(nn.Module):
    """A linear layer with a packed weight; built from a plain one, which should then be dropped.

    Args:
        layer: Contiguous float32 or bfloat16 weight on the CPU.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        with torch.no_grad():
            weight = layer.weight.detach().contiguous()
            padding = -self.out_features % BLOCK
            self._padded = layer.bias is None and 0 < padding <= MOST_PADDING * self.out_features
            if self._padded:
                weight = F.pad(weight, (0, 0, 0, padding))
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, USUAL_TOKENS)
        self.bias = layer.bias
        self.training = False

    def __getattr__(self, name: str) -> Any:
        if name == "weight":
            raise AttributeError(f"weight: this layer has none in the plain layout, {ADVICE.format('use it')}")
        return super().__getattr__(name)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in_features) -> (..., out_features), in the weights' dtype, under autocast as well.

        Raises:
            RuntimeError: If a gradient is wanted, or `x` has another dtype than the weight.
        """
        if torch.is_grad_enabled() and x.requires_grad:
            raise RuntimeError(f"no gradient passes this layer: {ADVICE.format('differentiate')}")
        if torch.is_autocast_enabled("cpu"):
            x = x.to(self._packed.dtype)
        if x.dtype != self._packed.dtype:
            raise RuntimeError(f"packed linear layer: expected {self._packed.dtype} as the weights, got {x.dtype}")
        with torch.no_grad():
            out = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        features: torch.Tensor = out[..., : self.out_features] if self._padded else out
        return features

    def train(self, mode: bool = True) -> PackedLinear:
        """Raises: RuntimeError: If `mode`."""
        if mode:
            raise RuntimeError(f"this model cannot be trained: {ADVICE.format('train')}")
        return super().train(mode)

    def require_unmoved(self, fn: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Raises: RuntimeError: If `fn` gives a tensor of another dtype or device than it got."""
        probe = fn(torch.empty(0, dtype=self._packed.dtype))
        if (probe.dtype, probe.device.type) != (self._packed.dtype, "cpu"):
            raise RuntimeError(f"this model cannot go to {probe.dtype} on {probe.device}: {ADVICE.format('move it')}")

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        self.require_unmoved(fn)
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        weight = self._packed.to_dense()
        destination[f"{prefix}weight"] = weight[: self.out_features].clone() if self._padded else weight
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, metadata: Any, strict: bool, missing: Any, unexpected: Any, errors: Any
    ) -> None:
        if f"{prefix}weight" in state_dict:
            errors.append(f"{prefix}weight: cannot be loaded into this model: {ADVICE.format('change it')}")
        elif strict:
            missing.append(f"{prefix}weight")
        super()._load_from_state_dict(state_dict, prefix, metadata, False, missing, unexpected, errors)

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedLinear:
        copy = PackedLinear.__new__(PackedLinear)
        memo[id(self)] = copy
        nn.Module.__init__(copy)
        copy.in_features, copy.out_features = self.in_features, self.out_features
        copy._packed, copy._padded = self._packed.clone(), self._padded
        copy.bias = None if self.bias is None else nn.Parameter(self.bias.detach().clone(), requires_grad=False)
        copy.training = False
        return copy


def is_packed(model: nn.Module) -> bool:
    """Whether any layer of a model is."""
    return any(isinstance(module, PackedLinear) for module in model.modules())


def why_not_packed(model: nn.Module) -> str | None:
    """Why the weights of a model stay as they are; None if they can be packed."""
    if not torch.backends.mkldnn.is_available():
        return "this build of torch has no oneDNN"
    if not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return "this build of torch cannot pack weights"
    if any(hasattr(module, "base_layer") for module in model.modules()):
        return "the model has adapters; merge them first"
    kinds = {(p.dtype, p.device.type) for p in model.parameters() if p.ndim == 2}
    if not is_packed(model) and not any(dtype in DTYPES for dtype, _ in kinds):
        return f"expected weights in {' or '.join(map(str, DTYPES))}, got {sorted({str(dtype) for dtype, _ in kinds})}"
    if any(device != "cpu" for _, device in kinds):
        return "not all weights are on the CPU"
    if (torch.bfloat16, "cpu") in kinds and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "this processor does not compute in bfloat16"
    return None


def pack_weights(model: nn.Module) -> int:
    """Replace every plain linear layer by a packed one, layer after layer, so that no two copies of the model exist.

    Layers of other types or dtypes, and those that share their weight with another module, stay.

    Returns:
        The number of layers packed.
    """
    uses = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    parents = [module for module in model.modules() if next(module.children(), None) is not None]
    packed = 0
    for parent in parents:
        for name in list(parent._modules):
            # No other name may hold a layer: its weight has to go before the next one is packed.
            if _packable(parent._modules[name], uses):
                setattr(parent, name, PackedLinear(cast("nn.Linear", parent._modules[name])))
                packed += 1
    return packed


def _packable(layer: Any, uses: Counter[int]) -> bool:
    if type(layer) not in (nn.Linear, OneDNNLinear) or uses[id(layer.weight)] > 1:
        return False
    return type(layer.weight.data) is torch.Tensor and layer.weight.dtype in DTYPES
