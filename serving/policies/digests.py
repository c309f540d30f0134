"""Hashes by content: a copied or renamed checkpoint is the same policy."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch


def content_digest(value: Any) -> str:
    """SHA-256 of plain data and arrays, 64 hexadecimal digits."""
    text = json.dumps(value, sort_keys=True, default=lambda leaf: np.asarray(leaf).tolist())
    return hashlib.sha256(text.encode()).hexdigest()


def weights_digest(model: torch.nn.Module) -> str:
    """SHA-256 of every parameter and buffer with its name, dtype and shape, 32 digits; the same on every device.

    Tensors are hashed side by side, at about what reading them took. Tied ones are read once.
    """

    def hashed(tensor: torch.Tensor) -> str:
        values = tensor.detach().contiguous().view(-1).view(torch.uint8).cpu()
        return hashlib.sha256(values.numpy().data).hexdigest()

    state = model.state_dict()
    distinct = {_place(tensor): tensor for tensor in state.values()}
    with ThreadPoolExecutor(8) as pool:  # hashing releases the interpreter
        digests = dict(zip(distinct, pool.map(hashed, distinct.values()), strict=True))
    facts = {name: [str(t.dtype), list(t.shape), digests[_place(t)]] for name, t in state.items()}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _place(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()
