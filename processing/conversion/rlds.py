"""RLDS: the folders of tensorflow-datasets that Open X-Embodiment comes in, read without TensorFlow.

A folder holds `dataset_info.json`, `features.json` and shards `NAME-SPLIT.tfrecord-00000-of-00010`, one episode per record.
Within a record the steps' features lie one after the other: `steps/observation/image` is a list of n encoded pictures,
`steps/action` one of n x D numbers. Keys here are those below `steps/`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .images import decode_image
from .mapping import presets
from .source import MAX_FRAMES, CameraFrames, EpisodeReference, SourceEpisode, SourceError
from .tfrecord import Example, Record, index_records, read_record

_INFO, _FEATURES = "dataset_info.json", "features.json"
_SHARD = re.compile(r"(?P<name>.+)-(?P<split>[^-]+)\.tfrecord-(?P<number>\d{5,})-of-(?P<total>\d{5,})")
_MAX_JSON_BYTES = 64 * 2**20
_MAX_DEPTH = 20
_SAME_LAYOUT = {"droid_100": "droid", "bridge_orig": "bridge_dataset"}


@dataclass(frozen=True)
class Leaf:
    """A feature of a step: its kind ("image", "text", "numbers" or "other") and the size of a step's value."""

    kind: str
    size: int = 1
    what: str = ""


@dataclass(frozen=True)
class RldsSource:
    """A folder of tensorflow-datasets, the one with `features.json` or one above it.

    Attributes:
        root: As given.
        split: Which split; None takes all.
    """

    root: Path
    split: str | None = None
    format: str = "rlds"

    @property
    def folder(self) -> Path:
        """The folder with `features.json`; SourceError if there is none, or several."""
        found = [self.root] if (self.root / _FEATURES).is_file() else []
        found = found or sorted(path.parent for path in self.root.glob(f"*/{_FEATURES}"))
        found = found or sorted(path.parent for path in self.root.glob(f"*/*/{_FEATURES}"))
        if len(found) != 1:
            what = [str(path.relative_to(self.root)) for path in found] or "none"
            raise SourceError(f"{self.root}: expected one folder with {_FEATURES}, found {what}; pass one of them")
        return found[0]

    @property
    def name(self) -> str:
        """Name of the dataset, such as "fractal20220817_data"."""
        return str(_read_json(self.folder / _INFO).get("name"))

    def episodes(self) -> list[EpisodeReference]:
        folder = self.folder
        info = _read_json(folder / _INFO)
        if info.get("fileFormat", "tfrecord") != "tfrecord":
            raise SourceError(
                f"{folder}: fileFormat is {info['fileFormat']!r}, expected 'tfrecord'; prepare it as such"
            )
        shards: dict[str, dict[int, Path]] = {}
        totals: dict[str, int] = {}
        for path in sorted(folder.iterdir()):
            match = _SHARD.fullmatch(path.name)
            if match and self.split in (None, match["split"]):
                shards.setdefault(match["split"], {})[int(match["number"])] = path
                totals[match["split"]] = int(match["total"])
        if not shards:
            wanted = "" if self.split is None else f" of split {self.split!r}"
            raise SourceError(
                f"{folder}: no files NAME-SPLIT.tfrecord-00000-of-00001{wanted}; the download is incomplete"
            )
        lengths = _shard_lengths(info)
        found: list[EpisodeReference] = []
        for split, files in shards.items():
            if totals[split] > 1_000_000:
                raise SourceError(f"{folder}: split {split} of {totals[split]} files; the names are wrong")
            for number in range(totals[split]):
                shard = files.get(number)
                if shard is None:
                    name = f"{split}, file {number} of {totals[split]}"
                    found.append(
                        EpisodeReference(name, folder, problem="the file is missing; the download is incomplete")
                    )
                    continue
                expected = lengths.get(split, [])
                found += _episodes_of(shard, expected[number] if number < len(expected) else None)
        return found

    @contextmanager
    def open(self, reference: EpisodeReference) -> Iterator[SourceEpisode]:
        offset, length = map(int, reference.part.split(":"))
        example = Example(read_record(reference.path, Record(offset, length)))
        vectors: dict[str, np.ndarray] = {}
        cameras: dict[str, CameraFrames] = {}
        texts: dict[str, str] = {}
        skipped: list[str] = []
        for key, leaf in _step_features(_read_json(self.folder / _FEATURES)).items():
            name = f"steps/{key}"
            if leaf.kind == "other" or name not in example:
                skipped.append(f"{key} ({leaf.what or 'not in the record'})")
            elif leaf.kind == "image":
                blobs = example.blobs(name)
                cameras[key] = CameraFrames(len(blobs), partial(_decoded, key, blobs))
            elif leaf.kind == "text":
                lines = {bytes(blob) for blob in example.blobs(name)}
                if len(lines) == 1:
                    texts[key] = lines.pop().decode("utf-8", errors="replace")
                else:
                    skipped.append(f"{key} (changes within an episode)")
            else:
                values = example.numbers(name)
                if len(values) % leaf.size or len(values) // leaf.size > MAX_FRAMES:
                    raise SourceError(
                        f"{key}: {len(values)} numbers, expected {leaf.size} per step as {_FEATURES} says"
                    )
                vectors[key] = values.reshape(-1, leaf.size)
        yield SourceEpisode(vectors, cameras, texts, tuple(skipped))

    def preset(self) -> str | None:
        """`oxe_NAME`, where the package has one."""
        name = f"oxe_{_SAME_LAYOUT.get(self.name, self.name)}"
        return name if name in presets() else None


def _episodes_of(path: Path, expected: int | None) -> list[EpisodeReference]:
    records, problem = index_records(path)
    found = [
        EpisodeReference(f"{path.name}#{number}", path, f"{record.offset}:{record.length}")
        for number, record in enumerate(records)
    ]
    if problem is None and expected is not None and len(records) != expected:
        problem = f"holds {len(records)} of {expected} episodes; the download is incomplete"
    if problem is not None:
        lost = "" if expected is None else f" ({max(expected - len(records), 0)} episodes are lost)"
        found.append(EpisodeReference(f"{path.name} from #{len(records)} on", path, problem=f"{problem}{lost}"))
    return found


def _decoded(key: str, blobs: Sequence[memoryview]) -> Iterator[np.ndarray]:
    for index, blob in enumerate(blobs):
        try:
            yield decode_image(bytes(blob))
        except SourceError as error:
            raise SourceError(f"{key}: frame {index}: {error}") from error


def _shard_lengths(info: dict[str, Any]) -> dict[str, list[int]]:
    try:
        return {split["name"]: [int(n) for n in split.get("shardLengths", [])] for split in info.get("splits", [])}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SourceError(f"{_INFO}: splits are not as tensorflow-datasets writes them ({error!r})") from error


def _step_features(features: dict[str, Any]) -> dict[str, Leaf]:
    """Features of a step by their path, of what `features.json` says."""
    try:
        steps = features["featuresDict"]["features"]["steps"]["sequence"]["feature"]
        return dict(_leaves(steps, "", 0))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SourceError(f"{_FEATURES}: no RLDS dataset: expected a dataset of steps ({error!r})") from error


def _leaves(feature: dict[str, Any], path: str, depth: int) -> Iterator[tuple[str, Leaf]]:
    if depth > _MAX_DEPTH:
        raise ValueError("nested too deeply")
    kind = str(feature.get("pythonClassName", "")).rsplit(".", 1)[-1]
    if "featuresDict" in feature:
        for name, inner in feature["featuresDict"]["features"].items():
            yield from _leaves(inner, f"{path}/{name}" if path else name, depth + 1)
    elif "image" in feature:
        dimensions = [int(n) for n in feature["image"]["shape"].get("dimensions", [])]
        color = len(dimensions) == 3 and dimensions[2] == 3 and feature["image"].get("dtype", "uint8") == "uint8"
        yield path, Leaf("image") if color else Leaf("other", what=f"{kind} {dimensions}, no color picture")
    elif "text" in feature:
        yield path, Leaf("text")
    elif "tensor" in feature:
        yield path, _tensor(feature["tensor"], kind)
    else:
        yield path, Leaf("other", what=kind or "unknown")


def _tensor(tensor: dict[str, Any], kind: str) -> Leaf:
    dimensions = [int(n) for n in tensor.get("shape", {}).get("dimensions", [])]
    dtype = str(tensor.get("dtype", ""))
    if dtype in ("string", "object"):
        return Leaf("text") if not dimensions else Leaf("other", what=f"{kind} of texts {dimensions}")
    if str(tensor.get("encoding", "none")).lower() not in ("none", "", "0"):
        return Leaf("other", what=f"{kind} packed as {tensor['encoding']}")
    if any(n < 1 for n in dimensions):
        return Leaf("other", what=f"{kind} of varying size {dimensions}")
    return Leaf("numbers", int(np.prod(dimensions, dtype=np.float64)))


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise SourceError(f"{path} is missing; pass a folder that tensorflow-datasets prepared")
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise SourceError(f"{path}: {path.stat().st_size} bytes, expected at most {_MAX_JSON_BYTES}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path}: no valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise SourceError(f"{path}: expected an object, got {type(value).__name__}")
    return value
