"""One evaluation in parts, each on a machine of its own, and their union.

Part k of n gets every n-th episode, from the k-th on: every part has its share of each task. Episodes are named by task and
seed, so an evaluation in parts has the outcomes of one that ran whole.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from syvla.durable_files import append_json_lines

from .closed_loop_result import ClosedLoopResult
from .episode_records import EpisodeRecord, fingerprint, read_records

Job = TypeVar("Job")

_SAME_FACTS = ("tasks", "episodes", "seed", "environment", "control_rate", "control_hz")
_FREE_VERSIONS = ("python", "websockets", "msgpack")
"""Packages whose version cannot change an outcome. Any other may: the simulator's, the policy's, ours."""


@dataclass(frozen=True)
class Shard:
    """Part `index` (from 1) of `count`; as text "2/8"."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """The shard that a text such as "2/8" names.

        Raises:
            ValueError: If it names none.
        """
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise ValueError(f"shard: expected K/N with 1 <= K <= N, such as 2/8, got {text!r}")
        return cls(int(found[1]), int(found[2]))

    def take(self, jobs: Sequence[Job]) -> list[Job]:
        """This part of the jobs.

        Raises:
            ValueError: If nothing is left for it.
        """
        if self.count > len(jobs):
            raise ValueError(
                f"shard: {self} of {len(jobs)} episodes leaves parts without any; take at most {len(jobs)} parts"
            )
        return list(jobs[self.index - 1 :: self.count])

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


@dataclass(frozen=True)
class _Part:
    folder: Path
    shard: Shard
    settings: Mapping[str, Any]
    run: Mapping[str, Any]
    seconds: float
    records: Mapping[tuple[str, int], EpisodeRecord]


def merge_shards(folders: Sequence[str | Path], output: str | Path) -> ClosedLoopResult:
    """The evaluation whose parts lie in `folders`, as if it had run whole.

    `episodes.jsonl` and the recordings are written to `output`; the caller writes the summary.

    Raises:
        FileNotFoundError: If a folder has no summary.
        ValueError: If a part is missing, there twice, not finished, or of another evaluation, or `output` has episodes.
    """
    output = Path(output)
    if (output / "episodes.jsonl").exists():
        raise ValueError(f"{output}: has an evaluation already; name another --output")
    parts = sorted((_read_part(Path(folder)) for folder in folders), key=lambda part: part.shard.index)
    _check_parts(parts)
    keys = _episodes(parts[0].run)
    records = []
    for number, key in enumerate(keys):  # dealt out as by `Shard.take`
        part = parts[number % len(parts)]
        if key not in part.records:
            task, seed = key
            raise ValueError(
                f"{part.folder}: shard {part.shard} lacks {task}, seed {seed}; run it again with the same --output, which runs "
                "what is missing"
            )
        records.append(part.records[key])
    output.mkdir(parents=True, exist_ok=True)
    for part in parts:
        _copy_recordings(part, output)
    append_json_lines(output / "episodes.jsonl", [record.to_dict() for record in records])
    run = {key: value for key, value in parts[0].run.items() if key != "shard"}
    run["merged"] = [
        {"shard": str(part.shard), "seconds": part.seconds, **_machine(part.run)} for part in parts
    ]  # without the folders, which mean nothing elsewhere
    return ClosedLoopResult(records, dict(parts[0].settings), sum(part.seconds for part in parts), run)


def _read_part(folder: Path) -> _Part:
    path = folder / "summary.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder}: no summary.json; expected the --output of a finished syvla-eval --shard K/N"
        )
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        settings, run, seconds = summary["settings"], summary["run"], float(summary["seconds"])
        entry = run.get("shard")
        shard = None if entry is None else Shard.parse(entry["part"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: no summary of syvla-eval ({type(error).__name__}: {error})") from error
    if shard is None:
        raise ValueError(f"{folder}: is no part of an evaluation; expected the --output of syvla-eval --shard K/N")
    records = read_records(folder / "episodes.jsonl", fingerprint(settings), with_errors=True)
    return _Part(folder, shard, settings, run, seconds, records)


def _check_parts(parts: Sequence[_Part]) -> None:
    first = parts[0]
    for part in parts[1:]:
        differing = {
            f"settings.{name}": (first.settings.get(name), part.settings.get(name))
            for name in sorted({*first.settings, *part.settings})
        }
        differing |= {name: (first.run.get(name), part.run.get(name)) for name in _SAME_FACTS}
        mine, theirs = first.run.get("versions", {}), part.run.get("versions", {})
        for name in sorted({*mine, *theirs} - set(_FREE_VERSIONS)):
            differing[f"version of {name}"] = (mine.get(name), theirs.get(name))
        differing["number of shards"] = (first.shard.count, part.shard.count)
        differing["episodes of the whole"] = (first.run["shard"]["seeds"], part.run["shard"]["seeds"])
        for name, (ours, others) in differing.items():
            if ours != others:
                raise ValueError(
                    f"{name}: {first.folder} has {ours!r} and {part.folder} has {others!r}, so they are not parts of one "
                    "evaluation; evaluate all shards alike"
                )
    wanted, have = set(range(1, first.shard.count + 1)), [part.shard.index for part in parts]
    if len(set(have)) < len(have):
        twice = sorted(index for index in set(have) if have.count(index) > 1)
        raise ValueError(f"shards {twice} of {first.shard.count} came more than once; name each folder once")
    if missing := sorted(wanted - set(have)):
        raise ValueError(f"shards {missing} of {first.shard.count} are missing; merge all of them")


def _episodes(run: Mapping[str, Any]) -> list[tuple[str, int]]:
    """(task, seed) of the whole evaluation, in its order."""
    return [(str(task), int(seed)) for task in run["tasks"] for seed in run["shard"]["seeds"]]


def _machine(run: Mapping[str, Any]) -> dict[str, Any]:
    return {name: run[name] for name in ("platform", "cpus") if name in run}


def _copy_recordings(part: _Part, output: Path) -> None:
    for record in part.records.values():
        if record.video is None or not (part.folder / record.video).is_file():
            continue
        target = output / "videos" / Path(record.video).name  # never beyond the folder, whatever the record says
        target.parent.mkdir(parents=True, exist_ok=True)
        source = part.folder / "videos" / target.name
        for one, other in ((source, target), (source.with_suffix(".png"), target.with_suffix(".png"))):
            if one.is_file():
                shutil.copy2(one, other)
