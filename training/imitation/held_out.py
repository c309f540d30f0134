"""The held-out set of a run: which samples each process measures, and what their noise and time are.

Its loss is a function of the set alone: a sample's noise and time belong to its place in its dataset, and sums are taken
over the whole set. Batch size and the number of processes change it by rounding alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from syvla.modeling_syvla.flow_matching import sample_timesteps

NOISE_SEED = 20_260_609
"""Not the run's: losses of runs with other seeds can then be compared."""


class HeldOutSamples(Dataset[dict[str, Any]]):
    """Held-out samples of several datasets, one after the other. An item has its dataset's number as `source`.

    Args:
        robot_datasets: Datasets of robot items.
        multimodal_datasets: Datasets of chats.
        max_samples: Samples of each dataset, spread evenly over it; 0: all.

    Attributes:
        datasets: All of them, robots first.
    """

    def __init__(
        self, robot_datasets: Sequence[Any], multimodal_datasets: Sequence[Any] = (), max_samples: int = 0
    ) -> None:
        self.robot_datasets, self.multimodal_datasets = list(robot_datasets), list(multimodal_datasets)
        self.datasets = [*self.robot_datasets, *self.multimodal_datasets]
        self._positions = [_spread(len(dataset), max_samples) for dataset in self.datasets]
        self._ends = np.cumsum([len(positions) for positions in self._positions])

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def place(self, index: int) -> tuple[int, int]:
        """Dataset and index in that dataset of a sample of the set."""
        source = int(np.searchsorted(self._ends, index, side="right"))
        begin = int(self._ends[source - 1]) if source else 0
        return source, int(self._positions[source][index - begin])

    def __getitem__(self, index: int) -> dict[str, Any]:
        source, position = self.place(index)
        return {**self.datasets[source][position], "source": source}


class NumberedSamples(Dataset[dict[str, Any]]):
    """Samples that carry their place, as `held_out_place` (index in its dataset, whether it counts).

    Args:
        data: [`HeldOutSamples`], or any sequence of items, which is one dataset.
    """

    def __init__(self, data: Any) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: tuple[int, bool]) -> dict[str, Any]:
        index, counts = key
        position = self.data.place(index)[1] if isinstance(self.data, HeldOutSamples) else index
        return {**self.data[index], "held_out_place": (position, counts)}


class HeldOutBatches(Sampler[list[tuple[int, bool]]]):
    """Batches of (index, whether it counts) of one process; every process has as many, as sharded models need.

    Args:
        size: Samples of the set.
        batch_size: Samples per batch of a process.
        rank, world_size: This process among all.
    """

    def __init__(self, size: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        per_process = -(-size // world_size)
        own = range(rank, rank + per_process * world_size, world_size)
        self._samples = [(index, True) if index < size else (0, False) for index in own]
        self._batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self._samples) // self._batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, bool]]]:
        for begin in range(0, len(self._samples), self._batch_size):
            yield self._samples[begin : begin + self._batch_size]


class HeldOutCollator:
    """Adds `held_out_places` int64 (B, 2) to the batches of a collator: index in its dataset, and 1 where it counts."""

    def __init__(self, collate: Callable[[Sequence[dict[str, Any]]], Any]) -> None:
        self.collate = collate

    def __call__(self, items: Sequence[dict[str, Any]]) -> Any:
        batch = self.collate([{k: v for k, v in item.items() if k != "held_out_place"} for item in items])
        batch["held_out_places"] = torch.tensor([item["held_out_place"] for item in items], dtype=torch.int64)
        return batch


def held_out_noise_and_time(places: torch.Tensor, config: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise (B, T, D_action_max) and time (B,) of samples, by their index in their dataset.

    Args:
        places: int64 (B, 2), see `HeldOutCollator`.
        config: The model's [`SyVLAConfig`].
    """
    noise = torch.zeros(len(places), config.chunk_size, config.max_action_dim)
    timestep = torch.zeros(len(places))
    distribution = (config.time_beta_alpha, config.time_beta_beta, config.time_max)
    for row, position in enumerate(places[:, 0].tolist()):
        key = np.random.SeedSequence((NOISE_SEED, position)).generate_state(1, dtype=np.uint64)
        generator = torch.Generator().manual_seed(int(key[0]))
        noise[row] = torch.randn(noise.shape[1:], generator=generator)
        timestep[row] = sample_timesteps(1, *distribution, torch.device("cpu"), generator)[0]
    return noise, timestep


def _spread(size: int, most: int) -> np.ndarray:
    """Indices of at most `most` samples of `size`, evenly spread; 0: all."""
    count = min(size, most) if most else size
    return np.arange(count) * size // max(count, 1)
