"""Reads recorded rollouts back as what reinforcement learning works on.

Only episodes that are sealed are seen, whatever else a killed server left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from syvla.serving.contract.rollout_sampler import ChainStep, RolloutSampler

from .decision import Correction, Decision, Rollout, StoredImages
from .episode_facts import EpisodeFacts, read_facts
from .format import ACTION, CHAIN_COLUMNS, CHAIN_STATES, COLUMNS, INTERVENTION, PREFIX, STATE


def read_rollouts(
    root: str | Path, *, cameras: Mapping[str, str] | None = None, episodes: Sequence[int] | None = None
) -> list[Rollout]:
    """The sealed episodes of a recording.

    Args:
        root: Folder of the dataset.
        cameras: View to camera feature; None: inferred from the features' names.
        episodes: Numbers of the episodes; None: all.

    Raises:
        FileNotFoundError: There is no dataset.
        DatasetError, ValueError: It is damaged, or was not recorded by a policy server.
    """
    from syvla.processing.robot_data.metadata import read_metadata
    from syvla.processing.robot_data.robot_dataset import RobotDataset

    metadata = read_metadata(Path(root))
    if f"{PREFIX}chunk" not in metadata.info.features:
        raise ValueError(f"{root}: has no column {PREFIX}chunk; expected a recording of `syvla-serve --record`")
    _check_features(Path(root), metadata.info.features)
    numbers = list(range(metadata.info.total_episodes)) if episodes is None else list(episodes)
    if not numbers:
        return []
    chosen = None if cameras is None else dict(cameras)
    dataset = RobotDataset(root, embodiment="", cameras=chosen, episodes=numbers)
    tables: dict[str, Any] = {}
    rollouts = []
    for position, episode in enumerate(numbers):
        path = metadata.data_path(episode)
        if path not in tables:
            tables = {path: _read_table(metadata.root / path, metadata.info.features)}  # one file at a time
        facts = read_facts(metadata.root, episode)
        rollouts.append(_rollout(tables[path], facts, dataset, position, f"{root}: episode {episode}"))
    return rollouts


def _check_features(root: Path, features: dict[str, dict[str, Any]]) -> None:
    """Raises ValueError unless the columns are declared as the recorder declares them."""
    chunk = list(features[f"{PREFIX}chunk"]["shape"])
    expected: dict[str, tuple[str, list[int]]] = {name: (dtype, [1]) for name, dtype in COLUMNS.items()}
    expected["chunk"] = ("float32", chunk)
    if any(PREFIX + name in features for name in (*CHAIN_STATES, *CHAIN_COLUMNS)):
        expected |= dict.fromkeys(CHAIN_STATES, ("float32", chunk))
        expected |= {name: (dtype, [1]) for name, dtype in CHAIN_COLUMNS.items()}
    if INTERVENTION in features and features[INTERVENTION].get("dtype") != "bool":
        raise ValueError(
            f"{root}: {INTERVENTION}: expected bool, meta/info.json says {features[INTERVENTION].get('dtype')}"
        )
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
    names = [STATE, ACTION, *(PREFIX + name for name in own), "episode_index"]
    names += [INTERVENTION] if INTERVENTION in features else []
    with pq.ParquetFile(path) as file:
        table = file.read(columns=names)
    columns: dict[str, Any] = {}
    for name in names:
        dtype, shape = features[name]["dtype"], tuple(features[name]["shape"])
        if dtype == "string":
            columns[name] = table.column(name).to_pylist()
        else:
            columns[name] = to_numpy(table.column(name), () if shape == (1,) else shape, dtype, name)
    for name in (STATE, ACTION):
        columns[name] = columns[name].reshape(len(table), -1)
    return columns


def _rollout(columns: dict[str, Any], facts: EpisodeFacts, dataset: Any, position: int, where: str) -> Rollout:
    own = np.flatnonzero(columns["episode_index"] == dataset.episodes[position])
    rows = own[columns[f"{PREFIX}is_decision"][own]]
    first = int(dataset.episode_starts[position])
    chains = _chains(columns, rows, where)
    corrections, corrected = _corrections(columns, own, facts, dataset, first)
    decisions = []
    for row, chain in zip(rows, chains, strict=True):
        in_dataset = first + int(row - own[0])
        value = {name: columns[PREFIX + name][row] for name in ("chunk", *COLUMNS)}
        decisions.append(
            Decision(
                images=StoredImages(dataset, in_dataset),
                state=columns[STATE][row],
                instruction=dataset.tasks[dataset.task_indices[in_dataset]],
                embodiment=facts.embodiment,
                chunk=value["chunk"],
                seed=int(value["seed"]),
                policy_version=value["policy_version"] or "",
                thought=value["thought"] or None,
                executed=int(value["executed_steps"]),
                executed_known=bool(value["executed_known"]),
                control_step=int(value["control_step"]),
                frozen_steps=int(value["frozen_steps"]),
                query_age=float(value["query_age"]),
                chain=chain,
                taken_over=int(value["decision_index"]) in corrected,
            )
        )
    last = first + int(dataset.episode_lengths[position]) - 1
    final = replace(decisions[-1], images=StoredImages(dataset, last), state=columns[STATE][own[-1]])
    return Rollout(facts, decisions, final, corrections)


def _corrections(
    columns: dict[str, Any], own: np.ndarray, facts: EpisodeFacts, dataset: Any, first: int
) -> tuple[tuple[Correction, ...], set[int]]:
    """The control steps of a person in an episode, and the numbers of the decisions that they followed.

    Args:
        columns: Of the file.
        own: The episode's rows in it.
        facts, dataset: Of the episode.
        first: The episode's first row in the dataset.
    """
    if INTERVENTION not in columns:
        return (), set()
    human = columns[INTERVENTION][own].astype(bool)
    found = []
    for place in np.flatnonzero(human):
        policy = np.flatnonzero(~human[place:])
        end = place + int(policy[0]) if len(policy) else len(own)
        row = first + int(place)
        found.append(
            Correction(
                images=StoredImages(dataset, row),
                state=columns[STATE][own[place]],
                instruction=dataset.tasks[dataset.task_indices[row]],
                embodiment=facts.embodiment,
                commands=columns[ACTION][own[place:end]],
                ends_episode=end == len(own),
            )
        )
    return tuple(found), {int(number) for number in columns[f"{PREFIX}decision_index"][own[human]]}


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
