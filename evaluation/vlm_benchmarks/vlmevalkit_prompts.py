"""VLMEvalKit's prompts for the five benchmarks, as it asks Qwen2.5-VL: the datasets' own words, none of the model's."""

from __future__ import annotations

import ast
import re
import string
from collections.abc import Callable
from typing import Any

Row = dict[str, Any]
Content = list[dict[str, Any]]

_IMAGE_MARK = re.compile(r"<image (\d)>")


def question_content(name: str, row: Row) -> Content:
    """Content parts of the question in a row of benchmark `name`: `{"type": "image", "image": ...}` and texts.

    Raises:
        KeyError: If the question names an image that the row's columns do not have.
    """
    return _CONTENT[name](row)


def options_of(name: str, row: Row) -> dict[str, str]:
    """The options of a multiple-choice row by letter; none where the question is open."""
    options = ast.literal_eval(row["options"]) if name == "mmmu" else row["options"]
    return dict(zip(string.ascii_uppercase, map(str, options), strict=False))


def placed_images(text: str, row: Row) -> Content:
    """Text with `<image k>` marks as parts, each mark replaced by the image of its own number, however often it is named."""
    pieces = _IMAGE_MARK.split(text)
    content: Content = [{"type": "text", "text": pieces[0]}]
    for number, following in zip(pieces[1::2], pieces[2::2], strict=True):
        content.append({"type": "image", "image": row[f"image_{number}"]})
        content.append({"type": "text", "text": following})
    return [part for part in content if part["type"] == "image" or part["text"]]


def _image_then(row: Row, text: str) -> Content:
    return [{"type": "image", "image": row["image"]}, {"type": "text", "text": text}]


def _multiple_choice(question: str, options: dict[str, str]) -> str:
    text = f"Question: {question}\n"
    if options:
        text += "Options:\n" + "".join(f"{letter}. {option}\n" for letter, option in options.items())
        text += "Please select the correct answer from the options above. \n"
    return text


def _mmmu(row: Row) -> Content:
    options = options_of("mmmu", row) if row["question_type"] == "multiple-choice" else {}
    return placed_images(_multiple_choice(row["question"], options), row)


_CONTENT: dict[str, Callable[[Row], Content]] = {
    "docvqa": lambda row: _image_then(row, row["question"] + "\nAnswer the question using a single word or phrase."),
    "ai2d": lambda row: _image_then(row, _multiple_choice(row["question"], options_of("ai2d", row))),
    "mmmu": _mmmu,
    # MME's questions end with " Please answer yes or no." of their own; HallusionBench's are asked as they are.
    "mme": lambda row: _image_then(row, row["question"]),
    "hallusionbench": lambda row: _image_then(row, row["question"]),
}
