"""`--torch_compile`: the layers of a policy through `torch.compile`, one by one, instead of the model as a whole.

The forward of the whole asks what stands in a batch (which samples are robots, which tokens are learned), and each such
question would cut its graph and compile anew. A layer asks nothing. All layers of a kind share what is compiled, so that
there is a graph per shape and not per layer, and weights keep their names.

The first pass of Intention Decoupling stays as it is: compiled code would compute all weights' gradients there, which
nobody reads.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from accelerate.utils import DynamoBackend
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

logger = logging.getLogger(__name__)

STATIC_SHAPES = 64
"""How many shapes of a layer are compiled with `length_bucket`, before torch falls back to running it as it is. Ours."""


def compile_layers(policy: Any, backend: str, mode: str | None = None, *, length_bucket: int = 1) -> int:
    """Compiles the repeated layers of a [`SyVLAModel`] in place, at their next call.

    Args:
        policy: The model, with its adapter if it gets one.
        backend, mode: As `torch.compile`.
        length_bucket: Above 1, sequences have few lengths, and the language model's layers are compiled for each;
            else for any length, once a second one has come.

    Returns:
        How many layers will be compiled.

    Raises:
        ValueError: If nothing can be compiled here.
    """
    if backend == "inductor" and (problem := _problem(policy.device)):
        raise ValueError(f"torch_compile: {problem}; install a C++ compiler (on a GPU also Triton), or leave it off")
    of_language, of_images = (_layers(part) for part in (policy.vlm.model.language_model, policy.vlm.model.visual))
    others = [layer for layer in _layers(policy) if layer not in {*of_language, *of_images}]
    dynamic = None
    if length_bucket > 1:
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, STATIC_SHAPES)
        dynamic = False
    for layer in of_images:  # images have any size, and their windows are found by asking the batch
        layer.attn.forward = torch.compiler.disable(layer.attn.forward)  # type: ignore[union-attr]
        layer.compile(backend=backend, mode=mode, dynamic=True)
    for layer in of_language:
        layer.compile(backend=backend, mode=mode, dynamic=dynamic)
    for layer in others:
        layer.compile(backend=backend, mode=mode)
    return len(of_language) + len(of_images) + len(others)


def compile_instead_of_whole(accelerator: Any, policy: Any, args: Any) -> None:
    """For a trainer with `torch_compile`: its layers are compiled, and the model as a whole is not.

    Args:
        accelerator: The trainer's; it would compile the whole model.
        policy: The [`SyVLAModel`] that is trained.
        args: `TrainingArguments`.
    """
    if not args.torch_compile:
        return
    accelerator.state.dynamo_plugin.backend = DynamoBackend.NO
    settings = (args.torch_compile_backend, args.torch_compile_mode)
    count = compile_layers(policy, *settings, length_bucket=getattr(args, "length_bucket", 1))
    logger.info("torch_compile: %d layers are compiled at their first call", count)


def _layers(part: nn.Module) -> list[nn.Module]:
    """Repeated layers: what gradient checkpointing would run again, too."""
    return [module for module in part.modules() if isinstance(module, GradientCheckpointingLayer)]


def _problem(device: torch.device) -> str | None:
    try:
        torch.compile(torch.sin, fullgraph=True)(torch.zeros(1, device=device))
    except Exception as error:
        return f"torch.compile failed: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return None
