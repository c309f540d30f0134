"""Rows of the paper's five multi-modal datasets, and of chats, to one chat format (paper, appendix A).

Each adapter turns a row of the published schema into `{"messages": [...], "images": [...]}`. Points become absolute pixels
of the image as the VLM sees it, after resizing: the convention of Qwen2.5-VL, `[{"point_2d": [x, y], "label": ...}]`.
The datasets' own points are percent of width and height, whatever their card says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .sources import BrokenRow, ImageFolder, read_image

ResizedSize = Callable[[int, int], tuple[int, int]]
"""(height, width) of an image to those that the VLM's image processor resizes it to."""

SHORT_ANSWER = "\nAnswer the question using a single word or phrase."
"""What the field asks VQA questions with; the benchmarks use it as well."""

MAX_POINTS = 40
"""Ours: longer lists take most of a sequence; rows with more are skipped and counted."""

POINT_MARK = "<|POINT|>"
_POINT_TAG = re.compile(r"<points?\s+([^>]*?)>(.*?)</points?>", re.DOTALL)
_ATTRIBUTE = re.compile(r"([a-z]+\d*)\s*=\s*\"([^\"]*)\"")


class MissingSizeError(ValueError):
    """The dataset was opened without the size that its points need; nothing is wrong with its rows."""


@dataclass(frozen=True)
class AdapterContext:
    """What adapters need besides the row.

    Attributes:
        images: Folder of the images that rows refer to.
        resized_size: See `ResizedSize`; None where no adapter needs it.
        side: Function from a row to the row of a second file that belongs to it; None without one.
    """

    images: ImageFolder
    resized_size: ResizedSize | None = None
    side: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None


Adapter = Callable[[Mapping[str, Any], AdapterContext], dict[str, Any]]


def chats(row: Mapping[str, Any], context: AdapterContext) -> dict[str, Any]:
    """Columns `messages` and `images`: any dataset in the OpenAI/`transformers` chat form."""
    try:
        messages = [_message(message) for message in row["messages"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise BrokenRow("malformed", f"messages: {error}") from error
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    if not answers or not all(map(_text_of, answers)):
        raise BrokenRow("empty answer", "messages: an assistant turn is missing or empty")
    return {"messages": messages, "images": [read_image(image, context.images) for image in row["images"] or []]}


def coco_captions(row: Mapping[str, Any], context: AdapterContext) -> dict[str, Any]:
    """COCO 2017 captions: annotations `{image_id, id, caption}` of the official JSON with its image folder, or rows with
    `image` and `captions` (or `caption`), of which the first that is not empty is taken."""
    captions = row.get("captions") or row.get("sentences_raw") or row.get("caption")
    caption = next((text for text in _texts(captions) if text.strip()), "")
    if "image" in row:
        image = read_image(row["image"], context.images)
    elif row.get("file_name"):
        image = context.images.open(str(row["file_name"]))
    else:
        image = context.images.open(*_coco_names(row))
    return _exchange(image, "Describe the image in one sentence.", caption)


def vqa_v2(row: Mapping[str, Any], context: AdapterContext) -> dict[str, Any]:
    """VQA-v2: questions of the official JSON joined with its annotations, or rows that hold question, answer and image."""
    if context.side is not None and "multiple_choice_answer" not in row:
        row = {**context.side(row), **row}
    answer = row.get("multiple_choice_answer")
    if answer is None and row.get("answers"):
        given = [entry["answer"] if isinstance(entry, Mapping) else entry for entry in row["answers"]]
        answer = max(given, key=given.count)
    if not row.get("question"):
        raise BrokenRow("malformed", "question: missing or empty")
    if "image" in row:
        image = read_image(row["image"], context.images)
    else:
        image = context.images.open(*_coco_names(row))
    return _exchange(image, str(row["question"]).strip() + SHORT_ANSWER, str(answer or ""))


def pixmo_points(row: Mapping[str, Any], context: AdapterContext) -> dict[str, Any]:
    """PixMo-Points: `{image_url, image_sha256, points: [{x, y}], count, label}`; images by SHA-256 or in `image`.

    A row without points is valid only if its count is 0.
    """
    label = str(row.get("label") or "").strip()
    if not label:
        raise BrokenRow("malformed", "label: missing or empty")
    points, count = row["points"] or [], row.get("count")
    if count is None and row["points"] is None:
        raise BrokenRow("malformed", "points: missing, and no count says that there are none")
    if count is not None and count != len(points):
        raise BrokenRow("malformed", f"points: {len(points)}, but count says {count}")
    image = _hashed_image(row, context)
    if not points:
        return _exchange(image, f"Point to every {label}.", f"There is no {label} in the image.")
    if len(points) > MAX_POINTS:
        raise BrokenRow("too many points", f"points: {len(points)}, more than {MAX_POINTS}")
    found = [{"point_2d": _pixels(point, image, context), "label": label} for point in points]
    return _exchange(image, f"Point to every {label}.", json.dumps(found, ensure_ascii=False))


def pixmo_point_explanations(row: Mapping[str, Any], context: AdapterContext) -> dict[str, Any]:
    """PixMo-Point-Explanations: an answer in which phrases are followed by the points that they refer to.

    Takes `parsed_response` with its marks and lists `inline_text`, `points` where they agree, else the tags in `response`.
    """
    question = str(row.get("question") or "").strip()
    if not question:
        raise BrokenRow("malformed", "question: missing or empty")
    image = _hashed_image(row, context)

    def render(text: str, points: Sequence[Mapping[str, float]]) -> str:
        if len(points) > MAX_POINTS:
            raise BrokenRow("too many points", f"points: {len(points)}, more than {MAX_POINTS}")
        places = ", ".join(json.dumps(_pixels(point, image, context)) for point in points)
        return f"{text.strip()} ({places})" if places else text.strip()

    parsed, lists = row.get("parsed_response"), (row.get("inline_text") or [], row.get("points") or [])
    if parsed and parsed.count(POINT_MARK) == len(lists[0]) == len(lists[1]) > 0:
        parts = parsed.split(POINT_MARK)
        marks = [render(text or "", points or []) for text, points in zip(*lists, strict=True)]
        answer = "".join(part + mark for part, mark in zip(parts, [*marks, ""], strict=True))
    else:
        answer = _POINT_TAG.sub(lambda tag: render(tag[2], _tag_points(tag[1])), str(row.get("response") or ""))
    return _exchange(image, question, answer)


def cambrian(row: Mapping[str, Any], context: AdapterContext) -> dict[str, Any]:
    """Cambrian: `{image, conversations: [{from: human | gpt, value}]}`; `<image>` stands where the image belongs."""
    roles = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
    messages: list[dict[str, Any]] = []
    for turn in row.get("conversations") or []:
        role, text = roles.get(str(turn.get("from"))), str(turn.get("value") or "")
        if role is None or (messages and messages[-1]["role"] == role):
            raise BrokenRow("malformed", f"conversations: unexpected turn of {turn.get('from')!r}")
        if role == "assistant" and not text.strip():
            raise BrokenRow("empty answer", "conversations: an answer is empty")
        messages.append({"role": role, "content": text if role != "user" else _image_parts(text)})
    if not messages or messages[-1]["role"] != "assistant":
        raise BrokenRow("empty answer", "conversations: there is no answer")
    names = row.get("image")
    names = [] if names is None else names if isinstance(names, list) else [names]
    images = [read_image(name, context.images) for name in names]
    users = [message for message in messages if message["role"] == "user"]
    marks = sum(part["type"] == "image" for message in users for part in message["content"])
    if images and not marks:
        users[0]["content"][:0] = [{"type": "image"} for _ in images]
    elif marks != len(images):
        raise BrokenRow("missing image", f"conversations: {marks} image marks, {len(images)} images")
    return {"messages": messages, "images": images}


ADAPTERS: dict[str, Adapter] = {
    "messages": chats,
    "coco_captions": coco_captions,
    "vqa_v2": vqa_v2,
    "pixmo_points": pixmo_points,
    "pixmo_point_explanations": pixmo_point_explanations,
    "cambrian": cambrian,
}
"""Adapters by the name that a recipe gives as `format`."""

COLUMNS = {
    "messages": ("messages", "images"),
    "coco_captions": (),
    "vqa_v2": ("question",),
    "pixmo_points": ("points", "label"),
    "pixmo_point_explanations": ("question",),
    "cambrian": ("conversations",),
}
"""Columns that each format cannot do without."""


def _exchange(image: Any, question: str, answer: str) -> dict[str, Any]:
    if not answer.strip():
        raise BrokenRow("empty answer", "the answer is empty")
    content = [{"type": "image"}, {"type": "text", "text": question}]
    return {
        "messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answer.strip()}],
        "images": [image],
    }


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """Drop the empty fields that columnar storage adds to content parts."""
    content = message["content"]
    if isinstance(
        content, bool | int | float
    ):  # `datasets` reads "3" as 3 where some turns are texts and some are lists
        content = json.dumps(content)
    if not isinstance(content, str):
        content = [{key: value for key, value in part.items() if value is not None} for part in content]
    return {"role": message["role"], "content": content}


def _text_of(content: Any) -> str:
    parts = [content] if isinstance(content, str) else [str(part.get("text") or "") for part in content]
    return "".join(parts).strip()


def _texts(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [str(entry) for entry in value or []]


def _image_parts(text: str) -> list[dict[str, str]]:
    parts: list[dict[str, str]] = []
    for position, piece in enumerate(text.split("<image>")):
        if position:
            parts.append({"type": "image"})
        if piece.strip():
            parts.append({"type": "text", "text": piece.strip("\n")})
    return parts


def _coco_names(row: Mapping[str, Any]) -> list[str]:
    """Names that COCO gives an image: of 2017, and of 2014 in its training and validation parts."""
    if row.get("image_id") is None:
        raise BrokenRow("missing image", "image_id: missing")
    number = f"{int(row['image_id']):012d}.jpg"
    return [number, f"COCO_train2014_{number}", f"COCO_val2014_{number}"]


def _hashed_image(row: Mapping[str, Any], context: AdapterContext) -> Any:
    if row.get("image") is not None:
        return read_image(row["image"], context.images)
    if not row.get("image_sha256"):
        raise BrokenRow("missing image", "image_sha256: missing")
    return context.images.open(str(row["image_sha256"]))


def _pixels(point: Mapping[str, float], image: Any, context: AdapterContext) -> list[int]:
    """[x, y] in pixels of the resized image, of a point in percent."""
    if context.resized_size is None:
        raise MissingSizeError(
            "resized_size: points need the size that the VLM resizes images to; pass the processor's"
        )
    if not (0 <= point["x"] <= 100 and 0 <= point["y"] <= 100):
        raise BrokenRow("malformed", f"points: expected percent of width and height, got {dict(point)}")
    height, width = context.resized_size(image.height, image.width)
    return [min(width - 1, round(point["x"] / 100 * width)), min(height - 1, round(point["y"] / 100 * height))]


def _tag_points(attributes: str) -> list[dict[str, float]]:
    values = dict(_ATTRIBUTE.findall(attributes))
    try:
        numbers = sorted({key[1:] for key in values if re.fullmatch(r"x\d*", key)}, key=lambda key: int(key or 0))
        return [{"x": float(values[f"x{n}"]), "y": float(values[f"y{n}"])} for n in numbers]
    except (KeyError, ValueError) as error:
        raise BrokenRow("malformed", f"response: unreadable point tag ({attributes})") from error
