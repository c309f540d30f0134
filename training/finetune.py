"""Fine-tune SyVLA on LeRobot data, with multi-modal data mixed in (paper, appendix A, task fine-tuning).

    accelerate launch training/finetune.py --config training/recipes/finetune.yaml \
        --model_path org/syvla-3b --robot_datasets path/to/dataset --output_dir outputs/my-policy

Every key of the recipe is an option of the command line, which wins.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from training.arguments import DataArguments, ModelArguments, SyVLATrainingArguments
from training.recipe import parse_recipe

logger = logging.getLogger("training.finetune")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `syvla-finetune`. Returns the exit status; bad input is printed as one error."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        model_args, data_args, args = parse_recipe((ModelArguments, DataArguments, SyVLATrainingArguments), argv)
        finetune(model_args, data_args, args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def finetune(model_args: ModelArguments, data_args: DataArguments, args: SyVLATrainingArguments) -> Any:
    """Load, validate, train, save. Returns the trainer.

    Raises:
        ValueError: On any problem with data, model or arguments, before training starts.
    """
    from transformers import set_seed

    from processing.mixture import MixtureDataset
    from training.run_description import describe_multimodal_dataset, describe_robot_dataset, hub_id
    from training.trainer import SyVLATrainer

    if not model_args.model_path or not data_args.robot_specs:
        raise ValueError("model_path and robot_datasets: both are needed; pass a checkpoint and at least one dataset")
    data_args.require_both_sides()
    set_seed(args.seed)
    model, processor = load_checkpoint(model_args)
    robot = load_robot_data(data_args, model, processor)
    multimodal = load_multimodal_data(data_args, processor)
    if data_args.validate_data:
        validate(robot, multimodal, model, processor, data_args.validate_images)
    embodiments = {dataset.embodiment for dataset in robot}
    trainer = SyVLATrainer(
        model=choose_trained_weights(model_args, model, embodiments),
        args=args,
        processing_class=processor,
        train_dataset=MixtureDataset(robot, multimodal),
        multimodal_share=data_args.multimodal_share if multimodal else 0.0,
        robot_weights=_weights(data_args.robot_specs),
        multimodal_weights=_weights(data_args.multimodal_specs),
        card={
            "base_model": hub_id(model_args.model_path),
            "datasets": [
                *map(describe_robot_dataset, data_args.robot_specs, robot),
                *map(describe_multimodal_dataset, data_args.multimodal_specs, multimodal),
            ],
            "freeze": model_args.freeze,
        },
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model(args.output_dir)
    if trainer.is_world_process_zero():
        history = Path(args.output_dir) / "log_history.json"
        history.write_text(json.dumps(trainer.state.log_history, indent=1) + "\n", encoding="utf-8")
        print(json.dumps({"checkpoint": str(args.output_dir), "steps": trainer.state.global_step}))
    return trainer


def load_checkpoint(model_args: ModelArguments) -> tuple[Any, Any]:
    """Model in float32 master weights and its processor, with `model_overrides` applied to the config."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoProcessor

    import processing.processing_syvla  # noqa: F401  (registers the Auto classes)
    from modeling_syvla.resizing import resize_chunk, resize_queries

    if (Path(model_args.model_path) / "adapter_config.json").is_file():
        raise ValueError(
            f"model_path: {model_args.model_path} holds an adapter; merge it into its base first (python -m training.adapters "
            "merge BASE ADAPTER OUTPUT), or continue its run with resume_from_checkpoint"
        )
    if not Path(model_args.model_path).exists() and len(Path(model_args.model_path).parts) > 2:
        raise ValueError(f"model_path: {model_args.model_path} is no folder; pass a checkpoint folder or a Hub id")
    try:
        overrides = json.loads(model_args.model_overrides or "{}")
    except json.JSONDecodeError as error:
        raise ValueError(f"model_overrides: expected JSON, got {model_args.model_overrides!r} ({error})") from error
    config = AutoConfig.from_pretrained(model_args.model_path, revision=model_args.model_revision)
    unknown = sorted(key for key in overrides if not hasattr(config, key))
    if unknown:
        raise ValueError(f"model_overrides: {unknown} are no fields of the model's config")
    for key, value in overrides.items():
        setattr(config, key, value)
    kwargs: dict[str, Any] = {"config": config, "revision": model_args.model_revision, "dtype": torch.float32}
    if model_args.attn_implementation:
        kwargs["attn_implementation"] = {"": "sdpa", "vlm_config": model_args.attn_implementation}
    model = AutoModel.from_pretrained(model_args.model_path, **kwargs)
    processor = AutoProcessor.from_pretrained(model_args.model_path, revision=model_args.model_revision)
    if model_args.chunk_size is not None:
        resize_chunk(model, model_args.chunk_size)
        processor.chunk_size = model_args.chunk_size
    if model_args.num_query_tokens is not None:
        resize_queries(model, model_args.num_query_tokens)
        processor.num_query_tokens = model_args.num_query_tokens
    return model, processor


def choose_trained_weights(model_args: ModelArguments, model: Any, embodiments: Collection[str]) -> Any:
    """The model with `freeze` applied, or wrapped with the adapter. Robots without data in this run stay frozen."""
    from training.adapters import add_adapter
    from training.freezing import freeze, trainable_parameters

    if model_args.adapter == "none":
        freeze(model, model_args.freeze, embodiments)
    else:
        trained_modules = [name for name in model_args.adapter_trained_modules if name != "none"]
        if model_args.chunk_size is not None:
            trained_modules.append("expert.action_position_embedding")
        model = add_adapter(
            model,
            model_args.adapter,
            model_args.adapter_scope,
            rank=model_args.adapter_rank,
            alpha=model_args.adapter_alpha,
            dropout=model_args.adapter_dropout,
            trained_modules=trained_modules,
            embodiments=embodiments,
        )
    trained, count = trainable_parameters(model)
    logger.info("training %d of %d parameters", trained, count)
    return model


def load_robot_data(data_args: DataArguments, model: Any, processor: Any) -> list[Any]:
    """Open the datasets and register their embodiments with processor and model.

    Statistics: those of the checkpoint stay unless `recompute_statistics`; a new embodiment gets those of all its frames.

    Raises:
        ValueError: If datasets cannot be opened, with the problems of all of them, or hold values without statistics.
    """
    from processing.dataset_validation import require_valid
    from processing.robot_dataset import RobotDataset, pooled_statistics

    datasets, problems = [], []
    by_embodiment: dict[str, list[Any]] = {}
    modes: dict[str, Any] = {}
    deltas: dict[str, list[int] | None] = {}
    for spec in data_args.robot_specs:
        options = {
            k: v for k, v in spec.items() if k not in ("path", "weight", "normalization", "units", "delta_actions")
        }
        name = options.pop("embodiment", None) or _only_embodiment(processor, spec)
        options.setdefault("cache_images", data_args.cache_images)
        if data_args.ignore_thoughts:
            options["thought_source"] = None
        try:
            dataset = RobotDataset(spec["path"], embodiment=name, chunk_size=processor.chunk_size, **options)
            references = _delta_references(spec, dataset, processor.embodiments.get(name, {}))
        except (ValueError, OSError) as error:
            problems.append(f"{spec['path']}: {error}")
            continue
        datasets.append(dataset)
        by_embodiment.setdefault(name, []).append(dataset)
        mode = spec.get("normalization")
        modes.setdefault(name, {"state": mode, "action": mode} if isinstance(mode, str) else mode)
        if deltas.setdefault(name, references) != references:
            problems.append(f"{spec['path']}: delta_actions differs from that of other data sets of {name!r}; use one")
    if problems:
        raise ValueError("robot_datasets: not all of them can be opened:\n" + "\n".join(problems))
    if data_args.validate_data:
        require_valid(datasets, images="none")  # values first: statistics of NaN would be refused one by one
    for name, members in by_embodiment.items():
        if name not in processor.embodiments or data_args.recompute_statistics:
            first = members[0]
            processor.set_embodiment(
                name,
                pooled_statistics(members, deltas[name]),
                modes[name],
                deltas[name],
                state_names=first.state_names,
                action_names=first.action_names,
                control_hz=first.control_hz,
                cameras=dict(first.cameras),
            )
        entry = processor.embodiments[name]
        if deltas[name] != entry.get("delta_actions"):
            raise ValueError(
                f"delta_actions: the checkpoint's embodiment {name!r} was trained with {entry.get('delta_actions')}, the data "
                f"says {deltas[name]} (state dimension per action dimension, -1 absolute); use the checkpoint's, a new "
                "embodiment, or recompute_statistics"
            )
        for spec in data_args.robot_specs:
            if spec.get("units") and (spec.get("embodiment") or name) == name:
                entry.update(_units(spec, entry))
        model.add_embodiment(name, entry["state_dim"], entry["action_dim"])
        entry["id"] = model.config.embodiments[name]["id"]
    return datasets


def _delta_references(spec: dict[str, Any], dataset: Any, known: dict[str, Any]) -> list[int] | None:
    """What the data set's actions are relative to; where its entry does not say, as the checkpoint was trained."""
    if "delta_actions" not in spec:
        return known.get("delta_actions")
    from processing.delta_actions import ABSOLUTE, delta_references

    references = delta_references(
        spec["delta_actions"],
        dataset.state_dim,
        dataset.action_dim,
        dataset.state_names,
        dataset.action_names,
    )
    return references if max(references) != ABSOLUTE else None


def _units(spec: dict[str, Any], entry: dict[str, Any]) -> dict[str, list[str]]:
    """Units per dimension from a dataset's `units`, for the processor and the model card."""
    units = spec["units"]
    for kind in ("state", "action"):
        if not isinstance(units, dict) or len(units.get(kind) or ()) != entry[f"{kind}_dim"]:
            raise ValueError(
                f'units: {spec["path"]}: expected {{"state": [...], "action": [...]}} with one unit per dimension, '
                f"{entry['state_dim']} and {entry['action_dim']} of them; got {units}"
            )
    return {f"{kind}_units": list(units[kind]) for kind in ("state", "action")}


def load_multimodal_data(data_args: DataArguments, processor: Any) -> list[Any]:
    """Open the vision-language datasets.

    Raises:
        ValueError: If any cannot be opened, with the problems of all of them.
    """
    from processing.multimodal_dataset import MultimodalDataset, resized_size

    datasets, problems = [], []
    for spec in data_args.multimodal_specs:
        options = {key: value for key, value in spec.items() if key not in ("path", "weight")}
        try:
            rule = partial(resized_size, processor.image_processor)
            datasets.append(MultimodalDataset(spec["path"], resized_size=rule, **options))
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
    from processing.dataset_validation import require_valid, require_valid_chats

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
        return next(iter(processor.embodiments))
    raise ValueError(
        f'robot_datasets: {spec["path"]} names no embodiment; add "embodiment": a name for this robot '
        f"(the checkpoint knows {sorted(processor.embodiments) or 'none'})"
    )


def _weights(specs: Sequence[dict[str, Any]]) -> list[float] | None:
    if not any("weight" in spec for spec in specs):
        return None
    missing = [spec["path"] for spec in specs if "weight" not in spec]
    if missing:
        raise ValueError(f"weight: given for some datasets but not for {missing}; give all or none")
    return [float(spec["weight"]) for spec in specs]


if __name__ == "__main__":
    sys.exit(main())
