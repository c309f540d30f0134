"""The LeRobot dataset format on disk: names, path templates, `meta/info.json`, column types, atomic files.

Formats v3.x as LeRobot 0.6 writes it, and v2.1 and v2.0 for reading: v2.0 differs only in its statistics, which are taken
from the data anyway. `info.json` is untrusted input: sizes are bounded, path templates may only name the fields that the
format has, and no path they give can leave the root.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from syvla.processing.lfs_pointers import reading_problem

CODEBASE_VERSION = "v3.0"
READ_VERSIONS = ("v3.0", "v3.1", "v2.1", "v2.0")  # and every other v3.x; the Hub's tags, in the order they are tried
INFO_PATH = "meta/info.json"
STATS_PATH = "meta/stats.json"
TASKS_PATH = "meta/tasks.parquet"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
CHUNKS_SIZE = 1000  # files per chunk folder
LANGUAGE_PERSISTENT = "language_persistent"
LANGUAGE_EVENTS = "language_events"
LANGUAGE_COLUMNS = (LANGUAGE_PERSISTENT, LANGUAGE_EVENTS)
IMAGE_DTYPES = ("image", "video")
DEFAULT_FEATURES: dict[str, dict[str, Any]] = {
    "timestamp": {"dtype": "float32", "shape": [1], "names": None},
    "frame_index": {"dtype": "int64", "shape": [1], "names": None},
    "episode_index": {"dtype": "int64", "shape": [1], "names": None},
    "index": {"dtype": "int64", "shape": [1], "names": None},
    "task_index": {"dtype": "int64", "shape": [1], "names": None},
}

_MAX_INFO_BYTES = 64 * 2**20
_MAX_FEATURE_SIZE = 2**26  # elements of one frame's value: a 4096 x 4096 RGB image fits
_PATH_FIELDS = {"chunk_index", "file_index", "video_key", "episode_chunk", "episode_index"}


class DatasetError(ValueError):
    """A dataset that cannot be used, with every problem found: `problems` is a list of messages, each with its fix."""

    def __init__(self, root: Path | str, problems: list[str]):
        self.problems = list(problems)
        lines = "\n".join(f"- {problem}" for problem in self.problems)
        super().__init__(f"{root}: {len(self.problems)} problem{'s' if len(self.problems) != 1 else ''}\n{lines}")


@dataclass(frozen=True)
class DatasetInfo:
    """The checked contents of `meta/info.json`; `raw` keeps every key as read."""

    codebase_version: str
    fps: float
    features: dict[str, dict[str, Any]]
    total_episodes: int
    total_frames: int
    chunks_size: int
    data_path: str
    video_path: str | None
    robot_type: str | None
    raw: dict[str, Any] = field(repr=False)

    @property
    def is_v3(self) -> bool:
        return self.codebase_version.startswith("v3.")

    @property
    def camera_keys(self) -> list[str]:
        """Features that hold color images or video; depth maps are not views."""
        return [key for key, value in self.features.items() if value["dtype"] in IMAGE_DTYPES and not is_depth(value)]


def read_info(root: Path) -> DatasetInfo:
    """Reads and checks `meta/info.json`.

    Raises:
        FileNotFoundError: There is none.
        DatasetError: Another version, or values out of range; lists them all.
    """
    path = root / INFO_PATH
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {root} holds no LeRobot dataset; pass the folder that has meta/")
    if path.stat().st_size > _MAX_INFO_BYTES:
        raise DatasetError(root, [f"{INFO_PATH}: {path.stat().st_size} bytes, expected at most {_MAX_INFO_BYTES}"])
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        why = reading_problem(path, f"not valid JSON ({error}); restore the file")
        raise DatasetError(root, [f"{INFO_PATH}: {why}"]) from error
    if not isinstance(raw, dict):
        raise DatasetError(root, [f"{INFO_PATH}: expected a JSON object, got {type(raw).__name__}"])
    version = str(raw.get("codebase_version"))
    if not (version in READ_VERSIONS or re.fullmatch(r"v3\.\d+", version)):
        raise DatasetError(
            root,
            [
                f"{INFO_PATH}: codebase_version is {version!r}, expected 'v3.x', 'v2.1' or 'v2.0'; convert the dataset with"
                " LeRobot's conversion scripts (lerobot.scripts.convert_dataset_v21_to_v30 and its predecessors)"
            ],
        )
    problems = [*_scalar_problems(raw), *feature_problems(raw.get("features"))]
    if raw.get("data_path") is not None or not version.startswith("v3."):
        problems += template_problems("data_path", raw.get("data_path"))
    if raw.get("video_path") is not None:
        problems += template_problems("video_path", raw["video_path"])
    if problems:
        raise DatasetError(root, problems)
    return DatasetInfo(
        codebase_version=version,
        fps=raw["fps"],
        features=raw["features"],
        total_episodes=raw["total_episodes"],
        total_frames=raw["total_frames"],
        chunks_size=raw.get("chunks_size", CHUNKS_SIZE),
        data_path=raw.get("data_path") or DATA_PATH,
        video_path=raw.get("video_path"),
        robot_type=raw.get("robot_type"),
        raw=raw,
    )


def _scalar_problems(raw: Mapping[str, Any]) -> list[str]:
    problems = []
    fps = raw.get("fps")
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps <= 10_000:
        problems.append(f"{INFO_PATH}: fps is {fps!r}, expected a number above 0 (frames per second); correct it")
    for key, low in (("total_episodes", 0), ("total_frames", 0), ("chunks_size", 1)):
        value = raw.get(key, CHUNKS_SIZE if key == "chunks_size" else None)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value < 2**40:
            problems.append(f"{INFO_PATH}: {key} is {value!r}, expected an integer of at least {low}; correct it")
    return problems


def feature_problems(features: Any) -> list[str]:
    if not isinstance(features, dict) or not features:
        return [f"{INFO_PATH}: features is {type(features).__name__}, expected a non-empty object; restore the file"]
    problems = []
    for key, feature in features.items():
        where = f"{INFO_PATH}: feature {key!r}"
        if not is_safe_path(key) or "/" in key:
            problems.append(f"{where}: the name may not be empty, contain '/' or '\\', or be '..'; rename it")
        if not isinstance(feature, dict) or not isinstance(feature.get("dtype"), str):
            problems.append(f"{where}: expected an object with dtype and shape, got {feature!r:.80}")
            continue
        for name in ("info", "video_info"):
            if not isinstance(feature.get(name) or {}, dict):
                problems.append(f"{where}: {name} is {feature[name]!r:.80}, expected an object or null")
        shape = feature.get("shape")
        if not isinstance(shape, list | tuple) or not all(type(size) is int and size > 0 for size in shape):
            problems.append(f"{where}: shape is {shape!r:.80}, expected a list of positive integers")
        elif len(shape) > 5 or int(np.prod([float(size) for size in shape])) > _MAX_FEATURE_SIZE:
            problems.append(f"{where}: shape {shape!r:.80} is too large, at most {_MAX_FEATURE_SIZE} values per frame")
        elif feature["dtype"] in IMAGE_DTYPES and len(shape) != 3:
            problems.append(f"{where}: shape is {shape}, expected [height, width, channels]")
    return problems


def template_problems(key: str, template: Any) -> list[str]:
    """Problems of a path template: it may hold the format's own fields only, and must stay inside the root."""
    where = f"{INFO_PATH}: {key} is {template!r:.120}"
    if not isinstance(template, str) or not template:
        return [f"{where}, expected a path template such as {DATA_PATH!r}"]
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        return [f"{where}: {error}"]
    for _, name, spec, conversion in parts:
        if name is not None and (name not in _PATH_FIELDS or conversion or not re.fullmatch(r"(0?\d?d)?", spec or "")):
            return [f"{where}: field {{{name}}} is not allowed; use {', '.join(sorted(_PATH_FIELDS))} with e.g. ':03d'"]
    if not is_safe_path("".join(text for text, *_ in parts) or "x") or ".." in PurePosixPath(template).parts:
        return [f"{where}: the path must be relative and stay inside the dataset (no '..'); correct it"]
    return []


def is_safe_path(path: str) -> bool:
    """Whether a relative POSIX path stays below its root: not empty, absolute, with a drive, a backslash or '..'."""
    parts = PurePosixPath(path).parts
    return (
        bool(parts)
        and not PurePosixPath(path).is_absolute()
        and not PureWindowsPath(path).drive
        and ".." not in parts
        and not any(character in path for character in "\\\0")
    )


def render_path(template: str, **fields: Any) -> str:
    """Fills a checked template; checks the result too, since a key is part of it (ValueError if it escapes)."""
    path = template.format(**fields)
    if not is_safe_path(path):
        raise ValueError(f"path {path!r} from template {template!r} leaves the dataset; correct {INFO_PATH}")
    return path


def next_file(chunk: int, file: int, chunks_size: int = CHUNKS_SIZE) -> tuple[int, int]:
    """The chunk and file index after these: file 0 of the next chunk once a chunk holds `chunks_size` files."""
    return (chunk + 1, 0) if file + 1 >= chunks_size else (chunk, file + 1)


def is_depth(feature: Mapping[str, Any]) -> bool:
    info = {**(feature.get("video_info") or {}), **(feature.get("info") or {})}
    return bool(info.get("is_depth_map") or info.get("video.is_depth_map"))


def image_size(feature: Mapping[str, Any]) -> tuple[int, int]:
    """(height, width) of an image feature, stored as (H, W, C) or, by its names or sizes, as (C, H, W)."""
    shape, names = list(feature["shape"]), feature.get("names")
    if isinstance(names, list) and len(names) == 3:
        channels_first = str(names[0]).startswith("channel")
    else:
        channels_first = shape[0] in (1, 3, 4) and shape[2] not in (1, 3, 4)
    return (shape[1], shape[2]) if channels_first else (shape[0], shape[1])


def dimension_names(feature: Mapping[str, Any]) -> list[str] | None:
    """Names of a vector's dimensions as a flat list; None where the dataset gives none, or not one per dimension.

    Known forms: `["a", "b"]`, `[["a", "b"]]` (Unitree), `{"motors": ["a", "b"]}`, and `{"a": 0, "b": 1}` with positions.
    """
    given, size = feature.get("names"), feature["shape"][0]
    if isinstance(given, dict) and sorted(map(str, given.values())) == sorted(map(str, range(size))):
        given = [name for name, _ in sorted(given.items(), key=lambda entry: int(entry[1]))]
    names = _flat_names(given)
    return names if len(names) == size else None


def _flat_names(names: Any) -> list[str]:
    if isinstance(names, dict):
        names = list(names.values())
    if isinstance(names, list | tuple):
        return [name for group in names for name in _flat_names(group)]
    return [] if names is None else [str(names)]


def huggingface_features(features: Mapping[str, Mapping[str, Any]]) -> Any:
    """`datasets.Features` of the data parquet files: what LeRobot derives from `info.json`. Videos have no column.

    Its `arrow_schema` carries the footer key `huggingface`.
    """
    import datasets

    columns: dict[str, Any] = {}
    for key, feature in features.items():
        dtype, shape = feature["dtype"], tuple(feature["shape"])
        if key in LANGUAGE_COLUMNS:
            row = {name: datasets.Value("string") for name in ("role", "content", "style")}
            if key == LANGUAGE_PERSISTENT:
                row["timestamp"] = datasets.Value("float32")
            columns[key] = datasets.List(
                {**row, "camera": datasets.Value("string"), "tool_calls": datasets.List(datasets.Json())}
            )
        elif dtype == "video":
            continue
        elif dtype == "image":
            columns[key] = datasets.Image()
        elif shape == (1,):
            columns[key] = datasets.Value(dtype)
        elif len(shape) == 1:
            columns[key] = datasets.Sequence(datasets.Value(dtype), length=shape[0])
        else:
            columns[key] = getattr(datasets, f"Array{len(shape)}D")(shape=shape, dtype=dtype)
    return datasets.Features(columns)
