"""Statistics as LeRobot keeps them, per episode and in `meta/stats.json`, but exact over all frames.

Vectors: mean, population standard deviation, extremes and quantiles of all values. Images: per channel in [0, 1], shape
(C, 1, 1), exact per episode by histogram; over the dataset mean, deviation and extremes are exact and quantiles are
those of the mixture of the episodes' distributions, each taken as linear between its stored quantiles.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .lerobot_format import IMAGE_DTYPES

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
STATISTICS = ("min", "max", "mean", "std", *QUANTILES)

_LEVELS = np.arange(256) / 255.0
_LARGE_IMAGE, _TARGET_SIZE = 300, 150  # pixels: LeRobot takes the statistics of larger images at about 150


class RunningStatistics:
    """Exact per-dimension statistics of a stream of vectors.

    Every value is kept (4 bytes per float32 value, so 560 MB for ten million 14-dimensional vectors) and each dimension
    is reduced in float64 at the end: mean, population standard deviation and quantiles are those of all values, not
    estimates.

    Args:
        dim: Number of dimensions D.
    """

    def __init__(self, dim: int):
        if dim < 1:
            raise ValueError(f"dim: expected at least 1, got {dim}")
        self.dim = dim
        self.count = 0
        self._chunks: list[np.ndarray] = []

    def update(self, values: np.ndarray) -> None:
        """Adds vectors (n, D), raw units; they are copied. Raises ValueError on another shape or on NaN/inf."""
        values = np.asarray(values)
        if values.ndim != 2 or values.shape[1] != self.dim:
            raise ValueError(f"statistics: expected an array (n, {self.dim}), got {values.shape}")
        if values.dtype not in (np.float32, np.float64):
            values = values.astype(np.float64)
        finite = np.isfinite(values)
        if not finite.all():
            row, column = np.argwhere(~finite)[0].tolist()
            raise ValueError(
                f"statistics: value {values[row, column]} in dimension {column} of vector {self.count + row};"
                " expected finite numbers. Repair or drop the episode that holds it"
            )
        if len(values):
            self._chunks.append(values.copy())
            self.count += len(values)

    def result(self) -> dict[str, list[float]]:
        """Returns `mean, std, min, max, q01, q10, q50, q90, q99`, lists of length D, and `count`, a list of length 1.

        Raises:
            ValueError: Nothing was added.
        """
        if not self.count:
            raise ValueError("statistics: no values were added; expected at least one frame")
        result: dict[str, list[float]] = {key: [] for key in ("mean", "std", "min", "max", *QUANTILES)}
        for column in range(self.dim):
            values = np.concatenate([chunk[:, column] for chunk in self._chunks]).astype(np.float64)
            result["mean"].append(float(values.mean()))
            result["std"].append(float(values.std()))
            result["min"].append(float(values.min()))
            result["max"].append(float(values.max()))
            for key, value in zip(QUANTILES, np.quantile(values, list(QUANTILES.values())), strict=True):
                result[key].append(float(value))
        return {**result, "count": [self.count]}


def has_statistics(feature: Mapping[str, Any]) -> bool:
    """Whether LeRobot keeps statistics of a feature: not of text."""
    return feature["dtype"] not in ("string", "language")


def vector_statistics(values: np.ndarray) -> dict[str, Any]:
    """Statistics of one feature's values (n, *shape) per element of its last dimension; `count` is n."""
    values = _as_vectors(values)
    running = RunningStatistics(values.shape[-1])
    running.update(values.reshape(-1, values.shape[-1]))
    return {**running.result(), "count": [len(values)]}


class ImageStatistics:
    """Statistics of one camera's frames in an episode, by a histogram of its 256 levels per channel."""

    def __init__(self) -> None:
        self.num_frames = 0
        self._histogram = np.zeros((3, 256), np.int64)

    def update(self, image: np.ndarray) -> None:
        """Adds a frame, uint8 (H, W, 3); large ones by every second, third, ... pixel."""
        if max(image.shape[:2]) >= _LARGE_IMAGE:
            stride = max(image.shape[:2]) // _TARGET_SIZE
            image = image[::stride, ::stride]
        for channel in range(3):
            self._histogram[channel] += np.bincount(image[..., channel].ravel(), minlength=256)
        self.num_frames += 1

    def result(self) -> dict[str, Any]:
        """Statistics in [0, 1], each (3, 1, 1); `count` is the number of frames."""
        total = self._histogram.sum(1)
        mean = self._histogram @ _LEVELS / total
        variance = (self._histogram * (_LEVELS - mean[:, None]) ** 2).sum(1) / total
        cumulative = self._histogram.cumsum(1)
        result = {"mean": mean, "std": np.sqrt(variance)}
        for key, quantile in {"min": 0.0, "max": 1.0, **QUANTILES}.items():
            rank = quantile * (total - 1)
            below, above = np.floor(rank), np.ceil(rank)
            low, high = (
                np.array([np.searchsorted(cumulative[c], at[c], side="right") for c in range(3)]) / 255.0
                for at in (below, above)
            )
            result[key] = low + (high - low) * (rank - below)
        return {**{key: _per_channel(result[key]) for key in STATISTICS}, "count": [self.num_frames]}


class DatasetStatistics:
    """Statistics of a growing dataset: exact values for vectors, a mixture of the episodes' summaries for images."""

    def __init__(self, features: Mapping[str, Mapping[str, Any]]):
        self._features = {key: feature for key, feature in features.items() if has_statistics(feature)}
        self._vectors = {
            key: RunningStatistics(feature["shape"][-1])
            for key, feature in self._features.items()
            if feature["dtype"] not in IMAGE_DTYPES
        }
        self._num_frames = 0
        self._images = {key: _ImageMixture() for key in self._features if key not in self._vectors}

    def add_episode(self, columns: Mapping[str, np.ndarray], images: Mapping[str, Mapping[str, Any]]) -> None:
        """Adds an episode: values (n, *shape) or (n,) per vector feature, and the episode's own statistics per camera."""
        for key, running in self._vectors.items():
            running.update(_as_vectors(columns[key]).reshape(-1, running.dim))
        self._num_frames += len(next(iter(columns.values())))
        for key, mixture in self._images.items():
            mixture.add(images[key])

    def result(self) -> dict[str, dict[str, Any]]:
        """The contents of `meta/stats.json`."""
        return {
            key: {**self._vectors[key].result(), "count": [self._num_frames]}
            if key in self._vectors
            else self._images[key].result()
            for key in self._features
        }


class _ImageMixture:
    def __init__(self) -> None:
        self.count = 0
        self._mean, self._square = np.zeros(3), np.zeros(3)
        self._min, self._max = np.full(3, np.inf), np.full(3, -np.inf)
        self._cumulative = np.zeros((3, 256))

    def add(self, statistics: Mapping[str, Any]) -> None:
        values = {key: np.asarray(statistics[key], np.float64).reshape(3) for key in STATISTICS}
        count = int(np.ravel(statistics["count"])[0])
        self.count += count
        self._mean += count * values["mean"]
        self._square += count * (values["std"] ** 2 + values["mean"] ** 2)
        self._min, self._max = np.minimum(self._min, values["min"]), np.maximum(self._max, values["max"])
        probabilities = [0.0, *QUANTILES.values(), 1.0]
        for channel in range(3):
            knots = np.array([values[key][channel] for key in ("min", *QUANTILES, "max")])
            knots = np.maximum.accumulate(knots) + np.arange(len(knots)) * 1e-9  # a constant image has equal quantiles
            self._cumulative[channel] += count * np.interp(_LEVELS + 1e-8, knots, probabilities)

    def result(self) -> dict[str, Any]:
        mean = self._mean / self.count
        result = {"min": self._min, "max": self._max, "mean": mean}
        result["std"] = np.sqrt(np.maximum(self._square / self.count - mean**2, 0.0))
        for key, quantile in QUANTILES.items():
            value = [np.interp(quantile, row / self.count, _LEVELS) for row in self._cumulative]
            result[key] = np.clip(value, self._min, self._max)
        return {**{key: _per_channel(result[key]) for key in STATISTICS}, "count": [self.count]}


def _per_channel(values: np.ndarray) -> list[list[list[float]]]:
    return np.asarray(values, np.float64).reshape(-1, 1, 1).tolist()


def _as_vectors(values: np.ndarray) -> np.ndarray:
    return values[:, None] if values.ndim == 1 else values
