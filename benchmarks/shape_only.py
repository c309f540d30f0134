"""A training step of which only the shapes exist: how much memory it would hold, without that memory.

Floating-point tensors are torch's `FakeTensor`: a dtype, a shape and no numbers. Token ids, masks and positions are real,
since the model asks what stands in them. `LiveBytes` watches the operations on both.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

aten = torch.ops.aten
_TAKE_INDICES = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive, and the most that there were at once.

    A storage counts from the operation that makes it until the last tensor on it is gone, as an allocator would see it that
    neither rounds nor fragments. What a kernel takes for itself and gives back before it returns does not show.

    Attributes:
        now: Bytes alive.
        peak: The most there were; set it to `now` to begin anew.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, Any] = {}

    def add(self, *values: Any) -> None:
        """Counts the tensors in these values, which were made elsewhere."""
        for value in tree_leaves(values):
            if isinstance(value, torch.Tensor):
                self._add(value.untyped_storage())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _TAKE_INDICES:
            args = (args[0], _as_positions(args[1]), *args[2:])
        output = func(*args, **(kwargs or {}))
        self.add(output)
        return output

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return
        self.now += size
        self.peak = max(self.peak, self.now)

        def freed(_: Any) -> None:
            self.now -= size
            del self._alive[key]

        self._alive[key] = weakref.ref(storage, freed)


def _as_positions(indices: Any) -> list[Any]:
    """Masks as positions: the number of True decides the shape of the result, which a fake tensor must know."""
    positions: list[Any] = []
    for index in indices:
        is_mask = isinstance(index, torch.Tensor) and index.dtype == torch.bool
        positions.extend(index.nonzero().unbind(1) if is_mask else [index])
    return positions


def shapes_of(build: Callable[[], nn.Module], dtype: Callable[[nn.Parameter], torch.dtype]) -> tuple[nn.Module, Any]:
    """A model without numbers.

    Args:
        build: Makes the real model. Its weights are not initialized, so that a system without them in use gives no memory.
        dtype: Of a weight, given the real one.

    Returns:
        The model, and a function that turns the floating-point tensors of a batch into those without numbers.
    """
    from transformers.initialization import no_init_weights

    mode = FakeTensorMode(allow_non_fake_inputs=True)

    def fake(tensor: torch.Tensor, kind: torch.dtype) -> torch.Tensor:
        with mode:
            return torch.empty(tensor.shape, dtype=kind)

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)  # half of the address space; `dtype` decides what counts
    try:
        with no_init_weights():
            model = build()
    finally:
        torch.set_default_dtype(before)
    new: dict[int, nn.Parameter] = {}  # tied weights stay tied
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                if id(weight) not in new:
                    new[id(weight)] = nn.Parameter(fake(weight, dtype(weight)), weight.requires_grad)
                module._parameters[name] = new[id(weight)]
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_floating_point():
                module._buffers[name] = fake(buffer, torch.float32)

    def batch_of(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: fake(x, x.dtype) if x.is_floating_point() else x for name, x in batch.items()}

    return model, batch_of


@contextmanager
def norms_of_cuda() -> Iterator[None]:
    """Lets layer norms under the CPU's autocast give float32, as under CUDA's.

    The function itself is exchanged: the backward pass, where checkpointed layers run again, knows of no mode of torch.
    """
    layer_norm = F.layer_norm

    def as_on_cuda(*args: Any, **kwargs: Any) -> torch.Tensor:
        if torch.is_autocast_enabled("cpu"):
            args, kwargs = tree_map_only(torch.Tensor, torch.Tensor.float, (args, kwargs))
        return layer_norm(*args, **kwargs)

    F.layer_norm = as_on_cuda
    try:
        yield
    finally:
        F.layer_norm = layer_norm


class FourBitLinear(nn.Module):
    """A frozen linear layer as bitsandbytes keeps it: 4 bits a weight, and a float32 scale for each block of 64.

    Source: `Linear4bit` and `MatMul4Bit` of https://github.com/bitsandbytes-foundation/bitsandbytes: forward and backward
    unpack the weight into the dtype of computing and drop it again.
    """

    BLOCK = 64

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self.packed = nn.Buffer(weight.detach().new_empty((weight.numel() + 1) // 2, dtype=torch.uint8))
        self.scales = nn.Buffer(weight.detach().new_empty(-(-weight.numel() // self.BLOCK), dtype=torch.float32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = _FourBitProduct.apply(x.to(torch.bfloat16), self.packed, self.out_features)
        return output if self.bias is None else output + self.bias.to(output.dtype)


class _FourBitProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, packed: torch.Tensor, width: int) -> torch.Tensor:
        ctx.save_for_backward(packed)
        ctx.shape = (width, x.shape[-1])
        return F.linear(x, x.new_empty(ctx.shape))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,) = gradients
        return gradient @ gradient.new_empty(ctx.shape), None, None
