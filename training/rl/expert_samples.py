"""Expert samples for the update: the frames of successful demonstrations, similar to a rollout's or random."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from syvla.serving.recording.decision import Correction, Rollout
from syvla.training.retrieval.approximate_index import ApproximateIndex
from syvla.training.retrieval.demonstrations import SUCCESS, episode_rewards, human_frames, split_episodes
from syvla.training.retrieval.embedding_store import VIEW_WEIGHTS
from syvla.training.retrieval.exact_index import Neighbors, SimilarSampleIndex
from syvla.training.retrieval.image_encoders import load_encoder


class ExpertSamples:
    """The imitation data as one list of rows, frame after frame and dataset after dataset.

    Failed demonstrations are left out, and so are the policy's own frames of a dataset in which a person took over: they are no
    expert's. Some episodes are held out to measure how far a policy drifts.

    Args:
        datasets: [`RobotDataset`]s.
        heldout_share: Share of the successful episodes that is held out, at least one.
        outcome_key: See `expert_dataset.episode_rewards`.
        seed: Of the choice of held-out episodes.

    Attributes:
        usable: bool (rows,), True for a person's rows of successful episodes that are not held out.
        heldout: bool (rows,).
        corrections: A person's corrections in rollouts; their rows come after those of the datasets.
        corrected_ids: Names of these rollouts.

    Raises:
        ValueError: If there are fewer than two successful episodes.
    """

    def __init__(
        self, datasets: Sequence[Any], *, heldout_share: float = 0.05, outcome_key: str | None = "auto", seed: int = 0
    ) -> None:
        self.datasets = list(datasets)
        lengths = [int(n) for dataset in self.datasets for n in dataset.episode_lengths]
        rewards = np.concatenate([episode_rewards(dataset, outcome_key) for dataset in self.datasets])
        self._episode_ends = np.cumsum(lengths)
        self._dataset_ends = np.cumsum([len(dataset) for dataset in self.datasets])
        owner = np.repeat(np.arange(len(lengths)), lengths)
        human = np.concatenate([_human_frames(dataset) for dataset in self.datasets])
        good = np.flatnonzero((rewards >= SUCCESS) & np.isin(np.arange(len(lengths)), owner[human]))
        if len(good) < 2:
            raise ValueError(
                f"robot_datasets: {len(good)} successful episode(s) in all; the set of expert samples needs at least 2, one of "
                "which is held out"
            )
        used, heldout = (good[part] for part in split_episodes(len(good), heldout_share, seed))
        self.usable, self.heldout = np.isin(owner, used) & human, np.isin(owner, heldout) & human
        self._policy_next = _next_policy_frame(human)
        self._tasks = np.concatenate([np.array(d.tasks, dtype=object)[d.task_indices] for d in self.datasets])
        self.index: SimilarSampleIndex | None = None
        self.approximate: ApproximateIndex | None = None
        self.corrections: list[Correction] = []
        self.corrected_ids: list[str] = []

    def __len__(self) -> int:
        return int(self._dataset_ends[-1])

    def open_index(
        self,
        folder: str,
        encoder: str,
        device: str = "cpu",
        weights: Any = None,
        approximate: str | None = None,
        **recall: Any,
    ) -> None:
        """Open the vectors of these datasets for `similar`; see [`SimilarSampleIndex`] for what is refused.

        `approximate` is the factory string of an [`ApproximateIndex`], whose further options are `recall`; None: exact.
        """
        model = load_encoder(encoder, device)
        self.index = SimilarSampleIndex(folder, model, self.datasets, weights or VIEW_WEIGHTS, self.usable)
        self.approximate = ApproximateIndex(self.index, approximate, **recall) if approximate else None

    @property
    def fingerprints(self) -> dict[str, str]:
        """What `similar` searches; empty without an index."""
        if self.index is None:
            return {}
        return {"dataset": self.index.manifest.dataset, "encoder": self.index.manifest.encoder}

    @property
    def instructions(self) -> tuple[str, ...]:
        """Tasks of which there are expert samples, sorted."""
        return tuple(sorted(set(self._tasks[self.usable].tolist())))

    def take_corrections(self, rollouts: Sequence[Rollout]) -> None:
        """Makes the corrections in these rollouts, and no others, expert samples."""
        self.corrected_ids = [rollout.facts.episode_id for rollout in rollouts]
        self.corrections = [correction for rollout in rollouts for correction in rollout.corrections]

    @property
    def correction_rows(self) -> np.ndarray:
        """Rows of the corrections, int64."""
        return len(self) + np.arange(len(self.corrections))

    def locate(self, row: int) -> tuple[Any, int]:
        """Dataset of a row and the frame's index there."""
        position = int(np.searchsorted(self._dataset_ends, row, side="right"))
        return self.datasets[position], row - int(self._dataset_ends[position] - len(self.datasets[position]))

    def item(self, row: int, *, thoughts: bool = True) -> dict[str, Any]:
        """A robot item as `SyVLAProcessor.collate` takes it; of a correction `ends_episode` says whether the policy went on."""
        if row >= len(self):
            correction = self.corrections[row - len(self)]
            return {**correction.item(self.datasets[0].chunk_size), "ends_episode": correction.ends_episode}
        dataset, index = self.locate(row)
        item = dataset[index]
        steps = int(self._policy_next[row]) - row  # of the person, before the policy went on
        if row + steps < self.episode_end(row):
            item = {
                **item,
                "action_is_pad": np.asarray(item["action_is_pad"]) | (np.arange(len(item["action_is_pad"])) >= steps),
                "ends_episode": False,
            }
        return item if thoughts else {**item, "thought": None}

    def following(self, row: int, step: int) -> list[int]:
        """The row and those every `step` frames after it in its episode: where decisions would be made."""
        return list(range(row, self.episode_end(row), step))

    def episode_end(self, row: int) -> int:
        """The row after the last one of this row's episode, or of a person's actions until the policy went on."""
        if row >= len(self):
            return row + len(self.corrections[row - len(self)].commands)
        return int(self._episode_ends[np.searchsorted(self._episode_ends, row, side="right")])

    def similar(self, samples: Sequence[dict[str, np.ndarray]], k: int, tasks: Sequence[str] | None) -> Neighbors:
        """The k most similar usable rows of samples {view: image}; with an approximate index some may be missed.

        Raises:
            ValueError: If no index is open, or there is no sample of a task.
        """
        if self.index is None:
            raise ValueError("retrieval: no vectors are open; encode the data (syvla-encode) and pass their folder")
        index = self.index if self.approximate is None else self.approximate
        return index.search(self.index.encode(samples), k, tasks)

    def require_tasks(self, tasks: Sequence[str]) -> None:
        """Raises ValueError for a task that `similar` has no sample of."""
        assert self.index is not None
        for task in dict.fromkeys(tasks):
            self.index.rows_of(task)

    def random(self, count: int, k: int, tasks: Sequence[str] | None, generator: np.random.Generator) -> Neighbors:
        """k random usable rows for each of `count` samples, of the same task where `tasks` says so."""
        rows = np.empty((count, k), np.int64)
        pools = {task: self._pool(task) for task in ([None] if tasks is None else set(tasks))}
        for number in range(count):
            rows[number] = generator.choice(pools[None if tasks is None else tasks[number]], k)
        return Neighbors(rows, np.full((count, k), np.nan, np.float32))

    def _pool(self, task: str | None) -> np.ndarray:
        pool = np.flatnonzero(self.usable if task is None else self.usable & (self._tasks == task))
        if not len(pool):
            known = sorted(set(self._tasks[self.usable]))
            raise ValueError(
                f"expert samples: none of the task {task!r}, only of {known[:10]}; add demonstrations of it, or draw from all "
                "tasks (same_task=False)"
            )
        return pool

    def heldout_rows(self, count: int, seed: int) -> np.ndarray:
        """At most `count` held-out rows, always the same ones."""
        pool = np.flatnonzero(self.heldout)
        return np.sort(np.random.default_rng(seed).choice(pool, min(count, len(pool)), replace=False))


def _next_policy_frame(human: np.ndarray) -> np.ndarray:
    """The first row from each row on in which a policy acted, int64; the number of rows where none follows."""
    rows = np.where(human, len(human), np.arange(len(human)))
    return np.minimum.accumulate(rows[::-1])[::-1]


def _human_frames(dataset: Any) -> np.ndarray:
    """bool (frames,); all of a dataset of demonstrations."""
    human = human_frames(dataset)
    return np.ones(len(dataset), bool) if human is None else human
