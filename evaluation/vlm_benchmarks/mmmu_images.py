"""MMMU's questions with lmms-eval's words and every image where its own number stands.

lmms-eval 0.7.3 makes all marks alike and hands out the sorted images in turn. A question that names an image twice loses
the text between, and options "<image 2>", "<image 1>" are shown in the other order, so that the right letter changes.
"""

from __future__ import annotations

import re
from typing import Any

from .image_rows import rgb
from .vlmevalkit_prompts import placed_images

_NUMBER = re.compile(r"<image (\d)>")


def lmms_eval_messages(doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, Any]) -> list[dict[str, Any]]:
    """Chat of a row, in the form that lmms-eval's tasks return.

    Args:
        doc: Row of MMMU with its images.
        lmms_eval_specific_kwargs: The task's; lmms-eval passes it by this name.

    Raises:
        DamagedRow: If an image that the question names is missing.
    """
    content = []
    for part in placed_images(_prompt(doc, lmms_eval_specific_kwargs), doc):
        if part["type"] == "image":
            content.append({"type": "image", "url": rgb(part["image"])})
        elif part["text"].strip():
            content.append({"type": "text", "text": part["text"].strip()})
    return [{"role": "user", "content": content}]


def misplaced_by_lmms_eval(doc: dict[str, Any]) -> bool:
    """Whether lmms-eval itself would show this row with its text cut or its images in other places."""
    from lmms_eval.tasks.mmmu.utils import construct_prompt

    named = _NUMBER.findall(construct_prompt(doc))
    return named != sorted(set(named))


def _prompt(doc: dict[str, Any], specific: dict[str, Any]) -> str:
    from lmms_eval.tasks.mmmu.utils import construct_prompt

    prompt: str = construct_prompt(
        doc, specific["multiple_choice_prompt"], specific["open_ended_prompt"], specific["prompt_type"]
    )
    return prompt
