"""Statistics of state and action as a dataset's metadata states them, where its frames are not read.

LeRobot keeps them for the whole dataset (`meta/stats.json`) and for every episode. Mean, deviation and extremes of any
choice of episodes follow exactly from those of the episodes; quantiles do not, and are only taken for the whole dataset.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .arrow_columns import to_numpy
from .lerobot_format import STATS_PATH
from .metadata import DatasetMetadata
from .statistics import QUANTILES
from .vector_parts import VectorPart

logger = logging.getLogger(__name__)

MOMENTS = ("mean", "std", "min", "max")
EPISODES_STATS_PATH = "meta/episodes_stats.jsonl"  # v2.1

_MOST_BYTES = 2**31

Statistics = dict[str, dict[str, list[float]]]


class NotStatedError(ValueError):
    """The metadata does not state what is asked for; the message names the fix."""


def stated_statistics(
    metadata: DatasetMetadata,
    episodes: Sequence[int],
    vectors: Mapping[str, Sequence[VectorPart]],
    delta_actions: Sequence[int] | None = None,
) -> Statistics:
    """Statistics of state and action over some episodes.

    Args:
        metadata: Of the dataset.
        episodes: Which.
        vectors: Parts of "state" and of "action".
        delta_actions: As in `RobotDataset.statistics`; those of differences are stated nowhere.

    Returns:
        As `RobotDataset.statistics`; without quantiles unless all episodes are chosen and the dataset states them.

    Raises:
        NotStatedError: They are not stated, or damaged.
    """
    if delta_actions is not None and max(delta_actions, default=-1) >= 0:
        raise NotStatedError(
            "delta_actions: statistics of differences need all frames, which streaming does not read at the start; start from "
            "a checkpoint that has this robot's statistics, or compute them once on a downloaded copy (RobotDataset.statistics)"
        )
    keys = {part.key: int(metadata.info.features[part.key]["shape"][0]) for parts in vectors.values() for part in parts}
    everything = sorted(episodes) == list(range(len(metadata.lengths)))
    found = _of_the_dataset(metadata.root, keys) if everything else None
    if found is None:
        found = _of_episodes(metadata, episodes, keys)
    count = int(metadata.lengths[list(episodes)].sum())
    result = {}
    for kind, parts in vectors.items():
        names = [name for name in (*MOMENTS, *QUANTILES) if all(name in found[part.key] for part in parts)]
        joined = {name: np.concatenate([found[p.key][name][p.start : p.stop] for p in parts]) for name in names}
        result[kind] = {**{name: values.tolist() for name, values in joined.items()}, "count": [count]}
    return result


def pool_statistics(members: Mapping[str, Statistics]) -> Statistics:
    """Statistics of several datasets together, of which some are only stated: exact, and without quantiles.

    Args:
        members: Name of the dataset -> its statistics.

    Raises:
        ValueError: The datasets have different dimensions; names them.
    """
    if len(members) == 1:
        return next(iter(members.values()))
    result = {}
    for kind in ("state", "action"):
        dims = {name: len(statistics[kind]["mean"]) for name, statistics in members.items()}
        if len(set(dims.values())) > 1:
            listed = ", ".join(f"{name} has {dim}" for name, dim in dims.items())
            raise ValueError(
                f"{kind}: datasets of one embodiment have different dimensions: {listed}; name each kind of robot"
            )
        counts = np.array([statistics[kind]["count"][0] for statistics in members.values()], np.float64)
        columns = {name: np.array([s[kind][name] for s in members.values()], np.float64) for name in MOMENTS}
        pooled = {name: values.tolist() for name, values in _pool(columns, counts).items()}
        result[kind] = {**pooled, "count": [int(counts.sum())]}
    return result


def _pool(columns: Mapping[str, np.ndarray], counts: np.ndarray) -> dict[str, np.ndarray]:
    """Moments (D,) of the union of members that have `columns` (members, D) and `counts` (members,) values each."""
    share = (counts / counts.sum())[:, None]
    mean = (share * columns["mean"]).sum(0)
    spread = (share * (columns["std"] ** 2 + (columns["mean"] - mean) ** 2)).sum(0)
    return {"mean": mean, "std": np.sqrt(spread), "min": columns["min"].min(0), "max": columns["max"].max(0)}


def _of_the_dataset(root: Path, keys: Mapping[str, int]) -> dict[str, dict[str, np.ndarray]] | None:
    """Of `meta/stats.json`; None where it lacks one of the features."""
    path = root / STATS_PATH
    if not path.is_file() or path.stat().st_size > _MOST_BYTES:
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not all(set(MOMENTS) <= set(content.get(key, {})) for key in keys):
            return None
        found = {
            key: {
                name: _checked(content[key][name], size, f"{STATS_PATH}: {key}.{name}")
                for name in (*MOMENTS, *QUANTILES)
                if name in content[key]
            }
            for key, size in keys.items()
        }
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise NotStatedError(f"{STATS_PATH}: {error}; restore the file") from error
    if any(name in found[key] for key in keys for name in QUANTILES):
        logger.info("%s: quantiles are those of %s, which not every writer computes exactly", root, STATS_PATH)
    return found


def _of_episodes(
    metadata: DatasetMetadata, episodes: Sequence[int], keys: Mapping[str, int]
) -> dict[str, dict[str, np.ndarray]]:
    stated = (_episodes_v3 if metadata.info.is_v3 else _episodes_v2)(metadata.root, keys)
    if stated is None:
        raise NotStatedError(
            f"statistics: the metadata states none of {', '.join(keys)} for each episode; stream all episodes of a dataset "
            f"with {STATS_PATH}, start from a checkpoint that has this robot's statistics, or download the dataset"
        )
    if missing := [episode for episode in episodes if episode not in stated[0]]:
        raise NotStatedError(f"statistics: the metadata states none of episodes {missing[:10]}; restore it")
    rows = [stated[0][episode] for episode in episodes]
    counts = metadata.lengths[list(episodes)].astype(np.float64)
    return {key: _pool({name: values[rows] for name, values in stated[1][key].items()}, counts) for key in keys}


_PerEpisode = tuple[dict[int, int], dict[str, dict[str, np.ndarray]]] | None
"""(episode -> row, feature -> statistic -> (rows, D))."""


def _episodes_v3(root: Path, keys: Mapping[str, int]) -> _PerEpisode:
    names = {f"stats/{key}/{name}": (key, name) for key in keys for name in MOMENTS}
    rows: list[np.ndarray] = []
    parts: dict[str, list[np.ndarray]] = {column: [] for column in names}
    for path in sorted(root.glob("meta/episodes/*/*.parquet")):
        where = path.relative_to(root).as_posix()
        try:
            with pq.ParquetFile(path) as file:
                if not set(names) <= set(file.schema_arrow.names):
                    return None
                table = file.read(columns=["episode_index", *names])
            rows.append(to_numpy(table.column("episode_index"), (), "int64", f"{where}: episode_index"))
            for column, (key, _) in names.items():
                parts[column].append(to_numpy(table.column(column), (keys[key],), "float64", f"{where}: {column}"))
        except (pa.ArrowException, OSError, ValueError) as error:
            raise NotStatedError(f"{where}: {error}; restore the file") from error
    if not rows:
        return None
    found: dict[str, dict[str, np.ndarray]] = {key: {} for key in keys}
    for column, (key, name) in names.items():
        found[key][name] = _finite(np.concatenate(parts[column]), column)
    return {int(episode): row for row, episode in enumerate(np.concatenate(rows))}, found


def _episodes_v2(root: Path, keys: Mapping[str, int]) -> _PerEpisode:
    path = root / EPISODES_STATS_PATH
    if not path.is_file() or path.stat().st_size > _MOST_BYTES:
        return None
    rows: dict[int, int] = {}
    lists: dict[str, dict[str, list[np.ndarray]]] = {key: {name: [] for name in MOMENTS} for key in keys}
    try:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                if not line.strip():
                    continue
                entry: dict[str, Any] = json.loads(line)
                rows[int(entry["episode_index"])] = len(rows)
                for key, size in keys.items():
                    for name in MOMENTS:
                        value = entry["stats"][key][name]
                        lists[key][name].append(
                            _checked(value, size, f"episode {entry['episode_index']}: {key}.{name}")
                        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise NotStatedError(f"{EPISODES_STATS_PATH}: {error!r}; restore the file") from error
    return (
        (rows, {key: {name: np.stack(values) for name, values in lists[key].items()} for key in keys}) if rows else None
    )


def _checked(value: Any, size: int, where: str) -> np.ndarray:
    values = np.asarray(value, np.float64).reshape(-1)
    if len(values) != size:
        raise ValueError(f"{where} has {len(values)} values, meta/info.json says {size}")
    return _finite(values, where)


def _finite(values: np.ndarray, where: str) -> np.ndarray:
    if not np.isfinite(values).all():
        raise NotStatedError(f"{where}: holds values that are not finite; restore the metadata")
    return values
