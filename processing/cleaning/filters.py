"""The filters of data cleaning: each looks at one episode and says which frames are unusable, and why.

The paper removed "many low-quality or corrupted samples" (appendix A) without saying by which rules; these rules and their
thresholds are ours.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from syvla.processing.robot_data.video import NotFetchedError, TooManyOpenFilesError

from .action_jumps import SpikeLimits

logger = logging.getLogger(__name__)

FILTERS = (
    "unreadable",
    "non_finite",
    "too_short",
    "timestamps",
    "idle",
    "action_jump",
    "frozen_camera",
    "blank_camera",
    "undecodable",
)
"""Names of the filters. "unreadable" (parquet files that cannot be read) cannot be switched off."""


@dataclass(frozen=True)
class CleaningSettings:
    """Thresholds of the filters, and which of them are skipped.

    Attributes:
        skip: Names of filters that are not applied.
        min_seconds: `too_short`: episodes shorter than this are removed.
        timestamp_tolerance: `timestamps`: largest distance of a timestamp from frame_index / fps, in frames.
        idle_seconds: `idle`: stretches without motion longer than this are cut down to `idle_keep_seconds`.
        idle_keep_seconds: See `idle_seconds`.
        idle_motion: Motion per second, as a share of a dimension's range, up to which the robot counts as still.
        jump_seconds: `action_jump`: longest spike that is removed; at least one frame. A person needs longer to move out
            and back.
        jump_speed: Height of a spike from which on it is removed, in fast steps of its dimension between two frames: 99% of
            its lasting moves stay below such a step, and 99% of all frames. So it depends on frame rate and dimension.
        jump_floor: Smallest such height, as a share of the dimension's range.
        jump_noise: Absolute lower bound of the height per dimension, by name or number, in its own units.
        jump_ignore: Dimensions whose name contains one of these are not looked at.
        frozen_seconds: `frozen_camera`: a picture that stays the same for longer while the robot moves is removed.
        frozen_motion: Motion during such a stretch from which on the picture should have changed, as a share of a
            dimension's range.
        same_picture: Largest mean absolute difference of two pictures, in gray levels, that counts as the same; above 0
            because video adds noise.
        blank_deviation: `blank_camera`: pictures with a standard deviation up to this, in gray levels, show nothing.
        blank_share: Share of blank pictures of a camera from which on the episode is removed.
    """

    skip: tuple[str, ...] = ()
    min_seconds: float = 1.0
    timestamp_tolerance: float = 0.5
    idle_seconds: float = 3.0
    idle_keep_seconds: float = 0.5
    idle_motion: float = 0.005
    jump_seconds: float = 0.07
    jump_speed: float = 2.5
    jump_floor: float = 0.05
    jump_noise: Mapping[str | int, float] = field(default_factory=dict)
    jump_ignore: tuple[str, ...] = ()
    frozen_seconds: float = 2.0
    frozen_motion: float = 0.1
    same_picture: float = 0.25
    blank_deviation: float = 1.0
    blank_share: float = 0.1

    def __post_init__(self) -> None:
        unknown = sorted(set(self.skip) - set(FILTERS[1:]))
        if unknown:
            raise ValueError(f"skip: unknown filters {unknown}; known are {list(FILTERS[1:])}")
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, float | int) and not 0 <= value < float("inf"):
                raise ValueError(f"{item.name}: expected a number of at least 0, got {value}")
        for name, value in self.jump_noise.items():
            if isinstance(value, bool) or not isinstance(value, float | int) or not 0 <= value < float("inf"):
                raise ValueError(
                    f"jump_noise: {name}: expected a number of at least 0 in the dimension's units, got {value!r}"
                )
        if self.idle_keep_seconds > self.idle_seconds:
            raise ValueError(
                f"idle_keep_seconds: expected at most idle_seconds = {self.idle_seconds}, got {self.idle_keep_seconds}"
            )

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> CleaningSettings:
        """Settings from a YAML mapping.

        Raises:
            ValueError: If a key is unknown or a value is of the wrong kind.
        """
        known = {item.name: item for item in fields(cls)}
        if unknown := sorted(set(values) - set(known)):
            raise ValueError(f"cleaning settings: unknown keys {unknown}; known are {sorted(known)}")
        converted: dict[str, Any] = {}
        for name, value in values.items():
            if name == "jump_noise":
                if not isinstance(value, Mapping):
                    raise ValueError(f"{name}: expected a mapping of dimensions to numbers, got {value!r}")
                converted[name] = dict(value)
                continue
            lists = isinstance(known[name].default, tuple)
            if lists != isinstance(value, list | tuple) or (not lists and not isinstance(value, int | float)):
                raise ValueError(f"{name}: expected {'a list of names' if lists else 'a number'}, got {value!r}")
            converted[name] = tuple(value) if lists else float(value)
        return cls(**converted)


@dataclass(frozen=True)
class Finding:
    """What a filter removes.

    Attributes:
        filter: Name of the filter.
        episode: Episode index.
        start, stop: Frames, `stop` exclusive; the whole episode has `stop` None.
        detail: Why, in words.
    """

    filter: str
    episode: int
    start: int
    stop: int | None
    detail: str


@dataclass(frozen=True)
class Scales:
    """Properties of the whole dataset that episodes are judged by.

    Attributes:
        state_range, action_range: float64 (D,), distance of the 1% and 99% quantiles of each dimension.
        spikes: What counts as a spike in the actions.
    """

    state_range: np.ndarray
    action_range: np.ndarray
    spikes: SpikeLimits

    @classmethod
    def of(
        cls,
        states: np.ndarray,
        actions: np.ndarray,
        starts: np.ndarray,
        fps: float,
        names: Sequence[str] | None,
        settings: CleaningSettings,
    ) -> Scales:
        """Scales of a dataset from all its frames, those that are not finite left out.

        Args:
            states, actions: (N, D).
            starts: First frame of each episode.
            fps: Frames per second.
            names: Names of the action's dimensions.
            settings: See `CleaningSettings`.

        Raises:
            ValueError: `jump_noise` names a dimension that does not exist.
        """
        noise = {_dimension(key, actions.shape[1], names): value for key, value in settings.jump_noise.items()}
        ignored = [i for i, name in enumerate(names or ()) if any(part in name for part in settings.jump_ignore)]
        spikes = SpikeLimits.of(
            actions,
            starts,
            fps,
            seconds=settings.jump_seconds,
            speed=settings.jump_speed,
            floor=settings.jump_floor,
            noise=noise,
            ignored=ignored,
        )
        if spikes.common and "action_jump" not in settings.skip:
            logger.warning(
                "action_jump: %s: more than 1%% of the frames belong to spikes, so that none of them is isolated; these "
                "dimensions are not looked at",
                ", ".join(_name(dimension, names) for dimension in spikes.common),
            )
        return cls(_range(states), _range(actions), spikes)


@dataclass(frozen=True)
class Episode:
    """One episode as the filters see it.

    Attributes:
        index: Episode index.
        fps: Frames per second.
        states, actions: float32 (T, D), raw units.
        timestamps: float64 (T,), seconds.
        pictures: Function from (view, frame) to uint8 (H, W, 3); raises ValueError where it cannot be decoded.
        views: Names of the views.
        action_names: Names of the action's dimensions, or None.
    """

    index: int
    fps: float
    states: np.ndarray
    actions: np.ndarray
    timestamps: np.ndarray
    pictures: Callable[[str, int], np.ndarray]
    views: Sequence[str]
    action_names: Sequence[str] | None

    def __len__(self) -> int:
        return len(self.states)

    def remove(self, name: str, detail: str) -> Finding:
        """A finding that removes the whole episode."""
        return Finding(name, self.index, 0, None, detail)


def inspect_episode(episode: Episode, scales: Scales, settings: CleaningSettings) -> list[Finding]:
    """Everything that the filters find in an episode; pictures are decoded once for all filters that need them."""
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "non_finite": lambda: _non_finite(episode),
        "too_short": lambda: _too_short(episode, settings),
        "timestamps": lambda: _timestamps(episode, settings),
        "idle": lambda: _idle(episode, scales, settings),
        "action_jump": lambda: _action_jumps(episode, scales),
    }
    findings = [finding for name, check in checks.items() if name not in settings.skip for finding in check()]
    if not {"frozen_camera", "blank_camera", "undecodable"} <= set(settings.skip):
        found = [finding for view in episode.views for finding in _pictures(episode, view, scales, settings)]
        findings += [finding for finding in found if finding.filter not in settings.skip]
    return findings


def _non_finite(episode: Episode) -> Iterator[Finding]:
    for name, values in (("state", episode.states), ("action", episode.actions)):
        broken = ~np.isfinite(values).all(axis=1)
        if broken.any():
            dimensions = np.flatnonzero(~np.isfinite(values).all(axis=0)).tolist()
            yield episode.remove("non_finite", f"{name}: {int(broken.sum())} frames, dimensions {dimensions}")


def _too_short(episode: Episode, settings: CleaningSettings) -> Iterator[Finding]:
    seconds = len(episode) / episode.fps
    if seconds < settings.min_seconds:
        yield episode.remove("too_short", f"{seconds:.2f} s, less than {settings.min_seconds:g} s")


def _timestamps(episode: Episode, settings: CleaningSettings) -> Iterator[Finding]:
    expected = np.arange(len(episode)) / episode.fps
    off = np.abs(episode.timestamps - expected) * episode.fps
    worst = int(np.argmax(np.where(np.isfinite(off), off, np.inf)))
    if not off[worst] <= settings.timestamp_tolerance:
        yield episode.remove(
            "timestamps", f"frame {worst} is stamped {episode.timestamps[worst]:g} s instead of {expected[worst]:g} s"
        )


def _idle(episode: Episode, scales: Scales, settings: CleaningSettings) -> Iterator[Finding]:
    still = np.ones(max(len(episode) - 1, 0), dtype=bool)  # between each frame and the next
    for values, spread in ((episode.states, scales.state_range), (episode.actions, scales.action_range)):
        per_second = np.abs(np.diff(values.astype(np.float64), axis=0)) * episode.fps
        still &= (per_second <= settings.idle_motion * spread).all(axis=1)
    keep = round(settings.idle_keep_seconds * episode.fps)
    for start, stop in _runs(still):
        if (stop - start) / episode.fps > settings.idle_seconds:
            yield Finding(
                "idle", episode.index, start + keep, stop, f"no motion for {(stop - start) / episode.fps:.1f} s"
            )


def _action_jumps(episode: Episode, scales: Scales) -> Iterator[Finding]:
    heights = scales.spikes.heights(episode.actions)
    for start, stop in _runs(np.asarray((heights > 0).any(axis=1))):
        part = heights[start:stop].max(axis=0)
        dimension = int(np.argmax(part / np.where(part > 0, scales.spikes.limit, 1)))
        limit = scales.spikes.limit[dimension]
        yield Finding(
            "action_jump",
            episode.index,
            start,
            stop,
            f"{_name(dimension, episode.action_names)} leaves its course by {part[dimension]:.4g} and comes back, more than "
            f"{limit:.4g}",
        )


def _pictures(episode: Episode, view: str, scales: Scales, settings: CleaningSettings) -> Iterator[Finding]:
    """Decodes a view once and looks for pictures that show nothing, do not change, or cannot be decoded."""
    same = np.zeros(max(len(episode) - 1, 0), dtype=bool)
    blank = np.zeros(len(episode), dtype=bool)
    previous: np.ndarray | None = None
    for frame in range(len(episode)):
        try:
            picture = episode.pictures(view, frame)
        except (TooManyOpenFilesError, NotFetchedError):
            raise  # says nothing about the recording
        except ValueError as error:
            yield episode.remove("undecodable", f"{view}: {error}")
            return
        small = _thumbnail(picture)
        blank[frame] = small.std() <= settings.blank_deviation
        if previous is not None:
            same[frame - 1] = np.abs(small - previous).mean() <= settings.same_picture
        previous = small
    share = blank.mean()
    if share > settings.blank_share:
        yield episode.remove("blank_camera", f"{view}: {100 * share:.0f}% of the pictures show nothing")
        return  # what shows nothing does not change either
    for start, stop in _runs(same):
        seconds = (stop - start) / episode.fps
        if seconds > settings.frozen_seconds and _moves(episode, start, stop, scales, settings):
            yield Finding(
                "frozen_camera", episode.index, start + 1, stop + 1, f"{view}: the same picture for {seconds:.1f} s"
            )


def _moves(episode: Episode, start: int, stop: int, scales: Scales, settings: CleaningSettings) -> bool:
    part = episode.states[start : stop + 1].astype(np.float64)
    traveled = part.max(axis=0) - part.min(axis=0)
    return bool(
        (traveled > settings.frozen_motion * np.where(scales.state_range > 0, scales.state_range, np.inf)).any()
    )


def _thumbnail(picture: np.ndarray, side: int = 64) -> np.ndarray:
    """Gray picture of at most about `side` x `side` pixels, float32; averages, so that no region goes unseen."""
    gray = picture.mean(axis=2, dtype=np.float32)
    step = max(1, max(gray.shape) // side)
    height, width = (length - length % step for length in gray.shape)
    thumbnail: np.ndarray = gray[:height, :width].reshape(height // step, step, width // step, step).mean(axis=(1, 3))
    return thumbnail


def _runs(flags: np.ndarray) -> list[tuple[int, int]]:
    """(start, stop) of each run of True."""
    padded = np.concatenate([[False], flags, [False]]).astype(np.int8)
    edges = np.diff(padded)
    return list(zip(np.flatnonzero(edges == 1).tolist(), np.flatnonzero(edges == -1).tolist(), strict=True))


def _name(dimension: int, names: Sequence[str] | None) -> str:
    return names[dimension] if names else f"dimension {dimension}"


def _dimension(key: str | int, count: int, names: Sequence[str] | None) -> int:
    if isinstance(key, int) and 0 <= key < count:
        return key
    if names and key in names:
        return list(names).index(str(key))
    raise ValueError(f"jump_noise: {key!r} is no dimension of the action, which has {list(names or range(count))}")


def _range(values: np.ndarray) -> np.ndarray:
    finite = values[np.isfinite(values).all(axis=1)].astype(np.float64)
    if not len(finite):
        return np.zeros(values.shape[1])
    low, high = np.quantile(finite, [0.01, 0.99], axis=0)
    spread: np.ndarray = high - low
    return spread
