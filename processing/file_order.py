"""An order of a dataset's samples that needs few files at a time, for data of which only a part can be near.

A shuffle of all samples meets nearly every file again and again, and a dataset that does not fit on the disk would be fetched
many times over. Here the dataset is cut into runs of samples that need the same files. A pass shuffles the runs, and then the
samples within `window` runs at a time. Every sample is still drawn once per pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .mixture import shuffled_indices


class FileOrder:
    """A permutation of a dataset's samples for every pass; the same on every machine.

    Args:
        runs: Samples of each run of consecutive samples that need the same files, int64 (R,).
        window: Runs that are shuffled together; from R on it is a shuffle of all samples.

    Raises:
        ValueError: The window is no positive integer, or there are no samples.
    """

    def __init__(self, runs: Sequence[int] | np.ndarray, window: int) -> None:
        if isinstance(window, bool) or not isinstance(window, int) or window < 1:
            raise ValueError(f"shuffle_files: expected a number of runs of files of at least 1, got {window!r}")
        self.runs, self.window = np.asarray(runs, dtype=np.int64), window
        if not len(self.runs) or self.runs.min() < 1:
            raise ValueError(f"runs: expected at least one sample each, got {self.runs.tolist()[:10]}")
        self._starts = np.cumsum(self.runs) - self.runs
        self._passes: dict[tuple[int, ...], tuple[np.ndarray, np.ndarray]] = {}

    def indices(self, positions: np.ndarray, seed: tuple[int, ...]) -> np.ndarray:
        """The samples at some positions of a pass.

        Args:
            positions: int64 (n,), each below the number of samples.
            seed: Of the pass.

        Returns:
            int64 (n,).
        """
        order, ends = self._order(seed)
        last = np.minimum(np.arange(self.window - 1, len(order) + self.window - 1, self.window), len(order) - 1)
        window_ends = ends[last]
        windows = np.searchsorted(window_ends, positions, side="right")
        found = np.empty(len(positions), dtype=np.int64)
        for window in np.unique(windows).tolist():
            chosen = windows == window
            begin = int(window_ends[window - 1]) if window else 0
            size = int(window_ends[window]) - begin
            places = begin + shuffled_indices(positions[chosen] - begin, size, (*seed, window + 1))
            runs = np.searchsorted(ends, places, side="right")
            found[chosen] = self._starts[order[runs]] + places - (ends[runs] - self.runs[order[runs]])
        return found

    def _order(self, seed: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Runs in the order of a pass, and the samples up to the end of each."""
        if seed not in self._passes:
            if len(self._passes) > 1:
                self._passes.clear()
            order = shuffled_indices(np.arange(len(self.runs)), len(self.runs), seed)
            self._passes[seed] = order, np.cumsum(self.runs[order])
        return self._passes[seed]


def file_orders(specs: Sequence[dict[str, Any]], datasets: Sequence[Any]) -> dict[int, FileOrder]:
    """Dataset number -> order, of the entries of `robot_datasets` that have `shuffle_files`."""
    return {
        number: FileOrder(dataset.file_runs(), spec["shuffle_files"])
        for number, (spec, dataset) in enumerate(zip(specs, datasets, strict=True))
        if spec.get("shuffle_files") is not None
    }
