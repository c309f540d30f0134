"""One source episode to one finished LeRobot episode, by a mapping. Runs in worker processes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from syvla.processing.recording.episode_buffer import EpisodeBuffer, PreparedEpisode
from syvla.processing.robot_data.video import VideoError

from .dimensions import assemble
from .images import check_shape
from .mapping import CLOCK_UNITS, CameraSpec, ConversionMapping
from .source import MAX_FRAMES, CameraFrames, EpisodeReference, Source, SourceEpisode, SourceError

RATE_TOLERANCE = 0.1  # share by which an episode's rate may differ from the mapping's
LARGEST_GAP = 2.5  # frame intervals between two frames, more is a jump of the clock
_NEEDS_NEXT = ("next_value", "next_difference", "next_angle_difference")


@dataclass(frozen=True)
class Converted:
    """A finished episode and what was left out of it: frames that were cut off, keys that the mapping does not use."""

    episode: PreparedEpisode
    trimmed: int
    skipped: tuple[str, ...]


@dataclass(frozen=True)
class EpisodeConverter:
    """Converts episodes of one source; the same for every episode.

    Attributes:
        source: Where the episodes are.
        mapping: Complete, see `ConversionMapping.open_questions`.
        features: All features of the dataset.
        staging: Folder for unfinished videos, in the dataset's file system.
        codec: Video encoder.
    """

    source: Source
    mapping: ConversionMapping
    features: dict[str, dict[str, Any]]
    staging: Path
    codec: str | None

    def __call__(self, reference: EpisodeReference) -> Converted:
        """Converts one episode.

        Raises:
            SourceError: The episode cannot be converted; says why.
            OSError, VideoError: The result cannot be written.
        """
        if reference.problem is not None:
            raise SourceError(reference.problem)
        assert self.mapping.fps is not None
        with _source_errors():
            opened = self.source.open(reference)
            episode = opened.__enter__()
        try:
            with _source_errors():
                length, trimmed = episode_length(episode, self.mapping)
                vectors = {
                    "observation.state": assemble(self.mapping.state, episode.vectors, length),
                    "action": assemble(self.mapping.action, episode.vectors, length),
                }
                check_clock(episode, self.mapping, length)
                task = instruction(episode, self.mapping)
            frames = range(self.mapping.skip_first, length - frames_at_end(self.mapping))
            if not frames:
                raise SourceError(f"{length} frames, of which the mapping leaves none")
            return Converted(self._encode(episode, vectors, task, frames), trimmed, episode.skipped)
        finally:
            opened.__exit__(None, None, None)

    def _encode(
        self, episode: SourceEpisode, vectors: dict[str, np.ndarray], task: str, frames: range
    ) -> PreparedEpisode:
        assert self.mapping.fps is not None
        self.staging.mkdir(parents=True, exist_ok=True)
        buffer = EpisodeBuffer(self.features, self.mapping.fps, self.staging, self.codec)
        streams = {
            name: oriented_frames(name, episode.cameras[camera.source], camera, frames, self._size(name))
            for name, camera in self.mapping.cameras.items()
        }
        try:
            for step in frames:
                with _source_errors():
                    images = {name: next(stream) for name, stream in streams.items()}
                buffer.add({**images, **{key: values[step] for key, values in vectors.items()}}, task, None)
            return buffer.prepare()
        except BaseException:
            buffer.discard()
            shutil.rmtree(self.staging, ignore_errors=True)
            raise

    def _size(self, camera: str) -> tuple[int, int]:
        height, width, _ = self.features[camera]["shape"]
        return height, width


class _source_errors:
    """Turns whatever a damaged or hostile file makes a library raise into a `SourceError`."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, SourceError | VideoError):
            why = "its frames end early" if isinstance(error, StopIteration) else str(error)
            raise SourceError(f"cannot be read ({type(error).__name__}: {why:.300})") from error


def episode_length(episode: SourceEpisode, mapping: ConversionMapping) -> tuple[int, int]:
    """(frames of an episode, frames by which its longest stream is longer).

    Raises:
        SourceError: A stream is missing, or longer than another by more than the mapping's `trim`.
    """
    lengths = {}
    for spec in (*mapping.state, *mapping.action):
        if spec.source not in episode.vectors:
            raise SourceError(f"{spec.source} is missing; the episode has {sorted(episode.vectors)}")
        lengths[spec.source] = len(episode.vectors[spec.source])
    for name, camera in mapping.cameras.items():
        if camera.source not in episode.cameras:
            have = sorted(episode.cameras) or "no camera"
            raise SourceError(f"{name}: {camera.source} is missing; the episode has {have}")
        lengths[camera.source] = episode.cameras[camera.source].count
    low, high = min(lengths.values()), max(lengths.values())
    if not 0 < low <= high <= MAX_FRAMES:
        raise SourceError(f"expected 1 to {MAX_FRAMES} frames, got {lengths}")
    if high - low > mapping.trim:
        raise SourceError(f"streams of unequal length: {lengths} frames; set trim: {high - low} to cut them to {low}")
    return low, high - low


def frames_at_end(mapping: ConversionMapping) -> int:
    """Frames at the end that have no action: `skip_last`, and one where an action needs the following frame."""
    return mapping.skip_last + any(spec.change in _NEEDS_NEXT for spec in (*mapping.state, *mapping.action))


def check_clock(episode: SourceEpisode, mapping: ConversionMapping, length: int) -> None:
    """SourceError if the recording times do not run, jump, or have another rate than the mapping says."""
    if mapping.clock is None:
        return
    assert mapping.fps is not None
    if mapping.clock.source not in episode.vectors:
        raise SourceError(f"clock: {mapping.clock.source} is missing; the episode has {sorted(episode.vectors)}")
    times = episode.vectors[mapping.clock.source].reshape(-1)[:length].astype(np.float64)
    times = (times - times[0]) * CLOCK_UNITS[mapping.clock.unit]
    if len(times) < 2:
        return
    steps = np.diff(times)
    if not np.isfinite(steps).all() or steps.min() <= 0:
        worst = int(np.argmin(np.where(np.isfinite(steps), steps, -np.inf)))
        raise SourceError(f"the clock runs backwards or stands still at frame {worst + 1} ({steps[worst]:.4g} s)")
    rate = 1 / float(np.median(steps))
    if abs(rate / mapping.fps - 1) > RATE_TOLERANCE:
        raise SourceError(f"{rate:.4g} frames per second, the mapping says fps: {mapping.fps}; convert it on its own")
    if steps.max() > LARGEST_GAP / mapping.fps:
        worst = int(steps.argmax())
        raise SourceError(f"the clock jumps by {steps[worst]:.4g} s at frame {worst + 1}; frames are missing there")


def instruction(episode: SourceEpisode, mapping: ConversionMapping) -> str:
    """The episode's instruction; SourceError if there is none."""
    if mapping.task is not None:
        return mapping.task
    text = " ".join(episode.texts.get(mapping.task_source or "", "").split())
    if not text:
        raise SourceError(f"no instruction in {mapping.task_source!r}; the episode's texts are {sorted(episode.texts)}")
    return text


def oriented_frames(
    name: str, frames: CameraFrames, camera: CameraSpec, wanted: range, size: tuple[int, int]
) -> Iterator[np.ndarray]:
    """The wanted frames of a camera, upright, RGB, of the dataset's size."""
    for step, image in enumerate(frames.read()):
        if step >= wanted.stop:
            return
        if step not in wanted:
            continue
        check_shape(image.shape)
        if camera.flip in ("vertical", "both"):
            image = image[::-1]
        if camera.flip in ("horizontal", "both"):
            image = image[:, ::-1]
        if camera.channels == "bgr":
            image = image[..., ::-1]
        if camera.resize is not None and image.shape[:2] != camera.resize:
            resized = Image.fromarray(np.ascontiguousarray(image))
            image = np.asarray(resized.resize(camera.resize[::-1], Image.Resampling.BILINEAR))
        if image.shape[:2] != size:
            raise SourceError(
                f"{name}: frame {step} has {image.shape[0]} x {image.shape[1]} pixels, the dataset {size[0]} x {size[1]};"
                f" set resize: [{size[0]}, {size[1]}] to bring all episodes to one size"
            )
        yield np.ascontiguousarray(image)
