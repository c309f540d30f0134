"""States and actions put together from several features, or parts of them, as GR00T's `meta/modality.json` has it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from syvla.processing.lfs_pointers import reading_problem

from .lerobot_format import IMAGE_DTYPES, dimension_names

MODALITY_PATH = "meta/modality.json"
DEFAULT_KEYS = {"state": "observation.state", "action": "action"}
_MAX_BYTES = 2**24

VectorKey = str | Sequence[str | Mapping[str, Any]]
"""What `state_key` and `action_key` may be: a feature, or a list of features, of parts of `meta/modality.json` by their
names, and of `{"key": feature, "start": first dimension, "end": one behind the last}`."""


@dataclass(frozen=True)
class VectorPart:
    """Dimensions `start` to `stop` (exclusive) of a feature; `name` is what `meta/modality.json` calls them."""

    key: str
    start: int
    stop: int
    name: str | None = None

    def __str__(self) -> str:
        return f"{self.key}[{self.start}:{self.stop}]"


def read_modality(root: Path) -> dict[str, dict[str, Any]]:
    """`meta/modality.json` of a dataset; empty without one.

    Raises:
        ValueError: It is no JSON object of objects.
    """
    path = root / MODALITY_PATH
    if not path.is_file():
        return {}
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"{path.stat().st_size} bytes, more than {_MAX_BYTES}")
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or not all(isinstance(group, dict) for group in content.values()):
            raise ValueError("expected an object of objects")
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{MODALITY_PATH}: {reading_problem(path, f'{error}; restore the file or remove it')}"
        ) from error
    return content


def vector_parts(
    kind: str, key: VectorKey, features: Mapping[str, Mapping[str, Any]], modality: Mapping[str, Mapping[str, Any]]
) -> tuple[VectorPart, ...]:
    """The parts that a vector is put together from, in order.

    Args:
        kind: "state" or "action".
        key: See `VectorKey`. LeRobot's own key alone stands for all parts of `meta/modality.json`, where there is one; in a
            list it is the feature.
        features: Of `meta/info.json`.
        modality: See `read_modality`.

    Raises:
        ValueError: A part does not exist.
    """
    named = modality.get(kind) or {}
    if isinstance(key, str):
        if key == DEFAULT_KEYS[kind] and named:
            return tuple(_named_part(kind, name, named[name], features) for name in named)
        return (_part(f"{kind}_key", key, None, None, features),)
    if not key:
        raise ValueError(f"{kind}_key: the list is empty; name at least one feature")
    parts = []
    for position, entry in enumerate(key):
        where = f"{kind}_key[{position}]"
        if isinstance(entry, str):
            known = entry not in features and entry in named
            parts.append(
                _named_part(kind, entry, named[entry], features) if known else _part(where, entry, None, None, features)
            )
        elif isinstance(entry, Mapping) and set(entry) <= {"key", "start", "end"} and "key" in entry:
            parts.append(_part(where, entry["key"], entry.get("start"), entry.get("end"), features))
        else:
            raise ValueError(f'{where}: expected a name or {{"key": ..., "start": ..., "end": ...}}, got {entry!r:.80}')
    return tuple(parts)


def part_names(parts: Sequence[VectorPart], features: Mapping[str, Mapping[str, Any]]) -> list[str] | None:
    """Names of the dimensions; None if a part has none. Names that parts share are told apart by feature or part."""
    groups: list[list[str]] = []
    for part in parts:
        own = dimension_names(features[part.key])
        if own is not None:
            groups.append(own[part.start : part.stop])
        elif part.name is not None:
            width = part.stop - part.start
            groups.append([part.name] if width == 1 else [f"{part.name}.{number}" for number in range(width)])
        else:
            return None
    names = [name for group in groups for name in group]
    if len(parts) > 1 and len(set(names)) < len(names):
        owners = [part.name or part.key for part in parts]
        names = [f"{owner}.{name}" for owner, group in zip(owners, groups, strict=True) for name in group]
    return names


def join_parts(columns: Mapping[str, np.ndarray], parts: Sequence[VectorPart]) -> np.ndarray:
    """The vectors (n, D) out of the features' columns, each (n, D_feature)."""
    found = [columns[part.key].reshape(len(columns[part.key]), -1)[:, part.start : part.stop] for part in parts]
    return found[0] if len(found) == 1 else np.concatenate(found, axis=1)


def whole(key: str, features: Mapping[str, Mapping[str, Any]]) -> tuple[VectorPart, ...]:
    """A feature as it is."""
    return (VectorPart(key, 0, int(np.prod(features[key]["shape"]))),)


def _named_part(kind: str, name: str, entry: Any, features: Mapping[str, Mapping[str, Any]]) -> VectorPart:
    where = f"{MODALITY_PATH}: {kind}.{name}"
    if not isinstance(entry, Mapping):
        raise ValueError(f"{where}: expected an object with start and end, got {entry!r:.80}")
    key = entry.get("original_key") or DEFAULT_KEYS[kind]
    part = _part(where, key, entry.get("start"), entry.get("end"), features)
    return VectorPart(part.key, part.start, part.stop, name)


def _part(where: str, key: Any, start: Any, stop: Any, features: Mapping[str, Mapping[str, Any]]) -> VectorPart:
    feature = features.get(key) if isinstance(key, str) else None
    if feature is None or feature["dtype"] in (*IMAGE_DTYPES, "string", "language") or len(feature["shape"]) != 1:
        vectors = [k for k, f in features.items() if f["dtype"].startswith("float") and len(f["shape"]) == 1]
        raise ValueError(f"{where}: {key!r} is no vector feature of this dataset; choose one of {vectors}")
    size = feature["shape"][0]
    start, stop = 0 if start is None else start, size if stop is None else stop
    if type(start) is not int or type(stop) is not int or not 0 <= start < stop <= size:
        raise ValueError(f"{where}: expected dimensions within 0 to {size} of {key!r}, got {start!r} to {stop!r}")
    return VectorPart(str(key), start, stop)
