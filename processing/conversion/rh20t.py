"""RH20T: a folder per scene, as its authors publish it (full size or `resized`).

A scene `task_0001_user_0001_scene_0001_cfg_0003` holds per camera `cam_SERIAL/color.mp4` with `timestamps.npy` (or extracted
pictures `cam_SERIAL/color/TIME.jpg`), and in `transformed/` what the authors aligned: `tcp_base.npy` (m, quaternion w x y z,
robot base), `joint.npy`, `gripper.npy` (mm) and `force_torque_base.npy` (N, Nm). Times are milliseconds; every camera has its
own. A scene is laid on a grid of `rate` steps per second; every stream gives the value nearest in time, and none is farther
away than `max_skew_ms`: a larger gap is a jump of the clock. Seven robots ("configurations") have cameras and joints of their
own; one conversion is of one configuration. Folders that end in `_human` show a person and hold no robot.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .images import MAX_PIXELS, decode_image
from .mapping import presets
from .restricted_pickle import as_array, load_object
from .source import MAX_FRAMES, CameraFrames, EpisodeReference, SourceEpisode, SourceError

_SCENE = re.compile(r"(?P<task>task_\d+)_user_\d+_scene_\d+_cfg_(?P<configuration>\d+)(?P<human>_human)?")
_PICTURES = (".jpg", ".jpeg", ".png")
_MAX_JSON_BYTES = 16 * 2**20
_DESCRIPTIONS = "task_description.json"


@dataclass(frozen=True)
class Rh20tSource:
    """A folder of scenes of one configuration.

    Attributes:
        root: Folder of the scenes, or one above them.
        rate: Steps per second of the grid.
        max_skew_ms: Largest distance in time between a step and what is taken for it.
        configuration: Take the scenes of this robot alone; None: there must be one.
        cameras: Folders of the cameras that must be there, such as "cam_038522062288"; None takes all that a scene has.
    """

    root: Path
    rate: float = 10.0
    max_skew_ms: float = 100.0
    configuration: int | None = None
    cameras: Sequence[str] | None = None
    format: str = "rh20t"

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1000 or not 0 < self.max_skew_ms <= 10_000:
            raise SourceError(f"options: rate {self.rate} and max_skew_ms {self.max_skew_ms} must be above 0")

    def episodes(self) -> list[EpisodeReference]:
        scenes = sorted(path for path in (*self.root.glob("*"), *self.root.glob("*/*"), self.root) if path.is_dir())
        found = []
        for path in scenes:
            match = _SCENE.fullmatch(path.name)
            if match and not match["human"] and self.configuration in (None, int(match["configuration"])):
                name = path.name if path == self.root else path.relative_to(self.root).as_posix()
                found.append(EpisodeReference(name, path, match["task"]))
        if not found:
            raise SourceError(
                f"{self.root}: no folders task_*_user_*_scene_*_cfg_*; pass the folder that holds the scenes"
            )
        numbers = _configurations(found)
        if len(numbers) > 1:
            raise SourceError(
                f"{self.root}: scenes of configurations {numbers}, which are different robots; convert each on its own, with"
                " --preset rh20t_cfgN, or options: {configuration: N} in the mapping"
            )
        return found

    @contextmanager
    def open(self, reference: EpisodeReference) -> Iterator[SourceEpisode]:
        folder = reference.path
        streams = {key: (times, values) for key, times, values in _vectors(folder / "transformed")}
        cameras = {name: _camera_times(folder / name) for name in self._camera_folders(folder)}
        times = {**{key: stream[0] for key, stream in streams.items()}, **cameras}
        start, stop = max(t[0] for t in times.values()), min(t[-1] for t in times.values())
        if stop <= start or (stop - start) / 1000 * self.rate > MAX_FRAMES:
            spans = {key: [float(t[0]), float(t[-1])] for key, t in times.items()}
            raise SourceError(f"the streams have no time in common: {spans}")
        grid = start + np.arange(int((stop - start) / 1000 * self.rate) + 1) * 1000 / self.rate
        vectors = {key: stream[1][nearest(key, stream[0], grid, self.max_skew_ms)] for key, stream in streams.items()}
        vectors["time"] = grid[:, None]
        frames = {
            name: _frames(folder / name, len(own), nearest(name, own, grid, self.max_skew_ms))
            for name, own in cameras.items()
        }
        yield SourceEpisode(vectors, frames, _texts(self.root, folder, reference.part))

    def preset(self) -> str | None:
        """`rh20t_cfgN` for scenes of one configuration."""
        references = self.episodes()
        name = f"rh20t_cfg{_configurations(references)[0]}"
        return name if name in presets() else None

    def _camera_folders(self, folder: Path) -> list[str]:
        there = sorted(path.name for path in folder.glob("cam_*") if path.is_dir())
        wanted = list(self.cameras) if self.cameras is not None else there
        if missing := [name for name in wanted if name not in there]:
            raise SourceError(f"cameras {missing} are missing; the scene has {there or 'no camera'}")
        if not wanted:
            raise SourceError("the scene has no camera")
        return wanted


def nearest(name: str, times: np.ndarray, grid: np.ndarray, tolerance: float) -> np.ndarray:
    """Index of the entry nearest to each step of the grid; all in milliseconds, both ascending.

    Raises:
        SourceError: The nearest one of a step is farther away than the tolerance.
    """
    after = np.clip(np.searchsorted(times, grid), 1, max(len(times) - 1, 1))
    after = np.minimum(after, len(times) - 1)
    before = np.maximum(after - 1, 0)
    index: np.ndarray = np.where(np.abs(times[before] - grid) <= np.abs(times[after] - grid), before, after)
    skew = np.abs(times[index] - grid)
    if skew.max() > tolerance:
        worst = int(skew.argmax())
        raise SourceError(
            f"{name}: the clock jumps: {skew[worst]:.0f} ms without a value at step {worst} ({grid[worst]:.0f} ms), expected"
            f" at most {tolerance:g} (max_skew_ms)"
        )
    return index


def _configurations(references: Sequence[EpisodeReference]) -> list[int]:
    matches = [_SCENE.fullmatch(reference.path.name) for reference in references]
    return sorted({int(match["configuration"]) for match in matches if match})


def _vectors(folder: Path) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(key, times in ms, values (n, D)) of every kind of recording, of all cameras together in the order of time."""
    tcp = _entries(folder / "tcp_base.npy", required=True)
    yield _stream("tcp_base", [(_time(e.get("timestamp")), e.get("tcp")) for e in tcp])
    joints = _entries(folder / "joint.npy", required=True)
    yield _stream("joint", [(_time(e["timestamp"]), e["value"]) for e in joints])
    gripper = _entries(folder / "gripper.npy", required=True)
    for key in ("gripper_command", "gripper_info"):
        values = [(_time(e["timestamp"]), e["value"].get(key)) for e in gripper if isinstance(e["value"], dict)]
        yield _stream(key, values)
    force = _entries(folder / "force_torque_base.npy", required=False)
    if force:
        yield _stream("force_torque_base", [(_time(e.get("timestamp")), e.get("zeroed")) for e in force])


def _entries(path: Path, required: bool) -> list[dict[Any, Any]]:
    """The recordings of all cameras: lists of dictionaries with "timestamp", or dictionaries by time ("value")."""
    if not path.is_file():
        if required:
            raise SourceError(f"transformed/{path.name} is missing; the scene is incomplete")
        return []
    content = load_object(path)
    if not isinstance(content, dict):
        raise SourceError(f"transformed/{path.name}: expected a dictionary by camera, got {type(content).__name__}")
    found: list[dict[Any, Any]] = []
    for entries in content.values():
        if isinstance(entries, dict):
            found += [{"timestamp": time, "value": value} for time, value in entries.items()]
        elif isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries):
            found += entries
        else:
            raise SourceError(f"transformed/{path.name}: expected lists or dictionaries, got {type(entries).__name__}")
    if not found:
        raise SourceError(f"transformed/{path.name} holds no value")
    return found


def _time(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value < 1e15:
        raise SourceError(f"expected a time in milliseconds, got {value!r:.60}")
    return float(value)


def _stream(key: str, entries: list[tuple[float, Any]]) -> tuple[str, np.ndarray, np.ndarray]:
    if not entries:
        raise SourceError(f"{key}: no values")
    try:
        by_time = {time: as_array(value) for time, value in entries}
    except SourceError as error:
        raise SourceError(f"{key}: {error}") from error
    sizes = {len(value) for value in by_time.values()}
    if len(sizes) != 1 or sizes == {0}:
        raise SourceError(f"{key}: values of {sorted(sizes)} numbers, expected one size")
    times = np.array(sorted(by_time))
    return key, times, np.stack([by_time[time] for time in times])


def _camera_times(folder: Path) -> np.ndarray:
    """float64 (n,), milliseconds of a camera's frames, ascending."""
    stamps = folder / "timestamps.npy"
    if stamps.is_file():
        content = load_object(stamps)
        times = as_array(content.get("color") if isinstance(content, dict) else None).astype(np.float64)
    else:
        times = np.array([float(path.stem) for path in _pictures(folder)])
    if not len(times) or not np.isfinite(times).all():
        raise SourceError(f"{folder.name}: no frames")
    if (np.diff(times) <= 0).any():
        raise SourceError(f"{folder.name}: the clock runs backwards at frame {int(np.argmax(np.diff(times) <= 0)) + 1}")
    return times


def _pictures(folder: Path) -> list[Path]:
    found = [path for path in (folder / "color").glob("*") if path.suffix in _PICTURES and path.stem.isdigit()]
    return sorted(found, key=lambda path: int(path.stem))


def _frames(folder: Path, count: int, indices: np.ndarray) -> CameraFrames:
    if (folder / "color.mp4").is_file():
        return CameraFrames(len(indices), lambda: _video_frames(folder / "color.mp4", count, indices))
    return CameraFrames(len(indices), lambda: _picture_frames(folder, indices))


def _picture_frames(folder: Path, indices: np.ndarray) -> Iterator[np.ndarray]:
    pictures = _pictures(folder)
    for index in indices:
        if index >= len(pictures):
            raise SourceError(f"{folder.name}: {len(pictures)} pictures, timestamps.npy names more")
        yield decode_image(pictures[index].read_bytes())


def _video_frames(path: Path, count: int, indices: np.ndarray) -> Iterator[np.ndarray]:
    """The frames of a video at ascending positions, decoded once from the start."""
    import av

    where = f"{path.parent.name}/{path.name}"
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            if not 0 < stream.width * stream.height <= MAX_PIXELS:
                raise SourceError(f"{where}: {stream.width} x {stream.height} pixels, expected at most {MAX_PIXELS}")
            if stream.frames and stream.frames != count:
                raise SourceError(f"{where}: {stream.frames} frames, timestamps.npy names {count}")
            position = 0
            for number, frame in enumerate(container.decode(stream)):
                if position >= len(indices):
                    return
                if number < indices[position]:
                    continue
                image = frame.to_ndarray(format="rgb24")
                while position < len(indices) and indices[position] == number:
                    yield image
                    position += 1
            if position < len(indices):
                raise SourceError(f"{where}: ends before frame {indices[position]} of {count}; the video is cut off")
    except (av.FFmpegError, AttributeError, IndexError) as error:  # a cut file has a stream without a size
        raise SourceError(f"{where}: no readable video ({error})") from error


def _texts(root: Path, folder: Path, task: str) -> dict[str, str]:
    """The task in words, of `task_description.json` beside or above the scenes."""
    for place in (root, folder.parent, root.parent):
        path = place / _DESCRIPTIONS
        if path.is_file() and path.stat().st_size <= _MAX_JSON_BYTES:
            try:
                entry = json.loads(path.read_text(encoding="utf-8")).get(task)
            except (ValueError, AttributeError, RecursionError):
                continue
            entry = entry.get("task_description_english") if isinstance(entry, dict) else entry
            if isinstance(entry, str):
                return {"task_description": entry}
    return {}
