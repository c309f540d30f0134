"""The imitation-learning dataset in reinforcement learning: opened for a checkpoint, with the outcome of every episode."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from syvla.processing.normalization import CONSTANT_TOLERANCE, offset_and_scale
from syvla.processing.robot_data.arrow_columns import to_numpy
from syvla.processing.robot_data.robot_dataset import RobotDataset
from syvla.serving.recording.episode_facts import facts_path, read_facts
from syvla.serving.recording.format import PREFIX

OUTCOME_KEYS = ("next.success", "rollout.success", "success")
"""Features that say per frame whether the episode has succeeded; LeRobot's own name comes first."""

SUCCESS = 0.5
"""Least outcome that counts as a success where a truth value is needed. Ours."""

INTERVENTION_KEYS = ("intervention", "is_intervention", "complementary_info.is_intervention")
"""Features that say per frame whether a person acted instead of the policy; the last one is of LeRobot's HIL-SERL."""

STATISTICS_TOLERANCE = 0.5
"""Largest accepted difference of statistics: of means in the checkpoint's standard deviations, of spreads as a share.

Ours: a subset of the episodes that a checkpoint was trained on stays well below it, another robot's or other units do not.
"""


_NOT_THE_READERS = ("path", "weight", "normalization", "units", "delta_actions", "shuffle_files", "license", "note")


def open_expert_datasets(
    specs: Sequence[dict[str, Any]], processor: Any, *, tolerance: float | None = STATISTICS_TOLERANCE
) -> list[RobotDataset]:
    """Open the datasets that a checkpoint was trained on by imitation.

    Args:
        specs: Entries of `robot_datasets`, see `syvla.training.run.arguments.ROBOT_KEYS`; `embodiment` may be left out when the
            checkpoint knows one robot only.
        processor: The checkpoint's [`SyVLAProcessor`]; it has to know every robot.
        tolerance: See `STATISTICS_TOLERANCE`; None: statistics are not compared.

    Raises:
        ValueError: With the problems of all datasets: not to be opened, an unknown robot, other dimensions, statistics
            that differ from the checkpoint's.
    """
    if not specs:
        raise ValueError("robot_datasets: none given; pass the dataset that the policy was fine-tuned on")
    datasets, problems = [], []
    for spec in specs:
        if without_effect := sorted({"accept", "eval_split"} & set(spec)):
            problems.append(
                f"{spec['path']}: {', '.join(without_effect)} of robot_datasets has no effect on expert data: every episode "
                "is an example, and the checkpoint has been compared with it already; leave it out"
            )
            continue
        options = {k: v for k, v in spec.items() if k not in _NOT_THE_READERS}
        name = options.pop("embodiment", None)
        if name is None and len(processor.embodiments) == 1:
            name = next(iter(processor.embodiments))
        if name not in processor.embodiments:
            known = sorted(processor.embodiments) or "none"
            problems.append(
                f"{spec['path']}: embodiment {name!r} is unknown to the checkpoint, which has {known}; name one of these in "
                "robot_datasets, or fine-tune the policy on this robot first (syvla-finetune)"
            )
            continue
        try:
            dataset = RobotDataset(
                spec["path"], embodiment=name, chunk_size=processor.chunk_size, views=processor.views, **options
            )
        except (ValueError, OSError) as error:
            problems.append(f"{spec['path']}: {error}")
            continue
        found = fit_problems(dataset, processor, tolerance)
        problems += [f"{spec['path']}: {problem}" for problem in found]
        datasets.append(dataset)
    if problems:
        raise ValueError("robot_datasets do not fit the checkpoint:\n- " + "\n- ".join(problems))
    return datasets


def fit_problems(dataset: RobotDataset, processor: Any, tolerance: float | None = STATISTICS_TOLERANCE) -> list[str]:
    """Why a dataset cannot stand for what the checkpoint learned from; empty if it can."""
    entry = processor.embodiments[dataset.embodiment]
    problems = []
    unknown = sorted(set(dataset.cameras) - set(processor.views))
    if unknown:
        problems.append(f"cameras: {unknown} are no views of the checkpoint, which has {processor.views}; rename them")
    for kind, values in (("state", dataset.states), ("action", dataset.actions)):
        if values.shape[1] != entry[f"{kind}_dim"]:
            problems.append(
                f"{kind}: {values.shape[1]} dimensions, the checkpoint's {dataset.embodiment!r} has {entry[f'{kind}_dim']};"
                f" choose another {kind}_key"
            )
        elif tolerance is not None and (difference := _difference(values, entry, kind)) > tolerance:
            problems.append(
                f"{kind}: statistics differ from the checkpoint's (by {difference:.2g}, at most {tolerance} is accepted); use "
                "the dataset that it was fine-tuned on, or fine-tune it on this one with recompute_statistics"
            )
    return problems


def _difference(values: np.ndarray, entry: dict[str, Any], kind: str) -> float:
    """Largest over the dimensions of |mean - mean'| / std' and |std - std'| / max(std, std')."""
    statistics = {key: value for key, value in entry["statistics"][kind].items() if key != "floor"}
    if "std" not in statistics:  # nothing to compare spreads with
        return 0.0
    _, scale = offset_and_scale(statistics, "mean_std")  # 1 where the checkpoint's data is constant
    values = values.astype(np.float64)
    shift = np.abs(values.mean(0) - np.asarray(statistics["mean"])) / scale
    constant = np.asarray(statistics["std"]) < scale * CONSTANT_TOLERANCE
    spread = np.where(constant & (values.std(0) < CONSTANT_TOLERANCE), 1.0, values.std(0))
    stretch = np.abs(spread - scale) / np.maximum(spread, scale)
    return float(max(shift.max(), stretch.max()))


def episode_rewards(dataset: RobotDataset, outcome_key: str | None = "auto") -> np.ndarray:
    """Reward at the end of each selected episode: 1 for success, 0 for failure. float64 (episodes,)

    Args:
        dataset: The dataset.
        outcome_key: Feature whose value at an episode's last frame says whether it succeeded: a truth value, or a number
            of at least 0.5, such as LeRobot's `next.success` or `next.reward`. "auto": the first of `OUTCOME_KEYS` that
            the dataset has; of a recording of `syvla-serve` a person's labels; without either all episodes count as
            successes. None: all succeeded.

    Raises:
        ValueError: If the dataset has no such feature, or no episode succeeded.
    """
    if outcome_key == "auto":
        outcome_key = next((key for key in OUTCOME_KEYS if key in dataset.features), None)
        if outcome_key is None and facts_path(dataset.root, 0).parent.is_dir():
            return _labels(dataset)
    if outcome_key is None:
        return np.ones(dataset.num_episodes)
    if outcome_key not in dataset.features:
        raise ValueError(
            f"outcome_key: {dataset.root} has no feature {outcome_key!r}; choose from {sorted(dataset.features)}, or none "
            "if all episodes succeeded"
        )
    rewards = [float(values[-1] >= SUCCESS) for values in _columns(dataset, outcome_key)]
    if not any(rewards):
        raise ValueError(
            f"outcome_key: no episode of {dataset.root} succeeded by {outcome_key!r}; is it the right one?"
        )
    return np.array(rewards)


def human_frames(dataset: RobotDataset) -> np.ndarray | None:
    """Which frames a person acted in, bool (frames,), of a dataset in which a person took over from a policy.

    Returns:
        None for a dataset without one of `INTERVENTION_KEYS`, all of which is a demonstration.

    Raises:
        ValueError: No frame is a person's.
    """
    key = next((key for key in INTERVENTION_KEYS if key in dataset.features), None)
    if key is None and f"{PREFIX}chunk" in dataset.features:
        raise ValueError(
            f"robot_datasets: {dataset.root} is a recording of syvla-serve in which no person acted; a policy's own frames are "
            "no expert's: leave the dataset out"
        )
    if key is None:
        return None
    human = np.concatenate([values >= 0.5 for values in _columns(dataset, key)])
    if not human.any():
        raise ValueError(
            f"{key}: no frame of {dataset.root} is a person's, so that it shows nothing but a policy; leave the dataset out, "
            "or drop the column if all of it is demonstrations"
        )
    return human


def _columns(dataset: RobotDataset, key: str) -> Iterator[np.ndarray]:
    """Values of a column of single numbers, float64 (frames,), episode after episode."""
    import pyarrow.parquet as pq

    tables: dict[Any, tuple[np.ndarray, np.ndarray]] = {}
    for episode in dataset.episodes:
        path = dataset.root / dataset.metadata.data_path(episode)
        if path not in tables:
            with pq.ParquetFile(path) as file:
                table = file.read(columns=["episode_index", key])
            values = to_numpy(table.column(key), (), "float64", key)
            tables[path] = (to_numpy(table.column("episode_index"), (), "int64", "episode_index"), values)
        owner, values = tables[path]
        yield values[owner == episode]


def _labels(dataset: RobotDataset) -> np.ndarray:
    """Outcomes of recorded rollouts, float64 (episodes,)."""
    outcomes = [read_facts(dataset.root, episode).outcome for episode in dataset.episodes]
    if None in outcomes:
        raise ValueError(
            f"{dataset.root}: {outcomes.count(None)} of {len(outcomes)} recorded rollouts have no label; label them, or leave "
            "them out"
        )
    return np.array(outcomes, np.float64)


def split_episodes(count: int, heldout_share: float, seed: int) -> tuple[list[int], list[int]]:
    """Positions of training and held-out episodes; at least one of each.

    Raises:
        ValueError: If there are fewer than two episodes or the share is not in (0, 1).
    """
    if not 0.0 < heldout_share < 1.0:
        raise ValueError(f"heldout_share: expected a number between 0 and 1, got {heldout_share}")
    if count < 2:
        raise ValueError(f"heldout_share: {count} episode cannot be split; record more, at least 2 are needed")
    heldout = min(max(round(heldout_share * count), 1), count - 1)
    order = np.random.default_rng(seed).permutation(count).tolist()
    return sorted(order[heldout:]), sorted(order[:heldout])
