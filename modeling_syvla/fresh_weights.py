"""Initial values of the weights that no pretrained part gives, without the whole model in memory."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from .tensor_files import MemoryTensor


class FreshWeights:
    """Initial values of the modules that no part gives, one module at a time.

    Each module draws from a generator of its own, seeded by its name, so that neither shards nor further embodiments change
    the others.

    Args:
        model: The model on the meta device; its `_init_weights` is used.
        seed: Seed of the whole assembly.
    """

    def __init__(self, model: PreTrainedModel, seed: int) -> None:
        self.model = model
        self.seed = seed
        self._name: str | None = None
        self._tensors: dict[str, torch.Tensor] = {}

    def tensor(self, name: str) -> torch.Tensor:
        """float32 tensor of that name; the module's others are kept until another module is asked for."""
        module_name, _, own_name = name.rpartition(".")
        if module_name != self._name:
            self._tensors = self._initialize(module_name)
            self._name = module_name
        return self._tensors[own_name]

    @torch.no_grad()
    def _initialize(self, name: str) -> dict[str, torch.Tensor]:
        module = copy.deepcopy(self.model.get_submodule(name)).float().to_empty(device="cpu", recurse=False)
        tensors = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
        for tensor in tensors.values():
            tensor.fill_(torch.nan)
        with seeded(self.seed, name):
            self.model._init_weights(module)
        for own_name, tensor in tensors.items():
            if tensor.isnan().any():
                raise RuntimeError(
                    f"{name}.{own_name}: {type(self.model).__name__}._init_weights does not initialize it"
                )
        return {own_name: tensor.detach() for own_name, tensor in tensors.items()}


@dataclass(frozen=True)
class FreshTensor:
    """A tensor that is initialized when it is read."""

    weights: FreshWeights
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32

    def pieces(self) -> Iterator[torch.Tensor]:
        yield from MemoryTensor(self.read()).pieces()

    def read(self) -> torch.Tensor:
        return self.weights.tensor(self.name)


@contextmanager
def seeded(seed: int, name: str) -> Iterator[None]:
    """Draw from a generator of this seed and name, and leave the caller's alone."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int.from_bytes(digest[:7], "little"))
        yield
