"""Model and processor of a checkpoint, in the dtype and with the kernels that suit the device, and the hash that names them.

A copied or renamed checkpoint is the same policy: hashes are of what it holds.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from syvla.processing.lfs_pointers import require_contents


def load_for_inference(
    path: str,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "auto",
    compile: bool = False,
    revision: str | None = None,
) -> tuple[Any, Any]:
    """Loads model and processor through their Auto classes and makes the model quick.

    Args:
        path: Folder or Hub id.
        device: None takes a GPU if there is one.
        dtype: Parameter dtype; "auto": see `inference_dtype`.
        compile: See `SyVLAModel.optimize_for_inference`.
        revision: Commit, branch or tag on the Hub.

    Raises:
        ValueError: Files of the folder are Git LFS pointers, or there is no such device or dtype.
    """
    from transformers import AutoConfig, AutoModel, AutoProcessor

    import syvla  # noqa: F401  registers the Auto classes

    require_contents(file for file in sorted(Path(path).glob("*")) if file.is_file())
    place = checked_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    hub = {"revision": revision} if revision else {}
    chosen = inference_dtype(checked_dtype(dtype), place, AutoConfig.from_pretrained(path, **hub).dtype)
    model = AutoModel.from_pretrained(path, dtype=chosen, **hub).to(place).eval()
    model.optimize_for_inference(compile=compile)
    return model, AutoProcessor.from_pretrained(path, **hub)


def checked_device(device: str | torch.device) -> torch.device:
    """The device.

    Raises:
        ValueError: If torch knows no such device, or has none of the kind here.
    """
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device: expected cpu, cuda, cuda:1 or another of torch's, got {device!r}") from error
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device: {device} was asked for, and torch {torch.__version__} finds {torch.cuda.device_count()} GPUs here; "
            "leave it out for what there is, or install a torch built for your GPU"
        )
    return place


def checked_dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    """The dtype as it was given.

    Raises:
        ValueError: If it is none of parameters.
    """
    chosen = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype != "auto" and not (isinstance(chosen, torch.dtype) and chosen.is_floating_point):
        raise ValueError(f"dtype: expected auto, float32, bfloat16 or float16, got {dtype!r}")
    return dtype


def inference_dtype(dtype: str | torch.dtype, device: torch.device, saved: torch.dtype | None) -> str | torch.dtype:
    """The dtype to load a checkpoint in.

    "auto" means bfloat16 on a GPU that computes in bfloat16: it takes half the memory and less than half the time of float32,
    in which most checkpoints are trained and saved. On other devices, and for checkpoints in float16, "auto" means the
    checkpoint's own dtype. Any other value is returned unchanged.

    Args:
        dtype: The dtype that was asked for.
        device: Device that the model will run on.
        saved: The checkpoint's dtype; None if its configuration does not say.
    """
    if dtype != "auto" or device.type != "cuda" or saved == torch.float16 or not torch.cuda.is_bf16_supported():
        return dtype
    return torch.bfloat16


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
