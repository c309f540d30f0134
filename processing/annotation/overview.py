"""What a person should know of a dataset before training: statistics, odd episodes, copies, what cleaning would remove."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from syvla.processing.cleaning.command import clean_dataset
from syvla.processing.cleaning.filters import CleaningSettings, Finding
from syvla.processing.robot_data.lerobot_format import DatasetError
from syvla.processing.transforms import DEFAULT_VIEWS, infer_cameras

from .boundaries import gripper_dimensions, speeds, usual_values, value_ranges
from .episode_data import EpisodeData

_ODD = 6.0  # robust standard deviations from the median
_LEAST_DIFFERENCE = 0.25  # of the median, below which nothing is odd
_BEYOND = 1.0  # usual ranges outside of the usual range
_RESTING = 0.1  # the least range, as a share of the usual one, of a dimension that hardly moves
_POINTS = 32  # of each episode that are compared for near copies
_SAME = 0.005  # of a dimension's range, mean difference of near copies
_MOST_COMPARED = 20_000  # episodes; their comparison takes a minute


@dataclass(frozen=True)
class Oddity:
    """Why an episode is unlike the others."""

    episode: int
    kind: str
    detail: str


@dataclass
class Overview:
    """Of a dataset.

    Attributes:
        statistics: A row per dimension of state and action.
        tasks: Instruction, episodes, frames.
        views: What `infer_cameras` makes of the cameras' names, or why it cannot.
        oddities: Episodes unlike the others.
        copies: Groups of episodes whose states and actions are the same, or nearly; whether exactly.
        cleaning: `CleaningReport.to_dict()` without its findings; None where cleaning was left out.
        findings: What `syvla-clean` would remove, per episode.
        problem: Why cleaning could not be done.
    """

    statistics: list[dict[str, Any]]
    tasks: list[tuple[str, int, int]]
    views: dict[str, str] | str
    oddities: list[Oddity]
    copies: list[tuple[list[int], bool]]
    cleaning: dict[str, Any] | None = None
    findings: dict[int, list[Finding]] = field(default_factory=dict)
    problem: str | None = None

    def flagged(self) -> set[int]:
        """Episodes that something is to be said about."""
        copied = {episode for group, _ in self.copies for episode in group}
        return {oddity.episode for oddity in self.oddities} | copied | set(self.findings)

    def remarks(self, episode: int) -> list[str]:
        """What is to be said about an episode."""
        said = [f"{oddity.kind}: {oddity.detail}" for oddity in self.oddities if oddity.episode == episode]
        for group, exact in self.copies:
            if episode in group:
                others = [other for other in group if other != episode]
                said.append(f"{'the same' if exact else 'nearly the same'} as {_listed(others)}")
        return said + [f"syvla-clean, {one.filter}: {one.detail}" for one in self.findings.get(episode, ())]


def overview_of(
    data: EpisodeData, *, clean: bool = True, workers: int = 1, progress: bool = False, **reader: Any
) -> Overview:
    """Looks through a dataset.

    Args:
        data: The dataset.
        clean: Whether to apply the filters of `syvla-clean`, which decode every picture.
        workers: Processes of that.
        progress: Whether to show a progress bar.
        reader: `state_key`, `action_key` and `tolerance_s` of the dataset.
    """
    found = Overview(
        [*_statistics("state", data.state_names, data.dataset.states),
         *_statistics("action", data.action_names, data.dataset.actions)],
        _tasks(data),
        _views(data),
        oddities(data),
        copies(data),
    )  # fmt: skip
    if clean:
        add_cleaning(found, data, workers=workers, progress=progress, **reader)
    return found


def add_cleaning(overview: Overview, data: EpisodeData, *, workers: int, progress: bool, **reader: Any) -> None:
    """Adds what `syvla-clean` would remove, with its default settings."""
    try:
        with tempfile.TemporaryDirectory(prefix="syvla-look-") as folder:
            cameras = {key: key for key in data.cameras}
            report = clean_dataset(
                data.root, folder, CleaningSettings(), workers=workers, progress=progress, cameras=cameras, **reader
            )
    except (ValueError, DatasetError, OSError) as error:
        overview.problem = str(error)
        return
    overview.cleaning = {key: value for key, value in report.to_dict().items() if key in ("totals", "filters")}
    for finding in report.findings:
        overview.findings.setdefault(finding.episode, []).append(finding)


def oddities(data: EpisodeData) -> list[Oddity]:
    """Episodes whose length, motion or values are unlike the others'."""
    found = []
    lengths = np.array([data.length(episode) for episode in range(data.num_episodes)], np.float64)
    for episode in odd_ones(lengths):
        word = "long" if lengths[episode] > np.median(lengths) else "short"
        seconds, usual = lengths[episode] / data.fps, float(np.median(lengths)) / data.fps
        found.append(Oddity(episode, word, f"{seconds:.1f} s, usual are {usual:.1f} s"))
    ranges, grippers = value_ranges(data.dataset.states), gripper_dimensions(data.state_names)
    motion = np.array(
        [speeds(data.states(episode), ranges, data.fps, grippers).mean() for episode in range(data.num_episodes)]
    )
    for episode in odd_ones(motion):
        word = "fast" if motion[episode] > np.median(motion) else "slow"
        found.append(
            Oddity(episode, word, f"moves {motion[episode]:.3g} ranges per second, usual are {np.median(motion):.3g}")
        )
    for kind, names in (("state", data.state_names), ("action", data.action_names)):
        found += _far_values(data, kind, names)
    return sorted(found, key=lambda one: one.episode)


def odd_ones(values: np.ndarray) -> list[int]:
    """Indices of values (n,) that are more than 6 robust standard deviations and a quarter of the median away from it."""
    if len(values) < 5:
        return []
    middle = float(np.median(values))
    away = np.abs(values - middle)
    spread = 1.4826 * float(np.median(away))
    limit = max(_ODD * spread, _LEAST_DIFFERENCE * abs(middle))
    return np.flatnonzero(away > limit).tolist() if limit > 0 else []


def copies(data: EpisodeData) -> list[tuple[list[int], bool]]:
    """Groups of episodes with the same states and actions (True), or nearly the same motion in the same time (False)."""
    digests: dict[bytes, list[int]] = {}
    for episode in range(data.num_episodes):
        content = hashlib.sha256(np.ascontiguousarray(data.states(episode)).tobytes())
        content.update(np.ascontiguousarray(data.actions(episode)).tobytes())
        digests.setdefault(content.digest(), []).append(episode)
    found = [(group, True) for group in digests.values() if len(group) > 1]
    first = [group[0] for group in digests.values()]
    return sorted(found + [(group, False) for group in _near_copies(data, first)])


def _near_copies(data: EpisodeData, episodes: Sequence[int]) -> list[list[int]]:
    ranges = value_ranges(data.dataset.states)
    used = ranges > 0
    if not used.any() or not 2 <= len(episodes) <= _MOST_COMPARED:
        return []
    described = np.stack([_outline(data.states(episode)[:, used] / ranges[used]) for episode in episodes])
    lengths = np.array([data.length(episode) for episode in episodes])
    size = described.shape[1]
    limit = _SAME**2 * size
    squares = (described**2).sum(1)
    assigned = np.zeros(len(episodes), bool)
    groups = []
    for start in range(0, len(episodes), 256):
        block = described[start : start + 256]
        close = squares[start : start + 256, None] + squares[None] - 2 * block @ described.T <= limit + 1e-6
        for one, near in enumerate(close, start):
            if assigned[one]:
                continue
            near &= ~assigned & (np.abs(lengths - lengths[one]) <= 0.05 * lengths[one])
            near[: one + 1] = False
            if near.any():
                groups.append([episodes[one], *(episodes[other] for other in np.flatnonzero(near).tolist())])
                assigned |= near
    return groups


def _outline(values: np.ndarray) -> np.ndarray:
    """An episode (T, D) at 32 evenly spaced times, flat; what is not finite is 0."""
    at = np.linspace(0, len(values) - 1, _POINTS).round().astype(int)
    flat: np.ndarray = np.nan_to_num(values[at].astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0).ravel()
    return flat


def _far_values(data: EpisodeData, kind: str, names: Sequence[str]) -> list[Oddity]:
    """Episodes with values far beyond what 98% of the frames have, or not finite ones."""
    values = data.dataset.states if kind == "state" else data.dataset.actions
    finite = np.isfinite(values)
    known = np.where(finite, values, np.nan)
    low, high = usual_values(values)
    ranges = high - low
    usual = float(np.median(ranges[ranges > 0])) if (ranges > 0).any() else np.inf
    room = _BEYOND * np.maximum(ranges, _RESTING * usual)
    far = (known > high + room) | (known < low - room)
    found = []
    for episode in range(data.num_episodes):
        start = int(data.dataset.episode_starts[episode])
        rows = slice(start, start + data.length(episode))
        if broken := int((~finite[rows]).any(axis=1).sum()):
            found.append(Oddity(episode, kind, f"{broken} frames with values that are not finite"))
        for dimension in np.flatnonzero(far[rows].any(axis=0)).tolist():
            frame = int(np.argmax(np.where(far[rows, dimension], np.abs(known[rows, dimension]), -1)))
            found.append(
                Oddity(
                    episode,
                    kind,
                    f"{names[dimension]} is {known[start + frame, dimension]:.4g} at {frame / data.fps:.2f} s, usual are "
                    f"{low[dimension]:.4g} to {high[dimension]:.4g}",
                )
            )
    return found


def _statistics(kind: str, names: Sequence[str], values: np.ndarray) -> list[dict[str, Any]]:
    rows = []
    for dimension, name in enumerate(names):
        column = values[:, dimension].astype(np.float64)
        known = column[np.isfinite(column)]
        row: dict[str, Any] = {"kind": kind, "name": name, "not_finite": len(column) - len(known)}
        if len(known):
            row |= {"min": known.min(), "max": known.max(), "mean": known.mean(), "std": known.std()}
            row |= dict(zip(("q01", "q99"), np.quantile(known, [0.01, 0.99]).tolist(), strict=True))
            counts, _ = np.histogram(known, bins=24)
            row["histogram"] = counts.tolist()
        rows.append({key: float(f"{v:.6g}") if isinstance(v, float) else v for key, v in row.items()})
    return rows


def _tasks(data: EpisodeData) -> list[tuple[str, int, int]]:
    counts: dict[int, list[int]] = {}
    for episode in range(data.num_episodes):
        count = counts.setdefault(data.task_index(episode), [0, 0])
        count[0] += 1
        count[1] += data.length(episode)
    ordered = sorted(counts.items(), key=lambda entry: -entry[1][0])
    return [(data.tasks[task], episodes, frames) for task, (episodes, frames) in ordered]


def _views(data: EpisodeData) -> dict[str, str] | str:
    if not data.cameras:
        return "the dataset has no cameras"
    try:
        return dict(infer_cameras(data.cameras, DEFAULT_VIEWS))
    except ValueError as error:
        return str(error)


def _listed(episodes: Sequence[int]) -> str:
    shown = ", ".join(map(str, episodes[:8]))
    return f"episode{'s' if len(episodes) > 1 else ''} {shown}" + (" and others" if len(episodes) > 8 else "")
