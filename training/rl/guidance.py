"""What guided an update, for people: values, advantages, and the expert samples that retrieval found, with their pictures.

One JSON file per rollout in the run's folder, which the server's page `/rl` shows beside the rollout.
"""

from __future__ import annotations

import base64
import io
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from syvla.durable_files import make_folder, write_json
from syvla.serving.recording.decision import Rollout
from syvla.serving.rl.progress import GUIDANCE_FOLDER, guidance_name

from .expert_samples import ExpertSamples

logger = logging.getLogger(__name__)

SHOWN_EXPERTS = 3
"""Most similar expert samples per decision. Ours: they fill a row."""


def write_guidance(
    run: Path,
    update: int,
    rollouts: Sequence[Rollout],
    valued: Mapping[str, np.ndarray],
    positive: np.ndarray | None,
    neighbors: np.ndarray,
    similarities: np.ndarray | None,
    experts: ExpertSamples,
) -> None:
    """Writes the files of an update's rollouts. A full disk costs them, not the update.

    Args:
        run: Folder of the run.
        update: Its number.
        rollouts: Its rollouts. Decisions of which something ran are numbered throughout, D in all.
        valued: "value" and "advantage", (D,) each, those of them that the update asks for.
        positive: bool (D,), which advantages are positive; None where they are not labeled.
        neighbors: Rows of each decision's expert samples, the most similar first, (D, k).
        similarities: Their similarities, (D, k); None where samples are not retrieved, and then none are shown.
        experts: Where the rows are.
    """
    pictures: dict[int, dict[str, Any]] = {}
    number = 0
    try:
        make_folder(run / GUIDANCE_FOLDER)
        for rollout in rollouts:
            decisions: list[dict[str, Any] | None] = []
            for decision in rollout.decisions:
                if not decision.valid.any():
                    decisions.append(None)
                    continue
                found = []
                for rank in range(0 if similarities is None else min(SHOWN_EXPERTS, neighbors.shape[1])):
                    row, score = int(neighbors[number, rank]), float(similarities[number, rank])  # type: ignore[index]
                    if row >= 0 and math.isfinite(score):
                        if row not in pictures:
                            pictures[row] = _expert(experts, row)
                        found.append({**pictures[row], "similarity": round(score, 4)})
                judged: dict[str, Any] = {name: round(float(own[number]), 4) for name, own in valued.items()}
                if positive is not None:
                    judged["label"] = "positive" if positive[number] else "negative"
                decisions.append({"control_step": decision.control_step, **judged, "experts": found})
                number += 1
            facts = {"update": update, "decisions": decisions}
            write_json(run / GUIDANCE_FOLDER / f"{guidance_name(rollout.facts.episode_id)}.json", facts)
    except OSError as error:
        logger.warning("update %d: what guided it cannot be shown: %s", update, error)


def _expert(experts: ExpertSamples, row: int) -> dict[str, Any]:
    """Where an expert sample is from, and its first view as a JPEG data URL."""
    dataset, frame = experts.locate(row)
    view = next(iter(dataset.cameras))
    stream = io.BytesIO()
    Image.fromarray(dataset.read_image(view, frame)).save(stream, "JPEG", quality=85)
    picture = "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
    place = int(np.searchsorted(dataset.episode_starts, frame, side="right")) - 1
    return {
        "dataset": Path(dataset.root).name,
        "episode": int(dataset.episodes[place]),
        "frame": frame - int(dataset.episode_starts[place]),
        "view": view,
        "picture": picture,
    }
