"""Mixing robot and multi-modal data: which sample of which dataset comes next (paper, appendix A).

Every batch holds the configured share of multi-modal samples. Where share x batch size is not whole, batches alternate
between the two nearest counts so that the error stays below one sample over any prefix, on each rank and in sum. Nothing
of the size of a dataset is ever built: an epoch's shuffle is a pseudo-random bijection evaluated index by index.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
from torch.utils.data import Dataset, Sampler

from .augmentation import Augmentation


class MixtureDataset(Dataset[dict[str, Any]]):
    """Several map-style datasets behind one; an index is (dataset number, index in that dataset).

    A third number may be the pass over the dataset that the sample belongs to; it is 0 where it is missing. An item is the
    dataset's own with the dataset number as `source`.

    Args:
        robot_datasets: Datasets of robot items, see `RobotDataset`.
        multimodal_datasets: Datasets of `{"messages", "images"}` items.
        augmentation: Changes robot items by (dataset number, index, pass); None leaves them as they are.
    """

    def __init__(
        self,
        robot_datasets: Sequence[Any],
        multimodal_datasets: Sequence[Any] = (),
        augmentation: Augmentation | None = None,
    ) -> None:
        self.augmentation = augmentation
        self.robot_datasets = list(robot_datasets)
        self.multimodal_datasets = list(multimodal_datasets)
        self.datasets = [*self.robot_datasets, *self.multimodal_datasets]

    def __len__(self) -> int:
        return sum(map(len, self.datasets))

    def __getitem__(self, index: tuple[int, ...]) -> dict[str, Any]:
        source, position, number = index if len(index) == 3 else (*index, 0)
        item = self.datasets[source][position]
        if self.augmentation is not None and source < len(self.robot_datasets):
            item = self.augmentation(item, (source, position, number))
        return {**item, "source": source}


class MixtureBatchSampler(Sampler[list[tuple[int, ...]]]):
    """Batches of (dataset number, index), or of (dataset number, index, pass), for one rank.

    Args:
        robot_sizes: Number of samples of each robot dataset.
        multimodal_sizes: Number of samples of each multi-modal dataset.
        batch_size: Samples per batch on this rank.
        multimodal_share: Share of multi-modal samples (paper: 0.35 pretraining, 0.30 fine-tuning).
        robot_weights, multimodal_weights: How often each dataset is drawn; None: proportional to its size.
        seed: Seeds the shuffles and the choice of dataset.
        rank, world_size: This process among those that train together.
        batches_per_epoch: Length of an epoch; None: until as many robot samples were drawn as there are
            (multi-modal ones where there is no robot).
        with_pass: Whether an index has the number of the pass over its dataset as a third entry, see `MixtureDataset`.
        orders: Dataset number -> the order of its samples, see `FileOrder`; the others are shuffled as a whole.

    Raises:
        ValueError: On empty datasets, a share without data to serve it, or weights that do not fit.
    """

    def __init__(
        self,
        robot_sizes: Sequence[int],
        multimodal_sizes: Sequence[int] = (),
        *,
        batch_size: int,
        multimodal_share: float = 0.30,
        robot_weights: Sequence[float] | None = None,
        multimodal_weights: Sequence[float] | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        batches_per_epoch: int | None = None,
        with_pass: bool = False,
        orders: Mapping[int, Any] | None = None,
    ) -> None:
        if not 0.0 <= multimodal_share <= 1.0:
            raise ValueError(f"multimodal_share: expected a number in [0, 1], got {multimodal_share}")
        if multimodal_share > 0 and not multimodal_sizes:
            raise ValueError(
                f"multimodal_share={multimodal_share} needs multi-modal data; list some, or set multimodal_share=0"
            )
        if multimodal_share < 1 and not robot_sizes:
            raise ValueError("robot_sizes: expected at least one robot dataset")
        if not 0 <= rank < world_size or batch_size < 1:
            raise ValueError(
                f"expected 0 <= rank < world_size and batch_size >= 1, got {rank=} {world_size=} {batch_size=}"
            )
        self.sizes = [*robot_sizes, *multimodal_sizes]
        if min(self.sizes) < 1:
            raise ValueError(f"dataset sizes: expected at least one sample each, got {self.sizes}")
        self.num_robot = len(robot_sizes)
        self.cumulative = (
            _cumulative_shares("robot_weights", robot_weights, robot_sizes),
            _cumulative_shares("multimodal_weights", multimodal_weights, multimodal_sizes),
        )
        self.batch_size, self.seed, self.rank, self.world_size = batch_size, seed, rank, world_size
        self.with_pass, self.orders = with_pass, dict(orders or {})
        self.share = Fraction(multimodal_share).limit_denominator(10**6)
        counted, part = (robot_sizes, 1 - self.share) if self.share < 1 else (multimodal_sizes, self.share)
        self.batches_per_epoch = batches_per_epoch or math.ceil(sum(counted) / (batch_size * world_size * part))
        self._samples = 0  # drawn so far by all ranks together
        self._drawn = np.zeros(len(self.sizes), dtype=np.int64)  # the same per dataset

    def __len__(self) -> int:
        return self.batches_per_epoch

    def __iter__(self) -> Iterator[list[tuple[int, ...]]]:
        for _ in range(self.batches_per_epoch):
            yield self._next_batch()

    def set_epoch(self, epoch: int) -> None:
        """Go to the first batch of an epoch, in constant memory. `transformers.Trainer` calls it before each epoch.

        A run that goes on where its loop stood is there already; a resumed one is taken there.
        """
        samples = epoch * self.batches_per_epoch * self.batch_size * self.world_size
        if samples == self._samples:
            return
        self._drawn[:] = 0
        for kind in (0, 1):
            draws = self._draws_before(kind, samples)
            for begin in range(0, draws, 1 << 20):
                sources = self._sources(kind, begin, min(draws, begin + (1 << 20)))
                self._drawn += np.bincount(sources, minlength=len(self.sizes))
        self._samples = samples

    def state_dict(self) -> dict[str, Any]:
        """Position in the stream; the same on every rank."""
        return {"samples": self._samples, "drawn": self._drawn.tolist(), "sizes": self.sizes, "seed": self.seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at the exact next sample, on any number of ranks.

        Raises:
            ValueError: If the state comes from other datasets or another seed.
        """
        for key in ("sizes", "seed"):
            if state[key] != getattr(self, key):
                raise ValueError(
                    f"sampler state: {key} was {state[key]}, now {getattr(self, key)}; resume with the same data"
                )
        self._samples = int(state["samples"])
        self._drawn = np.asarray(state["drawn"], dtype=np.int64)

    def _next_batch(self) -> list[tuple[int, ...]]:
        first, last = self._samples, self._samples + self.batch_size * self.world_size
        batch: list[tuple[int, ...]] = []
        for kind in (0, 1):  # robot, multi-modal
            begin, end = (self._draws_before(kind, s) for s in (first, last))
            counts = [self._count(kind, rank, first) for rank in range(self.world_size)]
            mine = slice(sum(counts[: self.rank]), sum(counts[: self.rank + 1]))
            sources = self._sources(kind, begin, end)
            draws = np.empty(len(sources), dtype=np.int64)
            for source in np.unique(sources).tolist():
                chosen = sources == source
                draws[chosen] = self._drawn[source] + np.arange(chosen.sum())
                self._drawn[source] += chosen.sum()
            own = sources[mine]
            columns = [own.tolist(), self._indices(own, draws[mine]).tolist()]
            if self.with_pass:
                columns.append((draws[mine] // np.asarray(self.sizes)[own]).tolist())
            batch += zip(*columns, strict=True)
        self._samples = last
        return batch

    def _draws_before(self, kind: int, samples: int) -> int:
        multimodal = math.floor(samples * self.share)
        return multimodal if kind else samples - multimodal

    def _count(self, kind: int, rank: int, first: int) -> int:
        """Samples of a kind in this batch of a rank.

        With the ranks' phases r / R, the floors add up to the floor of the sum (Hermite's identity): the global count is
        as exact as each rank's own.
        """
        done = Fraction(first, self.world_size) * self.share + Fraction(rank, self.world_size)
        multimodal = math.floor(done + self.batch_size * self.share) - math.floor(done)
        return multimodal if kind else self.batch_size - multimodal

    def _sources(self, kind: int, begin: int, end: int) -> np.ndarray:
        """Dataset numbers of draws begin..end of a kind: a low-discrepancy sequence through the weights."""
        golden = 0.6180339887498949  # golden ratio - 1: multiples of it spread most evenly over [0, 1)
        start = _round_keys((self.seed, kind))[0] / 2**64
        points = (start + np.arange(begin, end) * golden) % 1.0
        return np.searchsorted(self.cumulative[kind], points, side="right") + (self.num_robot if kind else 0)

    def _indices(self, sources: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """Turns draws into indices of samples.

        The d-th draw from a dataset of size n is entry d % n of a permutation that belongs to pass d // n. Every sample of
        a dataset is therefore drawn once before any is drawn again.

        Args:
            sources: Number of the dataset of each draw, int64 (n,).
            draws: How many samples were drawn from that dataset before, int64 (n,).

        Returns:
            int64 (n,).
        """
        sizes = np.asarray(self.sizes, dtype=np.int64)[sources]
        passes, positions = np.divmod(draws, sizes)
        keys = np.empty((4, len(draws)), dtype=np.uint64)
        for source, number in set(zip(sources.tolist(), passes.tolist(), strict=True)):
            chosen = (sources == source) & (passes == number)
            keys[:, chosen] = np.array(_round_keys((self.seed, source, number)), dtype=np.uint64)[:, None]
        indices = _permute(positions, sizes, keys)
        for source, number in set(zip(sources.tolist(), passes.tolist(), strict=True)):
            if source in self.orders:
                chosen = (sources == source) & (passes == number)
                indices[chosen] = self.orders[source].indices(positions[chosen], (self.seed, source, number))
        return indices


def shuffled_indices(positions: np.ndarray, size: int, seed: tuple[int, ...]) -> np.ndarray:
    """Entries `positions` (n,) of a pseudo-random permutation of range(size), in constant time and memory each."""
    keys = np.repeat(np.array(_round_keys(seed), dtype=np.uint64)[:, None], len(positions), axis=1)
    return _permute(np.asarray(positions), np.full(len(positions), size), keys)


def _permute(positions: np.ndarray, sizes: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """A four-round Feistel network on the next even power of two, walked until every entry lands inside its range."""
    values, limits = positions.astype(np.uint64), sizes.astype(np.uint64)
    bits = np.ceil(np.log2(np.maximum(sizes, 2))).astype(np.int64)
    bits += (np.left_shift(1, bits) < sizes).astype(np.int64)  # should the logarithm have been rounded down
    half = np.maximum(1, (bits + 1) // 2).astype(np.uint64)
    mask = (np.uint64(1) << half) - np.uint64(1)
    pending = np.arange(len(values))
    while len(pending):
        shift, low = half[pending], mask[pending]
        left, right = values[pending] >> shift, values[pending] & low
        for key in keys[:, pending]:
            mixed = (right ^ key) * np.uint64(0x9E3779B97F4A7C15)  # modulo 2**64
            mixed ^= mixed >> np.uint64(29)
            mixed *= np.uint64(0xBF58476D1CE4E5B9)
            left, right = right, left ^ ((mixed >> np.uint64(32)) & low)
        values[pending] = (left << shift) | right
        pending = pending[values[pending] >= limits[pending]]
    return values.astype(np.int64)


@lru_cache(maxsize=4096)
def _round_keys(seed: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(np.random.SeedSequence(seed).generate_state(4, dtype=np.uint64).tolist())


def _cumulative_shares(name: str, weights: Sequence[float] | None, sizes: Sequence[int]) -> np.ndarray:
    values = np.asarray(sizes if weights is None else weights, dtype=np.float64)
    if len(values) != len(sizes) or (values < 0).any() or (len(sizes) and values.sum() <= 0):
        raise ValueError(f"{name}: expected {len(sizes)} non-negative numbers with a positive sum, got {list(values)}")
    return np.cumsum(values / values.sum())[:-1] if len(sizes) else values
