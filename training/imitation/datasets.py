"""Opens the datasets of a run, registers their robots, and checks them against the model before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from syvla.training.run.arguments import DataArguments

from .embodiment_agreement import require_agreement

# Keys of `robot_datasets` that say how data is used; the others are arguments of `RobotDataset`.
NOT_THE_READERS = ("path", "weight", "normalization", "units", "delta_actions", "accept")


def load_robot_data(data_args: DataArguments, model: Any, processor: Any) -> list[Any]:
    """Open the datasets and register their embodiments with processor and model.

    Statistics: those of the checkpoint stay unless `recompute_statistics`; a new embodiment gets those of all its frames.

    Raises:
        ValueError: If datasets cannot be opened, with the problems of all of them, hold values without statistics, or are
            not of the robot that the checkpoint knows by their name (see `compare_embodiment`).
    """
    from syvla.processing.dataset_validation import require_valid
    from syvla.processing.robot_data.robot_dataset import RobotDataset, pooled_statistics

    datasets, problems = [], []
    by_embodiment: dict[str, list[tuple[dict[str, Any], Any]]] = {}
    modes: dict[str, Any] = {}
    deltas: dict[str, list[int] | None] = {}
    for spec in data_args.robot_specs:
        options = {k: v for k, v in spec.items() if k not in NOT_THE_READERS}
        name = options.pop("embodiment", None) or _only_embodiment(processor, spec)
        options.setdefault("cache_images", data_args.cache_images)
        if data_args.ignore_thoughts:
            options["thought_source"] = None
        try:
            dataset = RobotDataset(
                spec["path"], embodiment=name, chunk_size=processor.chunk_size, views=processor.views, **options
            )
            references = _delta_references(spec, dataset, processor.embodiments.get(name, {}))
        except (ValueError, OSError) as error:
            problems.append(f"{spec['path']}: {error}")
            continue
        datasets.append(dataset)
        by_embodiment.setdefault(name, []).append((spec, dataset))
        mode = spec.get("normalization")
        modes.setdefault(name, {"state": mode, "action": mode} if isinstance(mode, str) else mode)
        if deltas.setdefault(name, references) != references:
            problems.append(f"{spec['path']}: delta_actions differs from that of other datasets of {name!r}; use one")
    if problems:
        raise ValueError("robot_datasets: not all of them can be opened:\n" + "\n".join(problems))
    if data_args.validate_data:
        require_valid(datasets, images="none")  # values first: statistics of NaN would be refused one by one
    for name, members in by_embodiment.items():
        if name not in processor.embodiments or data_args.recompute_statistics:
            first = members[0][1]
            units = next((_units(spec, dataset) for spec, dataset in members if spec.get("units")), {})
            processor.set_embodiment(
                name,
                pooled_statistics([dataset for _, dataset in members], deltas[name]),
                modes[name],
                deltas[name],
                state_names=first.state_names,
                action_names=first.action_names,
                control_hz=first.control_hz,
                cameras=dict(first.cameras),
                **units,
            )
        entry = processor.embodiments[name]
        if deltas[name] != entry.get("delta_actions"):
            raise ValueError(
                f"delta_actions: the checkpoint's embodiment {name!r} was trained with {entry.get('delta_actions')}, the data "
                f"says {deltas[name]} (state dimension per action dimension, -1 absolute); use the checkpoint's, a new "
                "embodiment, or recompute_statistics"
            )
        require_agreement(name, entry, members)
        for spec, dataset in members:
            if spec.get("units"):
                entry.update(_units(spec, dataset))
        model.add_embodiment(name, entry["state_dim"], entry["action_dim"])
        entry["id"] = model.config.embodiments[name]["id"]
    return datasets


def _delta_references(spec: dict[str, Any], dataset: Any, known: dict[str, Any]) -> list[int] | None:
    """What the dataset's actions are relative to; where its entry does not say, as the checkpoint was trained."""
    if "delta_actions" not in spec:
        return known.get("delta_actions")
    from syvla.processing.robot_data.delta_actions import ABSOLUTE, delta_references

    references = delta_references(
        spec["delta_actions"],
        dataset.state_dim,
        dataset.action_dim,
        dataset.state_names,
        dataset.action_names,
    )
    return references if max(references) != ABSOLUTE else None


def _units(spec: dict[str, Any], dataset: Any) -> dict[str, list[str]]:
    """Units per dimension from a dataset's `units`, for the processor and the model card."""
    units = spec["units"]
    for kind in ("state", "action"):
        if not isinstance(units, dict) or len(units.get(kind) or ()) != getattr(dataset, f"{kind}_dim"):
            raise ValueError(
                f'units: {spec["path"]}: expected {{"state": [...], "action": [...]}} with one unit per dimension, '
                f"{dataset.state_dim} and {dataset.action_dim} of them; got {units}"
            )
    return {f"{kind}_units": list(units[kind]) for kind in ("state", "action")}


def load_multimodal_data(data_args: DataArguments, processor: Any, skip_log: str | Path | None = None) -> list[Any]:
    """Open the vision-language datasets.

    Args:
        data_args: Their entries, and what holds for all of them.
        processor: The checkpoint's processor, which rows have to fit.
        skip_log: File that names the rows which are skipped in training.

    Raises:
        ValueError: If any cannot be opened, with the problems of all of them.
    """
    from syvla.processing.multimodal.dataset import MultimodalDataset, resized_size
    from syvla.processing.multimodal.row_checks import RowCheck

    common: dict[str, Any] = {
        "resized_size": partial(resized_size, processor.image_processor),
        "check": RowCheck(processor),
        "max_skipped_share": data_args.max_skipped_share,
        "skip_log": skip_log,
    }
    datasets, problems = [], []
    for spec in data_args.multimodal_specs:
        options = {"max_pixels": data_args.max_pixels, **spec}
        options = {key: value for key, value in options.items() if key not in ("path", "weight")}
        try:
            datasets.append(MultimodalDataset(spec["path"], **common, **options))
        except (ValueError, OSError, TypeError) as error:
            problems.append(f"{spec['path']}: {error}")
    if problems:
        raise ValueError("multimodal_datasets: not all of them can be opened:\n" + "\n".join(problems))
    return datasets


def validate(robot: Sequence[Any], multimodal: Sequence[Any], model: Any, processor: Any, images: str = "ends") -> None:
    """Checks everything that can be checked before the first step.

    Raises:
        ValueError: With all problems of all datasets.
    """
    from syvla.processing.dataset_validation import require_valid, require_valid_chats

    errors = []
    for check in (
        lambda: require_valid(robot, model.config, processor, images=images),
        lambda: require_valid_chats(multimodal, processor),
    ):
        try:
            check()
        except ValueError as error:
            errors.append(str(error))
    if errors:
        raise ValueError("\n".join(errors))


def _only_embodiment(processor: Any, spec: dict[str, Any]) -> str:
    if len(processor.embodiments) == 1:
        name: str = next(iter(processor.embodiments))
        return name
    raise ValueError(
        f'robot_datasets: {spec["path"]} names no embodiment; add "embodiment": a name for this robot '
        f"(the checkpoint knows {sorted(processor.embodiments) or 'none'})"
    )


def dataset_weights(specs: Sequence[dict[str, Any]]) -> list[float] | None:
    if not any("weight" in spec for spec in specs):
        return None
    missing = [spec["path"] for spec in specs if "weight" not in spec]
    if missing:
        raise ValueError(f"weight: given for some datasets but not for {missing}; give all or none")
    return [float(spec["weight"]) for spec in specs]
