"""What a run needs besides its data, checked before anything heavy is loaded."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

TRACKERS = {
    "clearml": "clearml",
    "comet_ml": "comet_ml",
    "mlflow": "mlflow",
    "neptune": "neptune",
    "swanlab": "swanlab",
    "tensorboard": "tensorboard",
    "trackio": "trackio",
    "wandb": "wandb",
}
"""Trackers of `report_to` and the modules that they need; others are left to transformers."""


def require_trackers(report_to: Any) -> None:
    """Refuse a tracker that is not installed.

    Raises:
        ValueError: Naming it and how to install it.
    """
    names = [report_to] if isinstance(report_to, str) else list(report_to or ())
    for name in names:
        module = TRACKERS.get(name)
        missing = module is not None and find_spec(module) is None
        if missing and not (name == "tensorboard" and find_spec("tensorboardX") is not None):
            raise ValueError(
                f"report_to: {name} is not installed; install it with: pip install {module}, or choose another tracker, or none"
            )


def require_autocast(model: Any, args: Any) -> None:
    """Refuse a frozen base in half precision without the autocast that joins it to an adapter in float32.

    Raises:
        ValueError: Naming the option.
    """
    name = str(model.dtype).removeprefix("torch.")
    option = {"bfloat16": "bf16", "float16": "fp16"}.get(name)
    if option is not None and not (args.bf16 or args.fp16):
        raise ValueError(
            f"{option}: the checkpoint's weights are {name} and stay so under an adapter, whose own are float32; set "
            f"{option} to true, or save the checkpoint in float32 first"
        )


def require_processor(processing_class: Any) -> None:
    """Refuse a trainer without the processor that makes its batches.

    Raises:
        ValueError: If there is none, or something else.
    """
    if not callable(getattr(processing_class, "collate", None)):
        raise ValueError(
            f"processing_class: expected the checkpoint's SyVLAProcessor, got {type(processing_class).__name__}; pass "
            "AutoProcessor.from_pretrained(checkpoint)"
        )


def require_one_device(args: Any) -> None:
    """Refuse `torch.nn.DataParallel`, into which [`Trainer`] wraps a model where one process sees several GPUs.

    Raises:
        ValueError: Naming the two ways out.
    """
    if args.n_gpu > 1:
        raise ValueError(
            f"this process sees {args.n_gpu} GPUs and would train with DataParallel, which splits a batch without regard to "
            "its images; start one process per GPU (accelerate launch, or torchrun --nproc_per_node), or show it one GPU "
            "(CUDA_VISIBLE_DEVICES=0)"
        )
