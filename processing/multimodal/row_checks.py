"""Whether a chat fits the processor, without processing its images: asked of every row before it joins a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from syvla.processing.prompt_format import require_plain_text

from .sources import MAX_ASPECT, BrokenRow

_ROLES = ("system", "user", "assistant")


class RowCheck:
    """Refuses what would end a run in the middle, or change its prompts.

    Texts with control tokens are refused, not rewritten: a row about `<|im_end|>` teaches nothing once the token is spelled
    differently, and such rows are rare.

    Args:
        processor: A [`SyVLAProcessor`].
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(self, item: Mapping[str, Any]) -> None:
        """Checks a chat item `{"messages", "images"}`.

        Raises:
            BrokenRow: It does not fit; says why.
        """
        marks = 0
        for number, message in enumerate(item["messages"]):
            marks += self._check_message(f"messages[{number}]", message)
        images = item["images"]
        if marks != len(images):
            raise BrokenRow("image count", f"messages: hold {marks} image entries, got {len(images)} images")
        for number, image in enumerate(images):
            if max(image.size) > MAX_ASPECT * min(image.size):
                raise BrokenRow("extreme shape", f"images[{number}]: {image.width} x {image.height} pixels")
        try:
            count = self.processor.count_tokens(item)
        except ValueError as error:
            raise BrokenRow("malformed", str(error)) from error
        if count > (limit := self.processor.max_length):
            raise BrokenRow("too long", f"messages: {count} tokens with the images, more than max_length={limit}")

    def _check_message(self, name: str, message: Mapping[str, Any]) -> int:
        """Number of images of a message."""
        role, content = message["role"], message["content"]
        if role not in _ROLES:
            raise BrokenRow("malformed", f"{name}: expected a role out of {', '.join(_ROLES)}, got {role!r}")
        marks = 0
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            if part.get("type") == "image" and "text" not in part:
                marks += 1
                if role == "assistant":
                    raise BrokenRow("malformed", f"{name}: an answer holds an image")
            elif part.get("type", "text") != "text" or not isinstance(part.get("text"), str):
                raise BrokenRow("malformed", f"{name}: expected texts and images, got a part with {sorted(part)}")
            else:
                try:
                    require_plain_text(name, part["text"], self.processor.tokenizer)
                except ValueError as error:
                    raise BrokenRow("control tokens", str(error)) from error
        return marks
