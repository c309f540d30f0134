"""How VLMEvalKit reads answers: option letters, yes and no, and short texts; what cannot be read is wrong.

Written from its published behavior and checked against it case by case (tests/evaluation/vlm_benchmarks). Its oddities
are kept on purpose: a number is comparable only if the readings agree on the strange answers too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal

_OPTION_SEPARATORS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_ANSWER_IS = re.compile(r"(?:correct\s+)?answer\s+is\s+\**([ABCD])\**", re.IGNORECASE)
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_API_FAILURE = "Failed to obtain answer via API"
NO_OPTION = "Z"
"""What is read out of a refusal: no option, hence wrong."""

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA = re.compile(r"\d,\d")
_LONE_PERIOD = re.compile(r"(?<!\d)\.(?!\d)")
_PERIODS_REMOVED = 32  # the value of `re.UNICODE`, which VLMEvalKit passes where `re.sub` expects a count


def read_option(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter of the option that an answer chooses, `NO_OPTION` for a refusal, None where it cannot be read.

    A letter counts as a word of its own among the last four words, if no other option's letter occurs. Else "answer is
    B" counts. Else the text of exactly one option must occur in the answer, which must not be much longer than the options.

    Args:
        answer: What the model said.
        options: Text of each option by its letter.
    """
    letter = _option_letter(answer, options)
    return letter if letter is not None else _option_text(answer, options)


def _option_letter(answer: str, options: Mapping[str, str]) -> str | None:
    if _API_FAILURE in answer:
        return None
    if any(refusal in answer for refusal in _REFUSALS):
        return NO_OPTION
    words = answer.translate(_OPTION_SEPARATORS).split()
    named = [letter for letter in options if letter in words]
    if len(named) == 1 and words.index(named[0]) > len(words) - 5:
        return named[0]
    if not named and NO_OPTION in words:
        return NO_OPTION
    said = _ANSWER_IS.search(answer)
    if said and said[1].upper() in options:
        return said[1].upper()
    return None


def _option_text(answer: str, options: Mapping[str, str]) -> str | None:
    texts = {letter: str(text).lower() for letter, text in options.items()}
    if len(answer.lower()) > 2 * sum(len(str(text)) for text in options.values()):
        return None
    named = [letter for letter, text in texts.items() if text in answer.lower()]
    return named[0] if len(named) == 1 else None


def read_yes_no(answer: str) -> Literal["Yes", "No"] | None:
    """ "Yes" or "No" if exactly one of the words occurs, else None. Asterisks and colons belong to words: "**Yes**" is none."""
    words = _without_punctuation(answer.lower()).split()
    if ("yes" in words) == ("no" in words):
        return None
    return "Yes" if "yes" in words else "No"


def _without_punctuation(text: str) -> str:
    """Punctuation beside a space vanishes and other punctuation becomes a space; with "1,000" anywhere all of it vanishes."""
    result = text
    digits = _DIGIT_COMMA.search(text) is not None
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if beside_space or digits else " ")
    return _LONE_PERIOD.sub("", result, count=_PERIODS_REMOVED)


def anls(answer: str, truths: Sequence[str]) -> float:
    """Average normalized Levenshtein similarity of one answer (Biten et al. 2019): 0 below one half.

    Distances are of lower-case texts with single spaces; lengths are those of the texts as they came.
    """
    distances = [_normalized_distance(answer, truth) for truth in truths]
    similarity = 1.0 - min(distances)
    return similarity if similarity >= 0.5 else 0.0


def _normalized_distance(answer: str, truth: str) -> float:
    length = max(len(truth.upper()), len(answer.upper()))
    if length == 0:
        return 0.0
    return _edit_distance(" ".join(truth.lower().split()), " ".join(answer.lower().split())) / length


def _edit_distance(first: str, second: str) -> int:
    row = list(range(len(first) + 1))
    for i, letter in enumerate(second, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(first, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (letter != other))
    return row[-1]
