"""Questions to prompts: rendered chat text, images, length in tokens, and a digest that names the prompt."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch


class DamagedRow(ValueError):
    """A row of a benchmark whose image is missing or cannot be read."""


@dataclass(frozen=True)
class Question:
    """One question of a benchmark, its chat not yet loaded.

    Args:
        task: Name of the task.
        doc_id: Row of its split.
        load: Returns the chat, `transformers` style: image parts are `{"type": "image", "image": PIL image}`. Raises
            `DamagedRow` where an image cannot be read.
        generation: `max_new_tokens` and other settings of `generate` that the task asks for.
    """

    task: str
    doc_id: int
    load: Callable[[], list[dict[str, Any]]]
    generation: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Prompt:
    """A rendered question. `tokens` counts text and image tokens; `digest` changes with anything the model would see."""

    text: str
    images: list[Any]
    tokens: int
    digest: str


class PromptRenderer:
    """Renders chats with a checkpoint's own template and pixel limits.

    Args:
        processor: `SyVLAProcessor`, or the processor of a plain Qwen2.5-VL; it is copied, not changed.
        max_length: Longest prompt in tokens, as far as the processor has a limit of its own.
        min_pixels, max_pixels: Limits that images are scaled into; None keeps the checkpoint's.
    """

    def __init__(
        self,
        processor: Any,
        max_length: int | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
    ) -> None:
        self.processor = copy.copy(processor)
        self.processor.image_processor = copy.deepcopy(processor.image_processor)
        images = self.processor.image_processor
        limits = {"shortest_edge": min_pixels, "longest_edge": max_pixels}
        size = {key: images.size[key] if limit is None else int(limit) for key, limit in limits.items()}
        if not 0 < size["shortest_edge"] <= size["longest_edge"]:
            raise ValueError(
                f"min_pixels, max_pixels: expected 0 < min <= max, got {size['shortest_edge']} and "
                f"{size['longest_edge']}; give both where the checkpoint's own do not fit"
            )
        images.size = type(images.size)(**size)
        self.pixel_limits = (size["shortest_edge"], size["longest_edge"])
        if max_length is not None and hasattr(self.processor, "max_length"):
            self.processor.max_length = max_length
        self.image_token_id = self.processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")

    def render(self, question: Question) -> Prompt:
        """Text, images and length, without any pixel work."""
        messages = question.load()
        images = [part["image"] for message in messages for part in message["content"] if part["type"] == "image"]
        text = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        merge = self.processor.image_processor.merge_size**2
        count = self.processor.image_processor.get_number_of_image_patches
        image_tokens = sum(count(image.height, image.width, {}) // merge for image in images)
        text_tokens = len(self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]) - len(images)
        digest = hashlib.sha256()
        header = [text, self.pixel_limits, question.generation, [image.size for image in images]]
        digest.update(json.dumps(header, sort_keys=True, default=str).encode())
        for image in images:
            digest.update(image.tobytes())
        return Prompt(text, images, text_tokens + image_tokens, digest.hexdigest()[:20])

    def inputs(self, prompts: list[Prompt]) -> dict[str, torch.Tensor]:
        """One left-padded batch: `input_ids, attention_mask, mm_token_type_ids` (B, L) and the images of all rows."""
        images = [image for prompt in prompts for image in prompt.images]
        batch = self.processor(
            text=[prompt.text for prompt in prompts],
            images=images or None,
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        data = {
            key: batch[key] for key in ("input_ids", "attention_mask", "pixel_values", "image_grid_thw") if key in batch
        }
        # Without them Qwen2.5-VL falls back to one-dimensional positions in silence.
        data["mm_token_type_ids"] = (data["input_ids"] == self.image_token_id).int()
        return data
