"""Linear layers at inference: through oneDNN, and several of the same input as one matrix product.

oneDNN is for float32 on processors where PyTorch's own choice, MKL, is slower: MKL has its quickest kernels for its own
vendor's processors only. On an AMD EPYC with AVX-512, oneDNN multiplied the 51 tokens of a flow step 1.4 to 1.7 times as
fast, the VLM's prompt 1.3 times, one token of a thought 1.4 times and a batch of three 3.7 times; the weights stay as they
are, so it costs no memory. Lower precisions go through oneDNN already.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class OneDNNLinear(nn.Linear):
    """`nn.Linear` that takes oneDNN's kernel where nothing is to be learned; see `use_onednn`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`F.linear`, by oneDNN where that is possible: float32 on the CPU, no gradient, no autocast."""
    plain = x.dtype == weight.dtype == torch.float32 and x.device.type == weight.device.type == "cpu"
    if not plain or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or x.numel() == 0:
        return F.linear(x, weight, bias)
    if torch.compiler.is_compiling():
        out: torch.Tensor = torch.ops.syvla.onednn_linear(x, weight, bias)
        return out
    return _onednn(x, weight, bias)


def _onednn(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


def _register_operator() -> None:
    """The same as an operator that `torch.compile` leaves alone; its own lowering takes constant weights only."""
    if hasattr(torch.ops.syvla, "onednn_linear"):  # a checkpoint's copy of this code may have been here first
        return

    @torch.library.custom_op("syvla::onednn_linear", mutates_args=())
    def onednn_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return _onednn(x, weight, bias)

    @onednn_linear.register_fake
    def _(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return x.new_empty(*x.shape[:-1], weight.shape[0])


@lru_cache(maxsize=1)
def onednn_is_quicker() -> bool:
    """Whether this is a processor that MKL does not serve well: AVX-512, of another vendor than Intel."""
    if not torch.backends.mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    try:
        return "GenuineIntel" not in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def use_onednn(module: nn.Module, on: bool = True) -> int:
    """Make every plain float32 linear layer on the CPU a `OneDNNLinear`, or back; parameters are untouched.

    Returns:
        The number of layers changed.
    """
    if on:
        _register_operator()
    old, new = (nn.Linear, OneDNNLinear) if on else (OneDNNLinear, nn.Linear)
    changed = 0
    for layer in module.modules():
        if type(layer) is old and _is_plain(layer.weight):
            layer.__class__ = new
            changed += 1
    return changed


def _is_plain(weight: torch.Tensor) -> bool:
    return type(weight.data) is torch.Tensor and weight.device.type == "cpu" and weight.dtype == torch.float32


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
