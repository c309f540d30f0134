"""What a processor knows of its robots: dimensions, statistics and modes; raw values to the model's range and back.

Ships with checkpoints.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from .normalization import MODES, nearly_constant, normalize, offset_and_scale, spread_floors, unnormalize

logger = logging.getLogger(__name__)


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
            if not 0 < clip < float("inf"):
                raise ValueError(f"clip: expected a positive number of spreads, got {clip}")
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
