"""Whether data is of the robot whose name it carries: names, units, rate, statistics and modes, before training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .normalization import CONSTANT_TOLERANCE

# Ours. A new task moves a robot's joints elsewhere and by other amounts; a factor of 8 in the median over all dimensions is
# another unit (57 degrees are a radian, 1000 millimeters a meter), and a dimension beyond 10 of the checkpoint's spreads is
# one that the model has never seen.
MEDIAN_RATIO = 8.0
SPREADS = 10.0

CHOICES = {
    "new_embodiment": 'give the data another "embodiment", which gets names and statistics of its own',
    "recompute_statistics": "pass recompute_statistics: the checkpoint's robot takes over what the data says",
    "resample": 'resample the data to the checkpoint\'s rate by "control_hz": {rate:g}',
    "convert_units": "convert the data to the checkpoint's units first",
    "reorder": 'put the dimensions into the checkpoint\'s order by "state_key" and "action_key"',
    "accept": 'keep the checkpoint\'s, although the data differs, by "accept": ["{kind}"]',
}


@dataclass(frozen=True)
class Disagreement:
    """One thing in which data differs from what a checkpoint knows of the robot.

    Attributes:
        kind: "dimensions", "names", "units", "rate", "statistics", "normalization" or "delta_actions".
        message: What the checkpoint has and what the data has.
        choices: What can be done, keys of `CHOICES`.
        rate: The checkpoint's actions per second, for the choice to resample.
    """

    kind: str
    message: str
    choices: tuple[str, ...]
    rate: float = 0.0

    def __str__(self) -> str:
        ways = "; or ".join(CHOICES[choice].format(kind=self.kind, rate=self.rate) for choice in self.choices)
        return f"{self.kind}: {self.message}. Choose: {ways}"


def compare_embodiment(known: Mapping[str, Any], data: Mapping[str, Any]) -> list[Disagreement]:
    """In what data differs from a robot's entry; what either of them does not say is not compared.

    Args:
        known: Entry of the processor's `embodiments`.
        data: The same keys, as far as the data or its description says them: `state_dim`, `action_dim`, `state_names`,
            `action_names`, `state_units`, `action_units`, `control_hz`, `statistics` (mean and std), `normalization` and
            `delta_actions`.
    """
    found: list[Disagreement] = []
    for kind in ("state", "action"):
        size, theirs = known.get(f"{kind}_dim"), data.get(f"{kind}_dim")
        if size is not None and theirs is not None and size != theirs:
            found.append(
                Disagreement("dimensions", f"{kind}: the checkpoint has {size}, the data {theirs}", ("new_embodiment",))
            )
            continue
        found += _lists(kind, known, data)
        found += _statistics(kind, known, data)
    ours, theirs = known.get("control_hz"), data.get("control_hz")
    if ours and theirs and abs(ours - theirs) > 0.01 * ours:
        message = f"the checkpoint acts {ours:g} times a second, the data {theirs:g} times"
        found.append(Disagreement("rate", message, ("resample", "new_embodiment", "accept"), float(ours)))
    modes, asked = known.get("normalization") or {}, data.get("normalization") or {}
    for kind in sorted(set(modes) & set(asked)):
        if modes[kind] != asked[kind]:
            message = f"{kind}: the checkpoint was trained with {modes[kind]!r}, the data asks for {asked[kind]!r}"
            found.append(Disagreement("normalization", message, ("recompute_statistics", "new_embodiment", "accept")))
    if "delta_actions" in data and data["delta_actions"] != known.get("delta_actions"):
        message = (
            f"the checkpoint's actions are relative to the state dimensions {known.get('delta_actions')}, the data's to "
            f"{data['delta_actions']}"
        )
        found.append(Disagreement("delta_actions", message, ("recompute_statistics", "new_embodiment")))
    return found


def _lists(kind: str, known: Mapping[str, Any], data: Mapping[str, Any]) -> Iterator[Disagreement]:
    names, theirs = known.get(f"{kind}_names"), data.get(f"{kind}_names")
    if names and theirs and list(names) != list(theirs):
        if sorted(names) == sorted(theirs):
            message = f"{kind}: the same dimensions in another order, {list(names)} and {list(theirs)}"
            yield Disagreement("names", message, ("reorder", "new_embodiment", "recompute_statistics"))
        else:
            message = f"{kind}: the checkpoint has {list(names)}, the data {list(theirs)}"
            yield Disagreement("names", message, ("new_embodiment", "recompute_statistics", "accept"))
    units, theirs = known.get(f"{kind}_units"), data.get(f"{kind}_units")
    if units and theirs and list(units) != list(theirs):
        message = f"{kind}: the checkpoint has {list(units)}, the data {list(theirs)}"
        yield Disagreement("units", message, ("convert_units", "new_embodiment", "recompute_statistics"))


def _statistics(kind: str, known: Mapping[str, Any], data: Mapping[str, Any]) -> Iterator[Disagreement]:
    ours, theirs = ((entry.get("statistics") or {}).get(kind) or {} for entry in (known, data))
    if not all(key in statistics for key in ("mean", "std") for statistics in (ours, theirs)):
        return
    (mean, spread), (data_mean, data_spread) = (
        (np.asarray(statistics["mean"], dtype=np.float64), np.asarray(statistics["std"], dtype=np.float64))
        for statistics in (ours, theirs)
    )
    least = CONSTANT_TOLERANCE * np.maximum(1e-3, np.abs(mean))
    still = spread <= least  # nothing to compare with: constants are shifted, not divided
    spread = np.maximum(np.where(still, 1.0, spread), ours.get("floor") or 0.0)
    ratio, shift = data_spread / spread, np.abs(data_mean - mean) / spread
    moving = ~still & (data_spread > least)
    choices = ("convert_units", "new_embodiment", "recompute_statistics", "accept")
    if moving.sum() > moving.size / 2:
        median = float(np.median(ratio[moving]))
        if not 1 / MEDIAN_RATIO < median < MEDIAN_RATIO:
            message = (
                f"{kind}: the data's spreads are {median:.3g} of the checkpoint's in the median, as of another unit"
            )
            yield Disagreement("statistics", message, choices)
            return
    far = np.flatnonzero((ratio > SPREADS) | (shift > SPREADS))
    if len(far):
        names = data.get(f"{kind}_names") or known.get(f"{kind}_names") or [str(i) for i in range(len(mean))]
        each = ", ".join(
            f"{names[i]} ({mean[i]:.4g} +- {spread[i]:.2g} in the checkpoint, {data_mean[i]:.4g} +- {data_spread[i]:.2g})"
            for i in far.tolist()
        )
        yield Disagreement("statistics", f"{kind}: the data lies far outside the checkpoint's range: {each}", choices)
