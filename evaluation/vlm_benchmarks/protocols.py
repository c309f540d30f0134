"""The two protocols under which the five benchmarks are run: how a question is asked, and how an answer is read."""

from __future__ import annotations

import difflib
from dataclasses import dataclass


@dataclass(frozen=True)
class Protocol:
    """What two numbers must share before they can be compared.

    Attributes:
        name: As on the command line.
        source: What its prompts, readings and aggregation follow.
        min_pixels, max_pixels: Limits that it scales images into.
        max_new_tokens: Cap on an answer; None: each task has its own.
        repetition_penalty: Of the generation; None: the checkpoint's own generation configuration decides.
    """

    name: str
    source: str
    min_pixels: int
    max_pixels: int
    max_new_tokens: int | None = None
    repetition_penalty: float | None = None


VLMEVALKIT = Protocol(
    "vlmevalkit",
    "VLMEvalKit as of commit e8e78f0 (August 2026), its settings for Qwen2.5-VL-3B-Instruct, exact matching",
    min_pixels=1280 * 28 * 28,
    max_pixels=16384 * 28 * 28,
    max_new_tokens=2048,
    repetition_penalty=1.0,
)
LMMS_EVAL = Protocol(
    "lmms-eval", "lmms-eval 0.7.3, its settings for Qwen2.5-VL", min_pixels=256 * 28 * 28, max_pixels=1605632
)
PROTOCOLS = {protocol.name: protocol for protocol in (VLMEVALKIT, LMMS_EVAL)}

IMAGE_BUDGETS = ("protocol", "checkpoint")
"""Whose pixel limits hold where none are given."""

READABLE_SHARE = 0.95
"""Least share of readable answers for a number that may be compared, ours: a harness with a judge could read the others."""


def chosen_protocol(name: str) -> Protocol:
    """The protocol with this name.

    Raises:
        ValueError: If there is none; it lists those that exist.
    """
    if name not in PROTOCOLS:
        close = difflib.get_close_matches(str(name).lower(), PROTOCOLS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"protocol: expected one of {', '.join(PROTOCOLS)}, got {name!r}{hint}")
    return PROTOCOLS[name]
