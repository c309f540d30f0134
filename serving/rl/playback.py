"""What a recorded rollout looked like, for the page: pictures as data URLs, the thought in force, and who acted. No torch."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

from syvla.serving.contract.requests import RequestError
from syvla.serving.recording.format import INTERVENTION, PREFIX

PLAYED_STEPS = 40
"""Observations in one answer; the page asks for the next ones. Ours."""


def last_frames(folder: Path, count: int) -> list[dict[str, str]]:
    """The last `count` observations of a rollout, view to data URL, oldest first."""
    dataset = _dataset(folder)
    return [_pictures(dataset, row) for row in range(int(dataset.episode_lengths[0]))[-count:]]


def played_frames(folder: Path, first: int) -> dict[str, Any]:
    """The observations of a rollout from number `first` on, at most `PLAYED_STEPS`.

    Returns:
        `count` of all, `fps`, and `frames`: of each its `views`, the `thought` in force, and whether a person acted (`human`).

    Raises:
        RequestError: There are not so many.
    """
    dataset = _dataset(folder)
    count = int(dataset.episode_lengths[0])
    if not 0 <= first <= count:
        raise RequestError(f"first: expected 0 to {count}, got {first}")
    rows = range(first, min(first + PLAYED_STEPS, count))
    human, thoughts = _columns(folder, dataset)
    frames = [{"views": _pictures(dataset, row), "thought": thoughts[row], "human": human[row]} for row in rows]
    return {"count": count, "fps": dataset.fps, "frames": frames}


def _columns(folder: Path, dataset: Any) -> tuple[list[bool], list[str]]:
    """Whether a person acted, and the thought in force, of every row. A person states none."""
    import pyarrow.parquet as pq

    names = [f"{PREFIX}thought", f"{PREFIX}is_decision", *([INTERVENTION] if INTERVENTION in dataset.features else [])]
    table = pq.read_table(folder / dataset.metadata.data_path(0), columns=names).to_pylist()
    human = [_flag(row.get(INTERVENTION, False)) for row in table]
    thoughts: list[str] = []
    for row, acts in zip(table, human, strict=True):
        decided = row[f"{PREFIX}thought"] or "" if _flag(row[f"{PREFIX}is_decision"]) else None
        thoughts.append("" if acts else decided if decided is not None else thoughts[-1] if thoughts else "")
    return human, thoughts


def _flag(value: Any) -> bool:
    return bool(value[0] if isinstance(value, list) else value)


def _dataset(folder: Path) -> Any:
    from syvla.processing import RobotDataset

    return RobotDataset(folder, embodiment="")


def _pictures(dataset: Any, row: int) -> dict[str, str]:
    """View to a JPEG as data URL."""
    from PIL import Image

    pictures = {}
    for view in dataset.cameras:
        stream = io.BytesIO()
        Image.fromarray(dataset.read_image(view, row)).save(stream, "JPEG", quality=90)
        pictures[view] = "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
    return pictures
