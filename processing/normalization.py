"""State and action normalization with statistics that travel with the checkpoint: raw values to the model's range and back.

Numpy and torch only, and no import of anything else here: this file ships with checkpoints as remote code.

The paper normalizes actions by the dataset's mean and standard deviation (mode `mean_std`); `quantile` and `min_max`
map a range to [-1, 1] instead, and `identity` leaves values as they are. `EmbodimentNormalization` is what a processor knows
of its robots: dimensions, statistics and modes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, TypeVar

import numpy as np
import torch

logger = logging.getLogger(__name__)

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


# ---------------------------------------------------------------------- a processor's robots


class EmbodimentNormalization:
    """The part of the processor that holds its robots.

    Attributes:
        embodiments: Name -> `{"id", "state_dim", "action_dim", "statistics", "normalization"}` and what `set_embodiment` was
            told beside them.
    """

    embodiments: dict[str, dict[str, Any]]

    def set_embodiment(
        self,
        name: str,
        statistics: Mapping[str, Mapping[str, Any]],
        normalization: Mapping[str, str] | None = None,
        delta_actions: Sequence[int] | None = None,
        *,
        state_names: Sequence[str] | None = None,
        action_names: Sequence[str] | None = None,
        state_units: Sequence[str] | None = None,
        action_units: Sequence[str] | None = None,
        control_hz: float | None = None,
        cameras: Mapping[str, str] | None = None,
        action_limits: Mapping[str, Any] | None = None,
        spread_floor: Mapping[str, Any] | None = None,
        clip: float | None = None,
    ) -> None:
        """Register a robot, or replace its statistics (its id stays).

        Args:
            name: Name of the embodiment, as in the model's config.
            statistics: `{"state": {...}, "action": {...}}`, as `RobotDataset.statistics()` returns.
            normalization: Mode for "state" and "action", one of `MODES`; "mean_std" (the paper) when not given.
            delta_actions: For each action dimension the state dimension that it is relative to at the start of the chunk,
                -1 where it is absolute; the statistics are then those of the differences. None: all absolute.
            state_names, action_names: Name of every dimension.
            state_units, action_units: Unit of every dimension, such as "rad" or "m".
            control_hz: Actions per second.
            cameras: View -> camera of the data.
            action_limits: `{"low", "high", "max_step", ...}`, which a server applies; see `ActionLimits`.
            spread_floor: Smallest spread by which "state" and "action" are divided, in the dimensions' own units: a number or
                one for each dimension. None: by the units, see `spread_floors`; 0: none, as in older checkpoints.
            clip: Largest absolute value of normalized states and action targets, such as 10; None: what lies outside the
                statistics stays.

        Raises:
            ValueError: If statistics are missing or do not fit the mode, or a list has another length than the dimensions.
        """
        modes = {"state": "mean_std", "action": "mean_std", **(normalization or {})}
        if unknown := sorted(set(modes) - {"state", "action"}):
            raise ValueError(f"normalization: expected the keys state and action, got {unknown[0]!r}")
        if unknown := sorted(set(statistics) - {"state", "action"}):
            raise ValueError(f"statistics: expected the keys state and action, got {unknown[0]!r}")
        entry: dict[str, Any] = {"normalization": modes, "statistics": {}}
        for kind in ("state", "action"):
            entry["statistics"][kind] = _checked_statistics(name, kind, statistics, modes[kind])
            entry[f"{kind}_dim"] = len(entry["statistics"][kind]["mean"])
        if unknown := sorted(set(spread_floor or {}) - {"state", "action"}):
            raise ValueError(f"spread_floor: expected the keys state and action, got {unknown[0]!r}")
        if clip is not None:
            if isinstance(clip, bool) or not isinstance(clip, Real) or not 0 < clip < float("inf"):
                raise ValueError(f"clip: expected a positive number of spreads, such as 10, got {clip!r}")
            entry["clip"] = float(clip)
        per_dimension = {"state_names": state_names, "action_names": action_names,
                         "state_units": state_units, "action_units": action_units}  # fmt: skip
        for key, values in per_dimension.items():
            if values is None:
                continue
            dimensions = entry[f"{key.split('_')[0]}_dim"]
            if isinstance(values, str) or len(values) != dimensions:
                raise ValueError(f"{key}: expected {dimensions} for embodiment {name!r}, got {values!r}")
            entry[key] = list(values)
        for kind in ("state", "action"):
            _set_floor(name, kind, entry, (spread_floor or {}).get(kind))
        entry.update(
            {
                key: value
                for key, value in {"control_hz": control_hz, "action_limits": action_limits}.items()
                if value is not None
            }
        )
        if cameras is not None:
            entry["cameras"] = dict(cameras)
        if delta_actions is not None and max(delta_actions, default=-1) >= 0:
            entry["delta_actions"] = _checked_references(name, delta_actions, entry)
        known = self.embodiments.get(name)
        used = [e["id"] for e in self.embodiments.values()]
        entry["id"] = known["id"] if known else max(used, default=-1) + 1
        self.embodiments[name] = entry

    def decode_actions(self, actions: Any, embodiment: str | None = None, state: Any = None) -> np.ndarray:
        """Model output to physical units.

        Args:
            actions: Normalized chunk, (T, D) or (B, T, D), possibly zero-padded in the last dimension.
            embodiment: Robot whose units to restore; may be left out when there is only one.
            state: Raw state that the chunk was predicted from, (D_state,) or (B, D_state); needed where the embodiment has
                delta actions, ignored elsewhere.

        Returns:
            float32 array with the embodiment's own number of dimensions.
        """
        name, entry = self._embodiment(embodiment)
        if entry.get("delta_actions") is not None and state is None:
            raise ValueError(f"state: the actions of embodiment {name!r} are relative to it; pass the observed state")
        if isinstance(actions, torch.Tensor):
            actions = actions.detach().float().cpu().numpy()
        actions = np.asarray(actions, dtype=np.float32)
        if actions.shape[-1] < entry["action_dim"]:
            raise ValueError(f"actions: expected at least {entry['action_dim']} dimensions, got shape {actions.shape}")
        own = actions[..., : entry["action_dim"]]
        base = self._delta_base(entry, state)
        raw: np.ndarray = unnormalize(own, entry["statistics"]["action"], entry["normalization"]["action"]).astype(
            np.float32
        )
        return raw if base is None else raw + base[..., None, :]

    def normalize_actions(self, actions: Any, embodiment: str | None = None, state: Any = None) -> np.ndarray:
        """Physical actions (T, D) as the model sees them, float32 (T, D): the inverse of `decode_actions`."""
        name, entry = self._embodiment(embodiment)
        raw = self._checked_vectors(actions, "action", name)
        if (base := self._delta_base(entry, state)) is not None:
            raw = raw - base
        return normalize(raw, entry["statistics"]["action"], entry["normalization"]["action"], entry.get("clip"))

    def _embodiment(self, name: str | None) -> tuple[str, dict[str, Any]]:
        if name is None and len(self.embodiments) == 1:
            name = next(iter(self.embodiments))
        if name not in self.embodiments:
            raise ValueError(
                f"embodiment: expected one of {sorted(self.embodiments) or 'none registered'}, got {name!r}; register it "
                "with processor.set_embodiment(name, statistics=...)"
            )
        return name, self.embodiments[name]

    def _normalized_samples(
        self, items: Sequence[Mapping[str, Any]]
    ) -> list[tuple[dict[str, Any], np.ndarray, np.ndarray | None]]:
        """Of every robot item its robot's entry, its normalized state (D_state,) and actions (T, D_action) or None.

        All samples of a robot are normalized at once.
        """
        samples = [self._raw_sample(item) for item in items]
        rows_of: dict[str, list[int]] = {}
        for row, (name, _, _) in enumerate(samples):
            rows_of.setdefault(name, []).append(row)
        result: list[Any] = [None] * len(items)
        for name, rows in rows_of.items():
            entry = self.embodiments[name]
            statistics, modes, clip = entry["statistics"], entry["normalization"], entry.get("clip")
            raw_states = np.stack([samples[row][1] for row in rows])
            raw_chunks = {row: chunk for row in rows if (chunk := samples[row][2]) is not None}
            raw_steps = np.concatenate([np.empty((0, entry["action_dim"]), np.float32), *raw_chunks.values()])
            ends = np.cumsum([len(chunk) for chunk in raw_chunks.values()])
            states = normalize(raw_states, statistics["state"], modes["state"], clip)
            steps = normalize(raw_steps, statistics["action"], modes["action"], clip)
            chunks = dict(zip(raw_chunks, np.split(steps, ends[:-1]), strict=False))
            for row, state in zip(rows, states, strict=True):
                result[row] = entry, state, chunks.get(row)
        return result

    def _raw_sample(self, item: Mapping[str, Any]) -> tuple[str, np.ndarray, np.ndarray | None]:
        """Robot, state and actions of an item as they will be normalized: checked, actions relative where they are."""
        name, entry = self._embodiment(item.get("embodiment"))
        if item.get("state") is None:
            raise ValueError(f"state: missing for embodiment {name!r}; expected shape ({entry['state_dim']},)")
        seen = item["state"] if item.get("seen_state") is None else item["seen_state"]  # augmented, in training
        state = self._checked_vectors(seen, "state", name)
        if item.get("actions") is None:
            return name, state, None
        base = self._delta_base(entry, item["state"])
        actions = self._checked_vectors(item["actions"], "action", name)
        return name, state, actions if base is None else actions - base

    def _checked_vectors(self, values: Any, kind: str, name: str) -> np.ndarray:
        """A state (D_state,) or actions (T, D_action) in float32, raw units."""
        entry = self.embodiments[name]
        array = np.asarray(values, dtype=np.float32)
        ndim = 1 if kind == "state" else 2
        if array.ndim != ndim or array.shape[-1] != entry[f"{kind}_dim"]:
            shape = f"({entry[f'{kind}_dim']},)" if kind == "state" else f"(T, {entry[f'{kind}_dim']})"
            raise ValueError(f"{kind}: expected shape {shape} for embodiment {name!r}, got {array.shape}")
        if not np.isfinite(array).all():
            raise ValueError(f"{kind}: expected finite numbers for embodiment {name!r}, got NaN or infinity")
        return array

    def _delta_base(self, entry: Mapping[str, Any], state: Any) -> np.ndarray | None:
        """What the embodiment's delta actions are relative to, (..., D_action); None where all are absolute."""
        references = entry.get("delta_actions")
        if references is None:
            return None
        state = np.asarray(state, dtype=np.float32)
        return np.where(np.asarray(references) >= 0, state[..., np.maximum(references, 0)], np.float32(0))


def _checked_statistics(
    name: str, kind: str, statistics: Mapping[str, Mapping[str, Any]], mode: str
) -> dict[str, list[float]]:
    """Statistics as lists of numbers, once they are known to fit the mode."""
    if mode not in MODES:
        raise ValueError(f"normalization.{kind}: expected one of {', '.join(MODES)}, got {mode!r}")
    if kind not in statistics or "mean" not in statistics[kind]:
        raise ValueError(
            f"statistics.{kind}: missing for embodiment {name!r}; expected at least mean and std per dimension. "
            "Compute them with RobotDataset(...).statistics()"
        )
    lists = {key: np.asarray(value, dtype=np.float64).ravel().tolist() for key, value in statistics[kind].items()}
    if mode != "identity":
        offset_and_scale(lists, mode)  # raises now, not in the middle of training
    return lists


def _set_floor(name: str, kind: str, entry: dict[str, Any], given: Any) -> None:
    """Puts the floor of every dimension's spread beside its statistics, and names the dimensions that it holds for."""
    statistics, mode = entry["statistics"][kind], entry["normalization"][kind]
    if mode == "identity":
        return
    units = entry.get(f"{kind}_units")
    if given is not None:
        floors = np.broadcast_to(np.asarray(given, dtype=np.float64), entry[f"{kind}_dim"])
        statistics["floor"] = floors.tolist()
    elif "floor" not in statistics:
        statistics["floor"] = spread_floors(statistics, mode, units).tolist()
    _, spread = offset_and_scale({key: value for key, value in statistics.items() if key != "floor"}, mode)
    for dimension in nearly_constant(statistics, mode):
        names = entry.get(f"{kind}_names")
        unit = f" {units[dimension]}" if units else ""
        logger.warning(
            "embodiment %r: %s dimension %d%s is nearly constant: its spread %.3g%s is below %.3g%s, by which it is divided. "
            "If it should move, look at the data; if its motion is that small, pass spread_floor",
            name, kind, dimension, f" ({names[dimension]})" if names else "",
            spread[dimension], unit, statistics["floor"][dimension], unit,
        )  # fmt: skip


def _checked_references(name: str, delta_actions: Sequence[int], entry: Mapping[str, Any]) -> list[int]:
    references = [int(reference) for reference in delta_actions]
    if len(references) != entry["action_dim"] or not -1 <= min(references) <= max(references) < entry["state_dim"]:
        raise ValueError(
            f"delta_actions: expected {entry['action_dim']} state dimensions from -1 (absolute) to "
            f"{entry['state_dim'] - 1} for embodiment {name!r}, got {references}"
        )
    return references
