"""What a recording starts from: a new `info.json`, or the episodes of the dataset it goes on with."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from syvla.processing.robot_data import lerobot_format as fmt

CARD = """---
task_categories:
- robotics
tags:
- LeRobot
configs:
- config_name: default
  data_files: data/*/*.parquet
---

# {name}

Robot demonstrations in the LeRobot v3.0 format: {episodes} episodes, {frames} frames when this card was written.
"""


def comparable(features: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {
        key: (feature["dtype"], list(feature["shape"]))
        for key, feature in features.items()
        if key not in fmt.LANGUAGE_COLUMNS
    }


def read_episode_rows(root: Path, total: int) -> list[dict[str, Any]]:
    if not total:
        return []
    paths = sorted(root.glob("meta/episodes/*/*.parquet"))
    rows = [row for path in paths for row in pq.read_table(path).to_pylist()]
    rows = [row for row in rows if row["episode_index"] < total]
    if [row["episode_index"] for row in rows] != list(range(total)):
        raise ValueError(f"{root}: meta/episodes holds {len(rows)} of the {total} episodes in info.json; restore it")
    return rows


def new_info(
    fps: int, features: Mapping[str, Mapping[str, Any]], robot_type: str | None, use_videos: bool | None
) -> dict[str, Any]:
    if (
        isinstance(fps, bool)
        or not isinstance(fps, int | float | np.number)
        or not (1 <= fps <= 10_000 and fps == int(fps))
    ):
        raise ValueError(f"fps: expected an integer from 1 to 10000, got {fps!r}")
    own: dict[str, dict[str, Any]] = {}
    for key, feature in features.items():
        if key in fmt.DEFAULT_FEATURES or key in fmt.LANGUAGE_COLUMNS:
            raise ValueError(f"features: {key!r} is added by the writer; leave it out")
        own[key] = {**feature, "shape": list(feature.get("shape", [])), "names": feature.get("names")}
        if feature.get("dtype") in fmt.IMAGE_DTYPES:
            if use_videos is not None:
                own[key]["dtype"] = "video" if use_videos else "image"
            if fmt.is_depth(feature) or 3 not in (own[key]["shape"][:1] + own[key]["shape"][-1:]):
                raise ValueError(f"features: {key!r} must be RGB of shape (H, W, 3), got {own[key]['shape']}")
    problems = fmt.feature_problems(own)
    if problems:
        raise fmt.DatasetError("features", problems)
    has_video = any(feature["dtype"] == "video" for feature in own.values())
    return {
        "codebase_version": fmt.CODEBASE_VERSION,
        "fps": int(fps),
        "features": {**own, **copy.deepcopy(fmt.DEFAULT_FEATURES)},
        "total_episodes": 0,
        "total_frames": 0,
        "total_tasks": 0,
        "chunks_size": fmt.CHUNKS_SIZE,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "data_path": fmt.DATA_PATH,
        "video_path": fmt.VIDEO_PATH if has_video else None,
        "robot_type": robot_type,
        "splits": {},
    }
