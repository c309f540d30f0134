"""A checkpoint, or a model in memory, made ready to answer questions."""

from __future__ import annotations

import os
from typing import Any

import torch

from .answer_generation import BATCH_TOKENS, MAX_BATCH_SIZE, AnswerGenerator
from .prompts import PromptRenderer


def load_generator(
    model: str,
    *,
    device: str | torch.device | None = None,
    dtype: str = "auto",
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    max_batch_size: int = MAX_BATCH_SIZE,
    batch_tokens: int = BATCH_TOKENS,
    max_new_tokens: int | None = None,
    fingerprint: bool = True,
    progress: bool = True,
) -> AnswerGenerator:
    """Loads the VLM of a SyVLA checkpoint, or a plain Qwen2.5-VL, with its processor.

    Args:
        model: Folder or Hub id.
        device: None: this process's GPU where there is one.
        dtype: Parameter dtype; "auto": the checkpoint's.
        min_pixels, max_pixels: See `PromptRenderer`.
        max_batch_size, batch_tokens, max_new_tokens, progress: See `AnswerGenerator`.
        fingerprint: Whether to compute the digest of the weights.

    Raises:
        FileNotFoundError, ValueError: If there is no such checkpoint, device or dtype.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    import syvla
    from syvla.evaluation.checkpoint_folder import check_checkpoint, naming_the_checkpoint
    from syvla.modeling_syvla.vlm_positions import use_right_image_positions
    from syvla.serving.policies.loading import checked_device, checked_dtype

    check_checkpoint(model)
    place, parameters = checked_device(device or default_device()), checked_dtype(dtype)
    with naming_the_checkpoint(model):
        # Any: the annotations of transformers lose `self` in `PreTrainedModel.to`.
        vlm: Any = AutoModelForImageTextToText.from_pretrained(model, dtype=parameters)
        if not isinstance(vlm, syvla.SyVLAForConditionalGeneration):
            use_right_image_positions(vlm)
        vlm = vlm.to(place)
        processor = AutoProcessor.from_pretrained(model)
    return make_generator(
        vlm,
        processor,
        min_pixels=min_pixels,
        max_pixels=max_pixels,
        max_batch_size=max_batch_size,
        batch_tokens=batch_tokens,
        max_new_tokens=max_new_tokens,
        fingerprint=fingerprint,
        progress=progress,
    )


def make_generator(
    model: Any,
    processor: Any,
    *,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    max_batch_size: int = MAX_BATCH_SIZE,
    batch_tokens: int = BATCH_TOKENS,
    max_new_tokens: int | None = None,
    fingerprint: bool = True,
    progress: bool = True,
) -> AnswerGenerator:
    """As `load_generator`, of a model in memory; it stays where it is."""
    from syvla.serving.policies.loading import weights_digest

    config = getattr(model.config, "vlm_config", model.config)
    length = config.get_text_config().max_position_embeddings
    renderer = PromptRenderer(processor, length, min_pixels, max_pixels)
    checkpoint = weights_digest(model) if fingerprint else ""
    return AnswerGenerator(model, renderer, checkpoint, None, max_batch_size, batch_tokens, max_new_tokens, progress)


def default_device() -> str:
    """This process's GPU, where there is one, else the CPU."""
    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
