"""What the cleaning filters find: `python -m benchmarks.cleaning`.

False alarms are counted on simulated teleoperation without faults (`benchmarks/teleoperation.py`), in frames and in full
chunks of 50 actions. Recall is counted on the same recordings with one fault at a time: a spike in one dimension by its
height in ranges of the dimension, zeros in place of a command, a command of another episode, and what the other filters
look for. A spike is found if one of its frames is removed by `action_jump`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.reporting import print_table, write_result
from benchmarks.teleoperation import ROBOTS, Recording, record
from syvla.processing.cleaning.filters import FILTERS, CleaningSettings, Episode, Finding, Scales, inspect_episode
from syvla.processing.cleaning.report import full_chunks

CHUNK_SIZE = 50
SPIKES = (0.1, 0.2, 0.4, 0.8, 1.6)
"""Heights of injected spikes, in ranges of the dimension; a whole range would be a whole turn of a wrapped angle."""


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write `benchmarks/results/cleaning.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=40, help="episodes of each robot")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    robots = {name: measure(name, arguments.episodes, arguments.seed) for name in ROBOTS}
    alarms = []
    for name, r in robots.items():
        removed = [r["false_alarms"][kind]["frames"] for kind in ("action_jump", "other")]
        alarms.append([name, r["frames"], *removed, r["full_chunks"], r["full_chunks_kept"]])
    print_table(["no faults", "frames", "action_jump", "other filters", "full chunks", "kept"], alarms)
    faults = list(next(iter(robots.values()))["recall"])
    print_table(["recall", *robots], [[fault, *(r["recall"][fault] for r in robots.values())] for fault in faults])
    path = write_result("cleaning", {"episodes": arguments.episodes, "seed": arguments.seed, "robots": robots})
    print(f"written to {path}")


def measure(name: str, episodes: int, seed: int) -> dict[str, Any]:
    """False alarms and recall of one robot."""
    recording = record(name, episodes, seed)
    lengths = [len(actions) for actions in recording.actions]
    findings = inspect(recording)
    result: dict[str, Any] = {"fps": recording.fps, "dimensions": len(recording.names), "frames": sum(lengths)}
    result["full_chunks"] = full_chunks([], lengths, CHUNK_SIZE)
    result["full_chunks_kept"] = full_chunks(findings, lengths, CHUNK_SIZE)
    jumps = [finding for finding in findings if finding.filter == "action_jump"]
    others = [finding for finding in findings if finding.filter != "action_jump"]
    result["false_alarms"] = {
        key: {"findings": len(members), "frames": _frames(members, lengths), "examples": _examples(members)}
        for key, members in (("action_jump", jumps), ("other", others))
    }
    result["recall"] = {fault: _recall(faulty, places) for fault, faulty, places in _injected(recording, seed)}
    return result


def inspect(recording: Recording, settings: CleaningSettings | None = None) -> list[Finding]:
    """Everything that the filters find in a recording."""
    settings = settings or CleaningSettings()
    starts = np.cumsum([0, *map(len, recording.actions[:-1])])
    states, actions = np.concatenate(recording.states), np.concatenate(recording.actions)
    with np.errstate(invalid="ignore"):
        scales = Scales.of(states, actions, starts, recording.fps, recording.names, settings)
        return [
            finding
            for index in range(len(recording.actions))
            for finding in inspect_episode(_episode(recording, index), scales, settings)
        ]


def _episode(recording: Recording, index: int) -> Episode:
    pictures = recording.pictures[index]
    return Episode(
        index,
        recording.fps,
        recording.states[index],
        recording.actions[index],
        np.arange(len(pictures)) / recording.fps,
        lambda view, frame: pictures[frame],
        ["center"],
        recording.names,
    )


Place = tuple[str, int, int]
"""Filter, episode and frame at which a fault is to be found; frame -1 is anywhere in the episode."""


def _injected(recording: Recording, seed: int) -> Iterator[tuple[str, Recording, list[Place]]]:
    for height in SPIKES:
        yield f"spike of {height:g} ranges", *_spikes(recording, seed, height)
    yield "two frames of 0.5 ranges", *_spikes(recording, seed, 0.5, frames=2)
    yield "zeros for one frame", *_replaced(recording, seed, zeros=True)
    yield "another episode's command", *_replaced(recording, seed, zeros=False)
    yield "NaN", *_faults(recording, seed, "non_finite")
    yield "no motion for 4 s", *_faults(recording, seed, "idle")
    yield "frozen picture for 3 s", *_faults(recording, seed, "frozen_camera")
    yield "black pictures, a fifth", *_faults(recording, seed, "blank_camera")


def _spikes(recording: Recording, seed: int, height: float, frames: int = 1) -> tuple[Recording, list[Place]]:
    """One spike per episode, in one dimension that moves."""
    rng = np.random.default_rng(seed + 1)
    ranges = np.ptp(np.concatenate(recording.actions), axis=0)
    moving = np.flatnonzero(ranges > 0.05 * np.median(ranges))
    actions, places = [], []
    for index, values in enumerate(recording.actions):
        values = values.copy()
        frame, dimension = int(rng.integers(5, len(values) - 5)), rng.choice(moving)
        values[frame : frame + frames, dimension] += rng.choice([-1, 1]) * height * ranges[dimension]
        places.append(("action_jump", index, frame))
        actions.append(values)
    return replace(recording, actions=actions), places


def _replaced(recording: Recording, seed: int, zeros: bool) -> tuple[Recording, list[Place]]:
    """A frame of every second episode whose whole command is lost, or is one of another episode."""
    rng = np.random.default_rng(seed + 2)
    actions, places = [], []
    for index, values in enumerate(recording.actions):
        values = values.copy()
        if index % 2 == 0:
            other = recording.actions[(index + 1) % len(recording.actions)]
            frame = int(rng.integers(5, len(values) - 5))
            values[frame] = 0 if zeros else other[rng.integers(len(other))]
            places.append(("action_jump", index, frame))
        actions.append(values)
    return replace(recording, actions=actions), places


def _faults(recording: Recording, seed: int, name: str) -> tuple[Recording, list[Place]]:
    """One fault of a filter that looks at whole stretches, in every other episode."""
    rng = np.random.default_rng(seed + 3)
    parts = {key: [values.copy() for values in getattr(recording, key)] for key in ("states", "actions", "pictures")}
    places = []
    for index in range(0, len(recording.actions), 2):
        length = len(recording.actions[index])
        start = int(rng.integers(length // 4))
        if name == "non_finite":
            parts["actions"][index][start, 0] = np.nan
        elif name == "blank_camera":
            parts["pictures"][index][start : start + length // 5 + 1] = 0
        else:
            stop = start + int((4.2 if name == "idle" else 3.2) * recording.fps)
            for key in ("states", "actions") if name == "idle" else ("pictures",):
                parts[key][index][start:stop] = parts[key][index][start]
        places.append((name, index, -1))
    return replace(recording, **parts), places


def _recall(recording: Recording, places: Sequence[Place]) -> float:
    findings = inspect(recording)
    found = sum(
        any(
            finding.filter == name
            and finding.episode == episode
            and (frame < 0 or finding.stop is None or finding.start - 1 <= frame < finding.stop)
            for finding in findings
        )
        for name, episode, frame in places
    )
    return round(found / len(places), 4)


def _frames(findings: Sequence[Finding], lengths: Sequence[int]) -> int:
    return sum(lengths[f.episode] if f.stop is None else f.stop - f.start for f in findings)


def _examples(findings: Sequence[Finding]) -> list[str]:
    by_filter = {
        finding.filter: f"{finding.filter}, episode {finding.episode}: {finding.detail}" for finding in findings
    }
    return [by_filter[name] for name in FILTERS if name in by_filter]


if __name__ == "__main__":
    main()
