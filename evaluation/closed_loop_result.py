"""What a closed-loop evaluation found, and everything needed to repeat it, as JSON."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from syvla.durable_files import write_json

from .episode_records import EpisodeRecord, latency
from .success_rate import SuccessRate

_PACKAGES = (
    *("syvla", "numpy", "gymnasium", "mujoco", "torch", "transformers", "websockets", "msgpack"),
    *("hf-libero", "robosuite", "metaworld", "gym-aloha", "dm-control", "gymnasium-robotics"),
)
"""Whose version may matter to an outcome: ours, the policy's, the simulators'."""


@dataclass
class ClosedLoopResult:
    """Episodes of one evaluation.

    Attributes:
        records: One per episode, by task in the order asked for, then by seed.
        settings: Everything that decides an episode's outcome besides task and seed.
        seconds: Wall-clock seconds of this run, without episodes taken from an earlier one.
        run: How it was run: arguments, facts about the environment, versions, machine.
    """

    records: list[EpisodeRecord]
    settings: dict[str, Any]
    seconds: float
    run: dict[str, Any] = field(default_factory=dict)

    @property
    def counted(self) -> list[EpisodeRecord]:
        """Episodes that say something about the policy: all but those whose environment crashed."""
        return [record for record in self.records if record.error is None]

    @property
    def errors(self) -> list[EpisodeRecord]:
        """Episodes whose environment crashed in every attempt."""
        return [record for record in self.records if record.error is not None]

    @property
    def total(self) -> SuccessRate:
        """Success rate over all episodes that count."""
        return SuccessRate.of(record.success for record in self.counted)

    @property
    def by_task(self) -> dict[str, SuccessRate]:
        """Success rate of each task."""
        tasks = dict.fromkeys(record.task for record in self.records)
        return {task: SuccessRate.of(r.success for r in self.counted if r.task == task) for task in tasks}

    def to_dict(self) -> dict[str, Any]:
        """JSON form, without the single episodes."""
        solved = [record.steps for record in self.records if record.success]
        failures = [record.failure_reason for record in self.counted if record.failure_reason]
        return {
            "tasks": {task: rate.to_dict() for task, rate in self.by_task.items()},
            "total": self.total.to_dict(),
            "mean_steps_to_success": float(np.mean(solved)) if solved else None,
            "latency": latency([seconds for record in self.counted for seconds in record.call_seconds]),
            "failures": {reason: failures.count(reason) for reason in dict.fromkeys(failures)},
            "errors": [{"task": r.task, "seed": r.seed, "error": r.error} for r in self.errors],
            "retried": sum(record.attempts > 1 for record in self.records),
            "seeds": sorted({record.seed for record in self.records}),
            "seconds": round(self.seconds, 1),
            "settings": self.settings,
            "run": self.run,
        }


def write_summary(result: ClosedLoopResult, path: Path) -> None:
    """Writes `result.to_dict()` as JSON, whole or not at all."""
    write_json(path, result.to_dict(), allow_nan=True, default=str)


def describe_machine() -> dict[str, Any]:
    """Versions of the packages installed, read without importing them, and the machine."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "versions": {"python": platform.python_version(), **versions},
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
    }
