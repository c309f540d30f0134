"""What a recorded rollout looked like, for the page: pictures as data URLs, the thought in force, and who acted. No torch."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

from syvla.serving.contract.requests import RequestError
from syvla.serving.recording.format import INTERVENTION, PREFIX

from .progress import GUIDANCE_FOLDER, guidance_name

PLAYED_STEPS = 40
"""Observations in one answer; the page asks for the next ones. Ours."""


def last_frames(folder: Path, count: int) -> list[dict[str, str]]:
    """The last `count` observations of a rollout, view to data URL, oldest first."""
    dataset = _dataset(folder)
    return [_pictures(dataset, row) for row in range(int(dataset.episode_lengths[0]))[-count:]]


def played_frames(folder: Path, first: int) -> dict[str, Any]:
    """The observations of a rollout from number `first` on, at most `PLAYED_STEPS`.

    Returns:
        `count` of all, `fps`, and `frames`: of each its `views`, the `thought` in force, whether a person acted (`human`), and
        the number of the `decision` in force.

    Raises:
        RequestError: There are not so many.
    """
    dataset = _dataset(folder)
    count = int(dataset.episode_lengths[0])
    if not 0 <= first <= count:
        raise RequestError(f"first: expected 0 to {count}, got {first}")
    rows = range(first, min(first + PLAYED_STEPS, count))
    told = _columns(folder, dataset)
    frames = [{"views": _pictures(dataset, row), **told[row]} for row in rows]
    return {"count": count, "fps": dataset.fps, "frames": frames}


def read_guidance(run: Path, name: str) -> dict[str, Any]:
    """What the trainer has left of what guided an update: `update` and, per decision, value, advantage and expert samples.

    Raises:
        RequestError: No update has taken the rollout (404), or the file is damaged (500).
    """
    path = run / GUIDANCE_FOLDER / f"{guidance_name(name)}.json"
    if not path.is_file():
        raise RequestError(f"episode {name}: no update has taken it yet", status=404, cause="no_guidance")
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise RequestError(f"episode {name}: {path.name} is damaged", status=500, cause="disk") from None
    return found


def _columns(folder: Path, dataset: Any) -> list[dict[str, Any]]:
    """Whether a person acted, the thought in force and the decision's number, of every row. A person states no thought."""
    import pyarrow.parquet as pq

    names = [PREFIX + name for name in ("thought", "is_decision", "decision_index")]
    names += [INTERVENTION] if INTERVENTION in dataset.features else []
    table = pq.read_table(folder / dataset.metadata.data_path(0), columns=names).to_pylist()
    told: list[dict[str, Any]] = []
    thought = ""
    for row in table:
        human = bool(_single(row.get(INTERVENTION, False)))
        if _single(row[f"{PREFIX}is_decision"]):
            thought = row[f"{PREFIX}thought"] or ""
        decision = int(_single(row[f"{PREFIX}decision_index"]))
        told.append({"thought": "" if human else thought, "human": human, "decision": decision})
    return told


def _single(value: Any) -> Any:
    return value[0] if isinstance(value, list) else value


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
