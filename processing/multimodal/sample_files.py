"""Small local files in the published schemas of the paper's five multi-modal datasets, for demonstrations without downloads.

Each row asks about a picture of colored squares. Every file also holds a row that cannot be used.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

COLORS = {"red": (200, 40, 40), "green": (40, 170, 60), "blue": (50, 70, 200)}
SIDE = 48


def square_picture(seed: int) -> tuple[Image.Image, str, tuple[float, float]]:
    """A gray picture with one square; its color and its center in percent of width and height."""
    rng = np.random.default_rng(seed)
    pixels = np.full((SIDE, SIDE, 3), 150, np.uint8)
    color = list(COLORS)[int(rng.integers(len(COLORS)))]
    x, y = (int(v) for v in rng.integers(8, SIDE - 8, size=2))
    pixels[y - 5 : y + 5, x - 5 : x + 5] = COLORS[color]
    return Image.fromarray(pixels), color, (100 * x / SIDE, 100 * y / SIDE)


def write_samples(folder: str | Path, rows: int = 24) -> list[dict[str, Any]]:
    """Write the five files with their pictures.

    Args:
        folder: Created where it is missing.
        rows: Usable rows of each file.

    Returns:
        Entries of `multimodal_datasets`.
    """
    folder = Path(folder)
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    tables: dict[str, list[dict[str, Any]]] = {name: [] for name in _ROWS}
    for number in range(rows):
        picture, color, (x, y) = square_picture(number)
        data = io.BytesIO()
        picture.save(data, "PNG")
        digest = hashlib.sha256(data.getvalue()).hexdigest()
        for name in (f"{number:012d}.jpg", digest):
            (images / name).write_bytes(data.getvalue())
        facts = {"number": number, "color": color, "x": x, "y": y, "digest": digest}
        for name, make in _ROWS.items():
            tables[name].append(make(facts))
    broken = {"number": 999_999, "color": "red", "x": 1.0, "y": 1.0, "digest": "0" * 64}
    specs = []
    for name, make in _ROWS.items():
        lines = [json.dumps(row) for row in (*tables[name], make(broken))]
        path = folder / f"{name}.jsonl"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        specs.append({"path": str(path), "format": name, "images": str(images)})
    return specs


def _caption(facts: dict[str, Any]) -> dict[str, Any]:
    return {"image_id": facts["number"], "id": facts["number"], "caption": f"A {facts['color']} square on gray."}


def _question(facts: dict[str, Any]) -> dict[str, Any]:
    return {
        "image_id": facts["number"],
        "question_id": facts["number"],
        "question": "What color is the square?",
        "multiple_choice_answer": facts["color"],
    }


def _points(facts: dict[str, Any]) -> dict[str, Any]:
    return {
        "image_url": f"https://example.org/{facts['number']}.png",
        "image_sha256": facts["digest"],
        "points": [{"x": facts["x"], "y": facts["y"]}],
        "count": 1,
        "label": f"{facts['color']} square",
    }


def _explanation(facts: dict[str, Any]) -> dict[str, Any]:
    tag = f'<point x="{facts["x"]:.1f}" y="{facts["y"]:.1f}" alt="square">The square</point>'
    return {
        "image_url": f"https://example.org/{facts['number']}.png",
        "image_sha256": facts["digest"],
        "question": "Which thing stands out, and why?",
        "response": f"{tag} does, since it is {facts['color']} and everything else is gray.",
    }


def _conversation(facts: dict[str, Any]) -> dict[str, Any]:
    turns: Iterator[tuple[str, str]] = iter(
        [("human", "<image>\nIs the square red?"), ("gpt", "yes" if facts["color"] == "red" else "no")]
    )
    return {
        "image": f"{facts['number']:012d}.jpg",
        "conversations": [{"from": role, "value": text} for role, text in turns],
    }


_ROWS = {
    "coco_captions": _caption,
    "vqa_v2": _question,
    "pixmo_points": _points,
    "pixmo_point_explanations": _explanation,
    "cambrian": _conversation,
}
