"""Results of single episodes as JSON lines: appended as episodes end, read back to resume an interrupted evaluation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any


@dataclass
class EpisodeRecord:
    """One evaluated episode.

    Attributes:
        task: Task name.
        seed: Environment seed; with the task it names the episode.
        success: Whether the environment reported success.
        steps: Control steps taken.
        instruction: What the policy was asked to do.
        failure_reason: None on success, else "time limit", "terminated by the environment", or the policy's fault.
        thoughts: [control step, text] for each chunk with a thought, repeats left out.
        policy_calls: Number of action chunks asked for.
        policy_seconds: Mean wall-clock seconds until a chunk arrived; episodes of one batch wait for the same call.
        video: File name of the recording beside the records, or None.
        fingerprint: Settings under which it was run; see `fingerprint`.
    """

    task: str
    seed: int
    success: bool
    steps: int
    instruction: str
    failure_reason: str | None = None
    thoughts: list[tuple[int, str]] = field(default_factory=list)
    policy_calls: int = 0
    policy_seconds: float = 0.0
    video: str | None = None
    fingerprint: str = ""


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Short digest of everything that decides the outcome of an episode besides task and seed."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def append_record(path: Path, record: EpisodeRecord) -> None:
    """Appends one line; a line torn by an earlier crash is closed first."""
    line = json.dumps(asdict(record)) + "\n"
    with path.open("ab+") as file:
        if file.tell() > 0:
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                line = "\n" + line
        file.write(line.encode())


def read_records(path: Path, wanted_fingerprint: str) -> dict[tuple[str, int], EpisodeRecord]:
    """Finished episodes under the given settings by (task, seed); torn lines and other settings are passed over."""
    records: dict[tuple[str, int], EpisodeRecord] = {}
    known = {item.name for item in fields(EpisodeRecord)}
    for line in _lines(path):
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(entry, dict) and entry.get("fingerprint") == wanted_fingerprint:
            entry["thoughts"] = [(int(step), str(text)) for step, text in entry.get("thoughts", [])]
            record = EpisodeRecord(**{key: value for key, value in entry.items() if key in known})
            records[record.task, record.seed] = record
    return records


def _lines(path: Path) -> Iterable[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ()
