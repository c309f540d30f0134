"""Reads recorded rollouts back as what reinforcement learning works on: one entry per decision.

Only episodes that are sealed are seen, whatever else a killed server left. Images are read with `RobotDataset`, whose
index a decision's `frame` is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from syvla.serving.contract.rollout_sampler import ChainStep, RolloutSampler

from .format import CHAIN_COLUMNS, CHAIN_STATES, COLUMNS, PREFIX, STATE, EpisodeFacts
from .recorder import read_facts


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
        chains: K steps of the stochastic sampler, None where there was none.
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
    chains: list[ChainStep | None]

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
    from syvla.processing.robot_data.metadata import read_metadata

    metadata = read_metadata(Path(root))
    if f"{PREFIX}chunk" not in metadata.info.features:
        raise ValueError(f"{root}: has no column {PREFIX}chunk; expected a recording of `syvla-serve --record`")
    _check_features(Path(root), metadata.info.features)
    firsts = np.concatenate([[0], np.cumsum(metadata.lengths)])
    tables: dict[str, Any] = {}
    episodes = []
    for episode in range(start, metadata.info.total_episodes):
        path = metadata.data_path(episode)
        if path not in tables:
            tables = {path: _read_table(metadata.root / path, metadata.info.features)}  # one file at a time
        episodes.append(_episode(tables[path], metadata.root, episode, int(firsts[episode])))
    return episodes


def _check_features(root: Path, features: dict[str, dict[str, Any]]) -> None:
    """Raises ValueError unless the columns are declared as the recorder declares them."""
    chunk = list(features[f"{PREFIX}chunk"]["shape"])
    expected: dict[str, tuple[str, list[int]]] = {name: (dtype, [1]) for name, dtype in COLUMNS.items()}
    expected["chunk"] = ("float32", chunk)
    if any(PREFIX + name in features for name in (*CHAIN_STATES, *CHAIN_COLUMNS)):
        expected |= dict.fromkeys(CHAIN_STATES, ("float32", chunk))
        expected |= {name: (dtype, [1]) for name, dtype in CHAIN_COLUMNS.items()}
    for name, (dtype, shape) in expected.items():
        found = features.get(PREFIX + name, {})
        if (found.get("dtype"), list(found.get("shape", []))) != (dtype, shape) or len(chunk) != 2:
            raise ValueError(
                f"{root}: {PREFIX}{name}: expected {dtype} of shape {shape}, meta/info.json says {found.get('dtype')} of shape "
                f"{found.get('shape')}; leave this recording out, or record anew"
            )


def _read_table(path: Path, features: dict[str, dict[str, Any]]) -> dict[str, Any]:
    import pyarrow.parquet as pq

    from syvla.processing.robot_data.arrow_columns import to_numpy

    own = [*COLUMNS, "chunk", *(name for name in (*CHAIN_STATES, *CHAIN_COLUMNS) if PREFIX + name in features)]
    names = [STATE, *(PREFIX + name for name in own), "episode_index"]
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
        chains=_chains(columns, rows, f"{root}: episode {episode}"),
    )


def _chains(columns: dict[str, Any], rows: np.ndarray, where: str) -> list[ChainStep | None]:
    """The sampler's step of each decision. Raises ValueError for one that no sampler can have taken."""
    if f"{PREFIX}chain_step" not in columns:
        return [None] * len(rows)
    chains: list[ChainStep | None] = []
    for row in rows:
        before, after, step, num_steps, level = (
            columns[PREFIX + name][row] for name in (*CHAIN_STATES, *CHAIN_COLUMNS)
        )
        if step == -1:
            chains.append(None)
            continue
        try:
            sampler = RolloutSampler(int(num_steps), float(level))
        except ValueError as error:
            raise ValueError(f"{where}: {PREFIX}chain: {error}; leave it out, or record anew") from None
        if not 0 <= step < sampler.num_steps or not (np.isfinite(before).all() and np.isfinite(after).all()):
            raise ValueError(
                f"{where}: {PREFIX}chain_step: expected 0 to {sampler.num_steps - 1} and finite states, got {step}; leave it "
                "out, or record anew"
            )
        chains.append(ChainStep(before, after, int(step), sampler))
    return chains
