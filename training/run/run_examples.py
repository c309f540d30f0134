"""Rows of a run's data as the model sees them, for the page of the run."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from .run_page import Example

EDGE = 256  # pixels of a picture's longer side on the page
LONGEST_TEXT = 1500  # characters
MOST_DATASETS = 6


def examples_of(dataset: Any, names: Sequence[str], processor: Any, per_dataset: int = 1) -> list[Example]:
    """Rows from the middle of each dataset, with the first pass's augmentation.

    Args:
        dataset: A [`MixtureDataset`].
        names: A name for each of its datasets.
        processor: The [`SyVLAProcessor`].
        per_dataset: Rows of each.
    """
    found = []
    for source, (name, member) in enumerate(zip(names[:MOST_DATASETS], dataset.datasets, strict=False)):
        for number in range(per_dataset):
            position = (2 * number + 1) * len(member) // (2 * per_dataset)
            if source < len(dataset.robot_datasets):
                item = dataset[source, position, 0]
            elif getattr(member, "is_stream", False):
                continue  # looking at a row would take it out of the stream
            else:
                item = member.read_row(position)
            found.append(_example(name, item, processor))
    return found


def _example(name: str, item: dict[str, Any], processor: Any) -> Example:
    batch = processor.collate([item])
    ids, labels = batch["input_ids"][0], batch.get("labels")
    tokenizer = processor.tokenizer
    text = re.sub(r"(<\|[a-z_]+\|>)\1+", r"\1…", tokenizer.decode(ids))
    facts = {}
    if labels is not None and bool((labels[0] != -100).any()):
        facts["trained to say"] = tokenizer.decode(labels[0][labels[0] != -100])[:LONGEST_TEXT]
    if "messages" in item:
        images = [(f"image {number}", image) for number, image in enumerate(item["images"], start=1)]
        return Example(name, list(_jpegs(images)), text[:LONGEST_TEXT], facts)
    entry = processor.embodiments.get(item["embodiment"], {})
    facts["state"] = _vector(item["state"], entry.get("state_names"))
    facts["first action"] = _vector(np.asarray(item["actions"])[0], entry.get("action_names"))
    where = f"{name}: episode {item['episode_index']}, frame {item['frame_index']}" if "frame_index" in item else name
    return Example(where, list(_jpegs(item["images"].items())), text[:LONGEST_TEXT], facts)


def _jpegs(images: Any) -> Iterator[tuple[str, bytes]]:
    for name, value in images:
        image = value if isinstance(value, Image.Image) else Image.fromarray(np.asarray(value))
        image = image.convert("RGB")
        image.thumbnail((EDGE, EDGE))
        buffer = io.BytesIO()
        image.save(buffer, format="JPEG", quality=80)
        yield str(name), buffer.getvalue()


def _vector(values: Any, names: Sequence[str] | None) -> str:
    numbers = [f"{value:.4g}" for value in np.asarray(values, dtype=float).tolist()]
    return ", ".join(
        numbers if not names else (f"{name} {number}" for name, number in zip(names, numbers, strict=False))
    )
