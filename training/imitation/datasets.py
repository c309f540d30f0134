"""Opens the datasets of a run, registers their robots, and checks them against the model before the first step."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from syvla.processing.mixture import shuffled_indices
from syvla.training.run.arguments import DataArguments
from syvla.training.run.evaluation_arguments import held_out_rows

from .embodiment_agreement import require_agreement

logger = logging.getLogger(__name__)

_HELD_OUT_ROWS = 20_260_609  # seeds their choice; not the run's seed, so that every run holds the same rows out

# Keys of `robot_datasets` that say how data is used; the others are arguments of `RobotDataset`.
NOT_THE_READERS = (
    "path",
    "weight",
    "shuffle_files",
    "normalization",
    "clip",
    "units",
    "delta_actions",
    "accept",
    "eval_split",
    "license",
    "note",
)

SOURCE_KEYS = ("revision", "streaming", "cache_gb", "cache_dir")
"""Keys of `robot_datasets` that say where the files come from; arguments of `open_metadata`."""


def load_robot_data(data_args: DataArguments, model: Any, processor: Any, *, held_out: bool = False) -> list[Any]:
    """Open what is trained on of each dataset, and register its embodiment with processor and model.

    Statistics: those of the checkpoint stay unless `recompute_statistics`; a new embodiment gets those of all its frames
    that are trained on.

    Args:
        data_args: The datasets.
        model, processor: The checkpoint.
        held_out: Open what is held out instead, of the datasets that hold anything out, for a run that only measures. Its
            robots must be known.

    Raises:
        ValueError: If datasets cannot be opened, with the problems of all of them, hold values without statistics, or are
            not of the robot that the checkpoint knows by their name (see `compare_embodiment`).
    """
    from syvla.processing.dataset_validation import require_valid
    from syvla.processing.robot_data.robot_dataset import pooled_statistics

    datasets, problems = [], []
    by_embodiment: dict[str, list[tuple[dict[str, Any], Any]]] = {}
    modes: dict[str, Any] = {}
    deltas: dict[str, list[int] | None] = {}
    clips: dict[str, float | None] = {}
    for spec in data_args.robot_specs:
        if held_out and spec.get("eval_split") is None:
            continue
        name = spec.get("embodiment") or _only_embodiment(processor, spec)
        if held_out and (name not in processor.embodiments or data_args.recompute_statistics):
            raise ValueError(
                f"do_train: false, but {spec['path']} is of {name!r}, which the checkpoint "
                f"{'was to get new statistics for' if name in processor.embodiments else 'does not know'}; it knows "
                f"{sorted(processor.embodiments) or 'none'}. Train first, or name one of them"
            )
        try:
            dataset = _open_robot_dataset(spec, data_args, processor, name, held_out)
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
        if clips.setdefault(name, spec.get("clip")) != spec.get("clip"):
            problems.append(f"{spec['path']}: clip differs from that of other datasets of {name!r}; give all the same")
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
                clip=clips[name],
                **units,
            )
        entry = processor.embodiments[name]
        if clips[name] not in (None, entry.get("clip")):
            raise ValueError(
                f"clip: the checkpoint's embodiment {name!r} was trained with {entry.get('clip', 'none')}, the data says "
                f"{clips[name]}; leave it out, name a new embodiment, or set recompute_statistics"
            )
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


def load_held_out_robot_data(data_args: DataArguments, processor: Any) -> list[Any]:
    """Open what is held out of each dataset that holds anything out, after `load_robot_data`.

    Raises:
        ValueError: If a dataset cannot be opened, or holds values that are not finite.
    """
    from syvla.processing.dataset_validation import require_valid

    datasets = []
    for spec in data_args.robot_specs:
        if spec.get("eval_split") is None:
            continue
        name = spec.get("embodiment") or _only_embodiment(processor, spec)
        try:
            datasets.append(_open_robot_dataset(spec, data_args, processor, name, held_out=True))
        except (ValueError, OSError) as error:
            raise ValueError(f"robot_datasets: held-out episodes of {spec['path']}: {error}") from error
        logger.info("%s: held out from training: episodes %s", spec["path"], datasets[-1].episodes)
    if data_args.validate_data:
        require_valid(datasets, images="none")
    return datasets


def _open_robot_dataset(
    spec: dict[str, Any], data_args: DataArguments, processor: Any, name: str, held_out: bool
) -> Any:
    """What is trained on of a dataset, or what is held out of it."""
    from syvla.processing.robot_data.held_out_episodes import split_episodes
    from syvla.processing.robot_data.streamed_dataset import open_metadata, open_robot_dataset

    options = {k: v for k, v in spec.items() if k not in (*NOT_THE_READERS, "embodiment")}
    if not options.get("streaming"):  # which refuses it as an entry's own key
        options.setdefault("cache_images", data_args.cache_images)
    if data_args.ignore_thoughts:
        options["thought_source"] = None
    if (eval_split := spec.get("eval_split")) is not None:
        given = {key: spec[key] for key in SOURCE_KEYS if key in spec}
        metadata = open_metadata(spec["path"], **given)
        split = split_episodes(metadata, eval_split, spec.get("episodes"))
        options["episodes"] = split.held_out if held_out else split.train
        if not options["episodes"]:
            raise ValueError(
                f"eval_split: {eval_split!r} holds out all {len(split.held_out)} episodes and leaves none to train on; hold "
                "fewer out, record more, or only measure with --do_train false"
            )
    return open_robot_dataset(
        spec["path"], embodiment=name, chunk_size=processor.chunk_size, views=processor.views, **options
    )


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


def load_multimodal_data(
    data_args: DataArguments, processor: Any, skip_log: str | Path | None = None
) -> tuple[list[Any], list[Any]]:
    """Open the vision-language datasets.

    Args:
        data_args: Their entries, and what holds for all of them.
        processor: The checkpoint's processor, which rows have to fit.
        skip_log: File that names the rows which are skipped in training.

    Returns:
        (what is trained on of each dataset, what is held out of those that hold rows out).

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
    datasets, held_out, problems = [], [], []
    for spec in data_args.multimodal_specs:
        options = {"max_pixels": data_args.max_pixels, **spec}
        options = {key: value for key, value in options.items() if key not in ("path", "weight", "eval_rows")}
        try:
            dataset = MultimodalDataset(spec["path"], **common, **options)
            train, measured = _split_rows(dataset, spec, data_args)
            datasets.append(train)
            held_out += measured
        except (ValueError, OSError, TypeError) as error:
            problems.append(f"{spec['path']}: {error}")
    if problems:
        raise ValueError("multimodal_datasets: not all of them can be opened:\n" + "\n".join(problems))
    return datasets, held_out


def _split_rows(dataset: Any, spec: dict[str, Any], data_args: DataArguments) -> tuple[Any, list[Any]]:
    """Rows to train on, and a list of the held-out ones, which is empty where there are none."""
    given = spec.get("eval_rows", data_args.multimodal_eval_rows)
    measures = any(entry.get("eval_split") is not None for entry in data_args.robot_specs)
    if dataset.is_stream and given is None:
        return dataset, []
    count = held_out_rows(given, len(dataset), spec["path"], measures)
    if not count:
        return dataset, []
    held_out = np.sort(shuffled_indices(np.arange(count), len(dataset), (_HELD_OUT_ROWS,)))
    logger.info("%s: %d of %d rows are held out from training", spec["path"], count, len(dataset))
    return dataset.select(np.delete(np.arange(len(dataset)), held_out)), [dataset.select(held_out)]


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
