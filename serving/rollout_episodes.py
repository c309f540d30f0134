"""Reads recorded rollouts back as what reinforcement learning works on: one entry per decision.

Only episodes that are sealed are seen, whatever else a killed server left. Images are read with `RobotDataset`, whose
index a decision's `frame` is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .rollout_format import COLUMNS, PREFIX, STATE, EpisodeFacts
from .rollout_recorder import read_facts


@dataclass(frozen=True)
class RolloutEpisode:
    """One recorded episode with its K decisions.

    Attributes:
        episode_index: In the data set.
        facts: Instruction, outcome, policy versions and the like.
        frames: int64 (K,), index of each decision's row in the data set, for its images.
        states: float32 (K, D_state), physical units.
        chunks: float32 (K, T, D_action), what the policy predicted, physical units.
        executed: int64 (K,), actions of each chunk that ran.
        executed_known: bool (K,), False where `executed` is an assumption.
        control_steps: int64 (K,), control steps before each decision.
        seeds, frozen_steps: int64 (K,).
        query_ages: float32 (K,), seconds.
        policy_versions, thoughts, chunk_ids: K texts; a thought is "" where there was none.
    """

    episode_index: int
    facts: EpisodeFacts
    frames: np.ndarray
    states: np.ndarray
    chunks: np.ndarray
    executed: np.ndarray
    executed_known: np.ndarray
    control_steps: np.ndarray
    seeds: np.ndarray
    frozen_steps: np.ndarray
    query_ages: np.ndarray
    policy_versions: list[str]
    thoughts: list[str]
    chunk_ids: list[str]

    @property
    def valid(self) -> np.ndarray:
        """bool (K, T), True where the chunk's action was executed."""
        return np.arange(self.chunks.shape[1])[None] < self.executed[:, None]


def read_rollouts(root: str | Path, *, start: int = 0) -> list[RolloutEpisode]:
    """The sealed episodes of a recording, from number `start` on.

    Raises:
        FileNotFoundError: There is no data set.
        DatasetError, ValueError: It is damaged, or was not recorded by a policy server.
    """
    from processing.dataset_metadata import read_metadata

    metadata = read_metadata(Path(root))
    if f"{PREFIX}chunk" not in metadata.info.features:
        raise ValueError(f"{root}: has no column {PREFIX}chunk; expected a recording of `syvla-serve --record`")
    firsts = np.concatenate([[0], np.cumsum(metadata.lengths)])
    tables: dict[str, Any] = {}
    episodes = []
    for episode in range(start, metadata.info.total_episodes):
        path = metadata.data_path(episode)
        if path not in tables:
            tables = {path: _read_table(metadata.root / path, metadata.info.features)}  # one file at a time
        episodes.append(_episode(tables[path], metadata.root, episode, int(firsts[episode])))
    return episodes


def _read_table(path: Path, features: dict[str, dict[str, Any]]) -> dict[str, Any]:
    import pyarrow.parquet as pq

    from processing.arrow_columns import to_numpy

    names = [STATE, f"{PREFIX}chunk", *(PREFIX + name for name in COLUMNS), "episode_index"]
    with pq.ParquetFile(path) as file:
        table = file.read(columns=names)
    columns: dict[str, Any] = {}
    for name in names:
        dtype, shape = features[name]["dtype"], tuple(features[name]["shape"])
        if dtype == "string":
            columns[name] = table.column(name).to_pylist()
        else:
            columns[name] = to_numpy(table.column(name), () if shape == (1,) else shape, dtype, name)
    columns[STATE] = columns[STATE].reshape(len(table), -1)
    return columns


def _episode(columns: dict[str, Any], root: Path, episode: int, first: int) -> RolloutEpisode:
    own = np.flatnonzero(columns["episode_index"] == episode)
    rows = own[columns[f"{PREFIX}is_decision"][own]]

    def texts(name: str) -> list[str]:
        return [columns[PREFIX + name][row] or "" for row in rows]

    def numbers(name: str) -> np.ndarray:
        return columns[PREFIX + name][rows]

    return RolloutEpisode(
        episode_index=episode,
        facts=read_facts(root, episode),
        frames=first + rows - own[0],
        states=columns[STATE][rows],
        chunks=numbers("chunk"),
        executed=numbers("executed_steps"),
        executed_known=numbers("executed_known"),
        control_steps=numbers("control_step"),
        seeds=numbers("seed"),
        frozen_steps=numbers("frozen_steps"),
        query_ages=numbers("query_age"),
        policy_versions=texts("policy_version"),
        thoughts=texts("thought"),
        chunk_ids=texts("chunk_id"),
    )
