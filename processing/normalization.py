"""State and action normalization with statistics that travel with the checkpoint.

Numpy and torch only, and no import of anything else here: this file ships with checkpoints as remote code.

The paper normalizes actions by the dataset's mean and standard deviation (mode `mean_std`); `quantile` and `min_max`
map a range to [-1, 1] instead, and `identity` leaves values as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch

MODES = ("mean_std", "quantile", "min_max", "identity")

# A spread below this share of the dimension's magnitude is float32 rounding of a constant, not motion. Ours.
CONSTANT_TOLERANCE = 1e-6

# Smallest spread by which a dimension is divided, in its own unit: what a joint that stands still reads of noise and play.
# Ours. Velocities get that of the distance.
SPREAD_FLOORS = {
    "rad": 0.01, "deg": 0.5, "m": 0.001, "cm": 0.1, "mm": 1.0, "rad/s": 0.01, "deg/s": 0.5, "m/s": 0.001, "mm/s": 1.0,
}  # fmt: skip
UNIT_NAMES = {"radian": "rad", "degree": "deg", "°": "deg", "meter": "m", "metre": "m", "centimeter": "cm",
              "centimetre": "cm", "millimeter": "mm", "millimetre": "mm"}  # fmt: skip
# Without a unit: this share of the median spread, but no more than that share of the dimension's own offset, so that small
# steps around 0 are never taken for noise. Ours.
FLOOR_OF_MEDIAN, FLOOR_OF_OFFSET = 0.05, 0.02

Array = TypeVar("Array", np.ndarray, torch.Tensor)


def normalize(x: Array, stats: Mapping[str, Any], mode: str, clip: float | None = None) -> Array:
    """Maps raw physical values to the model's range: `(x - offset) / scale` per dimension.

    Args:
        x: Array or tensor (..., D), raw physical units. Integers become float32; floats keep their dtype and device.
        stats: Per-dimension statistics as `RunningStatistics.result()` gives them, each of length D: `mean` and `std`
            for `mean_std`, `q01` and `q99` for `quantile`, `min` and `max` for `min_max`. With `floor`, the smallest spread
            of every dimension in its own unit, nothing is divided by less (see `spread_floors`).
        mode: One of `MODES`. `quantile` and `min_max` map their range to [-1, 1] and do not clip what lies outside.
        clip: Largest absolute value of the result; None clips nothing.

    Returns:
        The same kind of array as `x`, (..., D). A dimension that is constant in `stats` is shifted to 0, not blown up.

    Raises:
        ValueError: Unknown mode, missing or non-finite statistics, or a last dimension other than D.
    """
    normalized: Array = x
    if _check_mode(mode) != "identity":
        x, offset, scale = _prepare(x, stats, mode)
        normalized = (x - offset) / scale
    return normalized if clip is None else normalized.clip(-clip, clip)


def unnormalize(x: Array, stats: Mapping[str, Any], mode: str) -> Array:
    """Maps values in the model's range back to raw physical units: the inverse of `normalize`, same arguments."""
    if _check_mode(mode) == "identity":
        return x
    x, offset, scale = _prepare(x, stats, mode)
    raw: Array = x * scale + offset
    return raw


def offset_and_scale(stats: Mapping[str, Any], mode: str) -> tuple[np.ndarray, np.ndarray]:
    """Per-dimension shift and positive scale of a mode, float64 (D,) each: `normalized = (raw - offset) / scale`.

    Constant dimensions get scale 1, nearly constant ones their `floor` where `stats` has it. In `quantile` mode a dimension
    whose q01 and q99 coincide although it does move (a gripper that is almost always closed) takes its min/max range
    instead where `stats` has it.
    """
    if _check_mode(mode) == "identity":
        raise ValueError("mode 'identity' has no offset or scale; use mean_std, quantile or min_max")
    if mode == "mean_std":
        offset, spread = _statistic(stats, "mean", mode), _statistic(stats, "std", mode)
        _check_lengths(stats, ("mean", "std"))
    else:
        low_key, high_key = ("q01", "q99") if mode == "quantile" else ("min", "max")
        _check_lengths(stats, (low_key, high_key))
        low, high = _statistic(stats, low_key, mode), _statistic(stats, high_key, mode)
        if mode == "quantile" and "min" in stats and "max" in stats:
            _check_lengths(stats, (low_key, "min", "max"))
            flat = _is_constant(high - low, (low + high) / 2)
            low = np.where(flat, _statistic(stats, "min", mode), low)
            high = np.where(flat, _statistic(stats, "max", mode), high)
        offset, spread = (low + high) / 2, (high - low) / 2
    if (spread < 0).any():
        raise ValueError(
            f"statistics for mode {mode!r}: negative spread {spread.tolist()}; expected std >= 0, max >= min"
        )
    scale = spread
    if stats.get("floor") is not None:
        floor = _statistic(stats, "floor", mode)
        if floor.shape != spread.shape or (floor < 0).any():
            raise ValueError(
                f"statistics: expected floor >= 0 for each of the {len(spread)} dimensions, got {floor.tolist()}"
            )
        scale = np.maximum(spread, floor)
    return offset, np.where(_is_constant(spread, offset), 1.0, scale)


def spread_floors(stats: Mapping[str, Any], mode: str, units: Sequence[str] | None = None) -> np.ndarray:
    """The smallest spread by which each dimension should be divided, float64 (D,), in its own unit.

    A joint that stood still in the data has a spread of noise alone. Divided by it, the first value beside it is thousands
    (openpi's issue 814: 0 rad at a joint with 1.5686 to 1.5696 rad becomes -3204).

    Args:
        stats: Statistics of the mode.
        mode: One of `MODES`.
        units: Unit of every dimension, such as "rad"; where it is unknown the floor is relative, see `FLOOR_OF_MEDIAN`.
    """
    if _check_mode(mode) == "identity":
        return np.zeros(len(_statistic(stats, "mean", mode)))
    offset, scale = offset_and_scale({key: value for key, value in stats.items() if key != "floor"}, mode)
    relative: np.ndarray = np.minimum(FLOOR_OF_MEDIAN * np.median(scale), FLOOR_OF_OFFSET * np.abs(offset))
    if units is None:
        return relative
    return np.array([_unit_floor(unit, other) for unit, other in zip(units, relative.tolist(), strict=True)])


def nearly_constant(stats: Mapping[str, Any], mode: str) -> list[int]:
    """Dimensions whose spread is below their `floor`, without those that are constant."""
    if stats.get("floor") is None or _check_mode(mode) == "identity":
        return []
    _, scale = offset_and_scale({key: value for key, value in stats.items() if key != "floor"}, mode)
    return np.flatnonzero(scale < _statistic(stats, "floor", mode)).tolist()


def _unit_floor(unit: str | None, otherwise: float) -> float:
    name = str(unit or "").strip().lower()
    singular = name[:-1] if name.endswith("s") and not name.endswith("/s") else name
    return SPREAD_FLOORS.get(UNIT_NAMES.get(singular, singular), otherwise)


def _check_mode(mode: str) -> str:
    if mode not in MODES:
        raise ValueError(f"normalization mode: expected one of {', '.join(MODES)}, got {mode!r}")
    return mode


def _statistic(stats: Mapping[str, Any], key: str, mode: str) -> np.ndarray:
    if stats.get(key) is None:
        raise ValueError(
            f"statistics: mode {mode!r} needs {key!r}, which is missing (got {sorted(map(str, stats))}); compute"
            " them with RobotDataset.statistics() or choose another mode"
        )
    value = stats[key]
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    vector = np.atleast_1d(np.asarray(value, dtype=np.float64))
    if vector.ndim != 1 or not np.isfinite(vector).all():
        raise ValueError(f"statistics: {key!r} must be a list of finite numbers, one per dimension; got {value!r}")
    return vector


def _check_lengths(stats: Mapping[str, Any], keys: tuple[str, ...]) -> None:
    lengths = {key: len(np.atleast_1d(stats[key])) for key in keys if stats.get(key) is not None}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"statistics: expected equal lengths, got {lengths}")


def _is_constant(spread: np.ndarray, magnitude: np.ndarray) -> np.ndarray:
    constant: np.ndarray = np.abs(spread) <= CONSTANT_TOLERANCE * np.maximum(1e-3, np.abs(magnitude))
    return constant


def _prepare(x: Array, stats: Mapping[str, Any], mode: str) -> tuple[Array, Array, Array]:
    offset, scale = offset_and_scale(stats, mode)
    if x.ndim == 0 or x.shape[-1] != len(offset):
        raise ValueError(
            f"normalization: statistics have {len(offset)} dimensions, got an array of shape {tuple(x.shape)};"
            " its last dimension must match. Use the statistics of the dataset or embodiment that the values come from"
        )
    if isinstance(x, torch.Tensor):
        x = x if x.is_floating_point() else x.float()
        return x, torch.as_tensor(offset).to(x), torch.as_tensor(scale).to(x)
    x = x if np.issubdtype(x.dtype, np.floating) else x.astype(np.float32)
    return x, offset.astype(x.dtype), scale.astype(x.dtype)
