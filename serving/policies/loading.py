"""Model and processor of a checkpoint, in the dtype and with the kernels that suit the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
        ValueError: Files of the folder are Git LFS pointers.
    """
    from transformers import AutoConfig, AutoModel, AutoProcessor

    import syvla  # noqa: F401  registers the Auto classes

    require_contents(file for file in sorted(Path(path).glob("*")) if file.is_file())
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    hub = {"revision": revision} if revision else {}
    chosen = inference_dtype(dtype, place, AutoConfig.from_pretrained(path, **hub).dtype)
    model = AutoModel.from_pretrained(path, dtype=chosen, **hub).to(place).eval()
    model.optimize_for_inference(compile=compile)
    return model, AutoProcessor.from_pretrained(path, **hub)


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
