"""Results of single episodes as JSON lines: appended as episodes end, read back to resume an interrupted evaluation."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from syvla.durable_files import append_json_lines, read_json_lines

logger = logging.getLogger(__name__)

_KINDS: dict[str, type | tuple[type, ...]] = {
    **{
        "task": str,
        "seed": int,
        "success": bool,
        "steps": int,
        "instruction": str,
        "attempts": int,
        "fingerprint": str,
    },
    **dict.fromkeys(("failure_reason", "error", "video"), (str, type(None))),
    **{"thoughts": list, "call_seconds": list},
}
"""What the fields of a record are in JSON."""


@dataclass
class EpisodeRecord:
    """One evaluated episode.

    Attributes:
        task: Task name.
        seed: Environment seed; with the task it names the episode.
        success: Whether the environment reported success.
        steps: Control steps taken.
        instruction: What the policy was asked to do.
        failure_reason: None on success, else "time limit", what the environment gave as the reason ("terminated by the
            environment" where it gave none), or the policy's fault.
        error: How the environment crashed in every attempt, or None. Such an episode says nothing about the policy.
        attempts: Times that the episode was started; 2 after a crash of the environment.
        thoughts: [control step, text] for each chunk with a thought, repeats left out.
        call_seconds: Wall-clock seconds of each policy call; episodes of one batch wait for the same call.
        video: File name of the recording beside the records, or None.
        fingerprint: Settings under which it was run; see `fingerprint`.
    """

    task: str
    seed: int
    success: bool = False
    steps: int = 0
    instruction: str = ""
    failure_reason: str | None = None
    error: str | None = None
    attempts: int = 1
    thoughts: list[tuple[int, str]] = field(default_factory=list)
    call_seconds: list[float] = field(default_factory=list)
    video: str | None = None
    fingerprint: str = ""

    @property
    def outcome(self) -> str:
        """ "success", "failure" or "error"."""
        if self.error is not None:
            return "error"
        return "success" if self.success else "failure"

    @property
    def policy_calls(self) -> int:
        """Number of action chunks asked for."""
        return len(self.call_seconds)

    def to_dict(self) -> dict[str, Any]:
        """JSON form, with what follows from the fields: `outcome`, `policy_calls` and `latency`."""
        derived = {"outcome": self.outcome, "policy_calls": self.policy_calls, "latency": latency(self.call_seconds)}
        return {**asdict(self), **derived}

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> EpisodeRecord:
        """The record of a JSON form; keys that are not fields are passed over.

        Raises:
            ValueError: If task or seed is missing, or a field is ill-formed.
        """
        known = {item.name for item in fields(cls)}
        values = {key: value for key, value in entry.items() if key in known}
        wrong = sorted(name for name, value in values.items() if not isinstance(value, _KINDS[name]))
        try:
            values["thoughts"] = [(int(step), str(text)) for step, text in values.get("thoughts", [])]
            values["call_seconds"] = [float(seconds) for seconds in values.get("call_seconds", [])]
        except (TypeError, ValueError):
            wrong = wrong or ["thoughts or call_seconds"]
        if wrong or not {"task", "seed"} <= values.keys():
            raise ValueError(f"episode: expected task, seed and well-formed fields, got {wrong or sorted(values)}")
        return cls(**values)


def latency(seconds: Sequence[float]) -> dict[str, float] | None:
    """Mean, median and 95th percentile of policy calls, in seconds; None without any."""
    if not seconds:
        return None
    p50, p95 = np.percentile(seconds, [50, 95])
    return {"mean": round(float(np.mean(seconds)), 5), "p50": round(float(p50), 5), "p95": round(float(p95), 5)}


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Short digest of everything that decides the outcome of an episode besides task and seed."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def append_record(path: Path, record: EpisodeRecord) -> None:
    """Appends one line; on return it is on disk."""
    append_json_lines(path, [record.to_dict()])


def read_records(
    path: Path, wanted_fingerprint: str, *, with_errors: bool = False
) -> dict[tuple[str, int], EpisodeRecord]:
    """Finished episodes under the given settings by (task, seed), the last of each.

    Episodes of other settings are passed over, without `with_errors` also those that ended in an error. So are lines that
    cannot be read, such as a torn one; a warning counts those.
    """
    records: dict[tuple[str, int], EpisodeRecord] = {}
    entries, unreadable = read_json_lines(path)
    for entry in entries:
        if entry.get("fingerprint") == wanted_fingerprint and (with_errors or not entry.get("error")):
            try:
                record = EpisodeRecord.from_dict(entry)
            except ValueError:
                unreadable += 1
                continue
            records[record.task, record.seed] = record
    if unreadable:
        logger.warning("%s: %d lines cannot be read; their episodes count as not run", path, unreadable)
    return records
