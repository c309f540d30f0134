"""Whether an answer says yes or no: by whole words, unlike a search for letters, for which "eyes" is a yes."""

from __future__ import annotations

import re
from typing import Literal

Verdict = Literal["correct", "incorrect", "unclear"]


def yes_or_no(answer: str) -> Literal["yes", "no"] | None:
    """ "yes" or "no" when exactly one of the two words occurs, else None (so VLMEvalKit reads answers as well)."""
    words = set(re.findall(r"[^\W_]+", answer.lower()))
    if ("yes" in words) == ("no" in words):
        return None
    return "yes" if "yes" in words else "no"


def rule_verdict(answer: str, truth: str | int) -> Verdict:
    """Verdict on an answer to a HallusionBench question.

    Args:
        answer: What the model said.
        truth: The row's `gt_answer`, 1 for yes and 0 for no, as text or number.
    """
    said = yes_or_no(answer)
    if said is None:
        return "unclear"
    return "correct" if said == ("yes" if str(truth) == "1" else "no") else "incorrect"
