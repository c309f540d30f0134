"""Training starts only if each dataset is of the robot that it names, or somebody chose what to do about the difference."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

logger = logging.getLogger(__name__)

ACCEPTABLE = ("names", "rate", "statistics", "normalization")


def require_agreement(name: str, entry: Mapping[str, Any], members: Sequence[tuple[Mapping[str, Any], Any]]) -> None:
    """Raise ValueError with every disagreement between a robot's entry and its datasets, and what can be chosen.

    Args:
        name: Name of the embodiment.
        entry: What the processor knows of it.
        members: (entry of `robot_datasets`, opened dataset) of every dataset that names it. `accept` in the first lists
            kinds of disagreement in which the checkpoint's side is kept.
    """
    from syvla.processing.embodiment_comparison import compare_embodiment

    problems = []
    for spec, dataset in members:
        accepted = spec.get("accept") or []
        if isinstance(accepted, str) or not set(accepted) <= set(ACCEPTABLE):
            raise ValueError(f"accept: {spec['path']}: expected a list of {', '.join(ACCEPTABLE)}, got {accepted!r}")
        for disagreement in compare_embodiment(entry, _described(spec, dataset, entry)):
            if disagreement.kind not in accepted:
                problems.append(f"{spec['path']}: {disagreement}")
    if problems:
        raise ValueError(
            f"robot_datasets: the data is not as the checkpoint knows {name!r}; nothing was trained:\n"
            + "\n".join(problems)
        )


def _described(spec: Mapping[str, Any], dataset: Any, entry: Mapping[str, Any]) -> dict[str, Any]:
    """What a dataset and its entry say of the robot; nothing where the dimensions differ, which validation reports."""
    if any(getattr(dataset, f"{kind}_dim") != entry[f"{kind}_dim"] for kind in ("state", "action")):
        return {}
    mode, units = spec.get("normalization"), spec.get("units")
    units = units if isinstance(units, Mapping) else {}
    return {
        "state_names": dataset.state_names,
        "action_names": dataset.action_names,
        "state_units": units.get("state"),
        "action_units": units.get("action"),
        "control_hz": dataset.control_hz,
        "normalization": {"state": mode, "action": mode} if isinstance(mode, str) else mode,
        "statistics": _statistics(dataset, entry.get("delta_actions")),
    }


def _statistics(dataset: Any, delta_actions: Sequence[int] | None) -> dict[str, Any]:
    """Of a dataset; none where it is streamed and its metadata does not state them, since nothing can be compared then."""
    from syvla.processing.robot_data.stated_statistics import NotStatedError

    try:
        statistics: dict[str, Any] = dataset.statistics(delta_actions)
    except NotStatedError as error:
        logger.warning("%s: not compared with the checkpoint's statistics: %s", dataset.root, error)
        return {}
    return statistics
