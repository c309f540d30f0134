"""What fine-tuning and pretraining share: load, check, train, save."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from syvla.command_line import error_text
from syvla.durable_files import write_json
from syvla.training.hub.model_card import RECIPE_FIELDS
from syvla.training.processes.process_group import leave_process_group
from syvla.training.run.arguments import DataArguments, ModelArguments, SyVLATrainingArguments
from syvla.training.run.evaluation_arguments import require_held_out
from syvla.training.run.recipe import parse_recipe
from syvla.training.run.requirements import require_autocast
from syvla.training.run.run_examples import examples_of
from syvla.training.run.run_page import Example
from syvla.training.run.run_page_callback import RunPageCallback

from .datasets import dataset_weights, load_held_out_robot_data, load_multimodal_data, load_robot_data, validate
from .held_out import HeldOutSamples

logger = logging.getLogger(__name__)

EVALUATION_FILE = "eval_results.json"
"""Losses on held-out data at the end of a run, in its output folder."""


def main(
    argv: Sequence[str] | None = None,
    data_type: type[DataArguments] = DataArguments,
    training_type: type[SyVLATrainingArguments] = SyVLATrainingArguments,
    about: str | None = None,
    command: str = "syvla-finetune",
) -> int:
    """Parse recipe and command line, and train. Returns the exit status; bad input is printed as one error.

    Args:
        argv: Command line; None: `sys.argv`.
        data_type, training_type: Arguments with the defaults of the stage.
        about: Docstring of the command, for `--help`.
        command: Its name, for messages.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        model_args, data_args, args = parse_recipe(
            (ModelArguments, data_type, training_type), argv, about, prog=command
        )
        train(model_args, data_args, args)
    except (ValueError, OSError) as error:
        print(error_text(f"{command}: error", error), file=sys.stderr)
        return 1
    leave_process_group()
    return 0


def train(model_args: ModelArguments, data_args: DataArguments, args: SyVLATrainingArguments) -> Any:
    """Load, validate, train, save. Returns the trainer.

    Raises:
        ValueError: On any problem with data, model or arguments, before training starts.
    """
    from transformers import set_seed

    from syvla.processing.augmentation import Augmentation, describe_augmentation
    from syvla.processing.file_order import file_orders
    from syvla.processing.mixture import MixtureDataset
    from syvla.training.hub.run_description import describe_multimodal_dataset, describe_robot_dataset, hub_id

    from .trainer import SyVLATrainer

    if not model_args.model_path or not data_args.robot_specs:
        raise ValueError("model_path and robot_datasets: both are needed; pass a checkpoint and at least one dataset")
    require_held_out(args, data_args.holds_out)
    if not args.do_train:
        return measure(model_args, data_args, args)
    data_args.require_both_sides()
    set_seed(args.seed)
    model, processor = load_checkpoint(model_args)
    robot = load_robot_data(data_args, model, processor)
    held_out_robot = load_held_out_robot_data(data_args, processor)
    skip_log = Path(args.output_dir) / f"skipped_rows{_rank(args)}.jsonl"
    multimodal, held_out_multimodal = load_multimodal_data(data_args, processor, skip_log)
    held_out = HeldOutSamples(held_out_robot, held_out_multimodal, args.eval_samples)
    if data_args.validate_data:
        members = [*robot, *held_out_robot], [*multimodal, *held_out_multimodal]
        validate(*members, model, processor, data_args.validate_images)
    embodiments = {dataset.embodiment for dataset in robot}
    augmentation = None
    if data_args.augmentation_settings is not None:
        seed = args.seed if args.data_seed is None else args.data_seed
        augmentation = Augmentation(data_args.augmentation_settings, processor.embodiments, seed)
        logger.info("augmentation: %s", describe_augmentation(data_args.augmentation_settings))
    require_autocast(model, args)
    trainer = SyVLATrainer(
        model=choose_trained_weights(model_args, model, embodiments),
        args=args,
        processing_class=processor,
        train_dataset=MixtureDataset(robot, multimodal, augmentation),
        eval_dataset=held_out if len(held_out) else None,
        multimodal_share=data_args.multimodal_share if multimodal else 0.0,
        robot_weights=dataset_weights(data_args.robot_specs),
        multimodal_weights=dataset_weights(data_args.multimodal_specs),
        robot_orders=file_orders(data_args.robot_specs, robot),
        card={
            "base_model": hub_id(model_args.model_path),
            "datasets": [
                *map(describe_robot_dataset, data_args.robot_specs, robot),
                *map(describe_multimodal_dataset, data_args.multimodal_specs, multimodal),
            ],
            "freeze": model_args.freeze,
            "augmentation": describe_augmentation(data_args.augmentation_settings),
        },
    )
    if args.open_loop_steps:
        trainer.add_callback(_open_loop(trainer, held_out_robot))
    page = _run_page(trainer)
    trainer.add_callback(page)
    with page.ending_said(trainer):
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model(args.output_dir)
    evaluate_at_end(trainer)
    if trainer.is_world_process_zero():
        write_json(Path(args.output_dir) / "log_history.json", trainer.state.log_history, allow_nan=True)
        print(json.dumps({"checkpoint": str(args.output_dir), "steps": trainer.state.global_step}))
    return trainer


def _open_loop(trainer: Any, held_out: Sequence[Any]) -> Any:
    """What compares predicted with recorded actions on held-out episodes."""
    from syvla.evaluation.open_loop.evaluation import measure_open_loop

    from .loss_metrics import source_names
    from .open_loop_callback import OpenLoopCallback

    if not held_out:
        raise ValueError("open_loop_steps: no episodes are held out to compare on; hold some out with --eval_split 0.1")
    trainer._require_whole_weights("open_loop_steps", "predicting actions")
    return OpenLoopCallback(trainer, measure_open_loop, held_out, source_names(held_out), trainer.args.open_loop_steps)


def _run_page(trainer: Any) -> RunPageCallback:
    """What writes the page of a run."""
    from .loss_metrics import source_names

    card, data = trainer.card, trainer.train_dataset

    def facts() -> dict[str, dict[str, Any]]:
        fields = trainer._card_fields()
        recipe = {text: fields["arguments"].get(key) for key, text in RECIPE_FIELDS.items()}
        tables = {"Configuration": {"processes": trainer.args.world_size, **recipe, "freeze": card.get("freeze")}}
        if fields["adapter"]:
            tables["Adapter"] = fields["adapter"]
        if card.get("augmentation"):
            tables["Augmentation"] = card["augmentation"]
        if held_out := trainer.run_settings()["fixed"].get("held_out"):
            tables["Held out"] = {
                name: f"episodes {part}" if isinstance(part, list) else f"{part} rows" for name, part in held_out
            }
        return tables

    def examples() -> list[Example]:
        return examples_of(data, source_names(data.datasets), trainer.processing_class)

    return RunPageCallback(facts, card["datasets"], examples)


def measure(model_args: ModelArguments, data_args: DataArguments, args: SyVLATrainingArguments) -> Any:
    """Load, validate and measure the loss of a checkpoint on held-out data, without training. Returns the trainer.

    Writes `eval_results.json` into output_dir.

    Raises:
        ValueError: On any problem with data, model or arguments.
    """
    from .trainer import SyVLATrainer

    model, processor = load_checkpoint(model_args)
    robot = load_robot_data(data_args, model, processor, held_out=True)
    multimodal = load_multimodal_data(data_args, processor)[1]
    if data_args.validate_data:
        validate(robot, multimodal, model, processor, data_args.validate_images)
    require_autocast(model, args)
    held_out = HeldOutSamples(robot, multimodal, args.eval_samples)
    trainer = SyVLATrainer(model=model, args=args, processing_class=processor, eval_dataset=held_out)
    metrics = trainer.evaluate()
    if trainer.is_world_process_zero():
        write_json(Path(args.output_dir) / EVALUATION_FILE, metrics, allow_nan=True)
        print(json.dumps({"checkpoint": model_args.model_path, **metrics}))
    return trainer


def evaluate_at_end(trainer: Any) -> None:
    """Measures the trained weights on the held-out data, where there is any, and writes `eval_results.json`."""
    args, state = trainer.args, trainer.state
    if trainer.eval_dataset is None or args.do_eval is False:
        return
    measured = [entry for entry in state.log_history if "eval_loss" in entry and entry["step"] == state.global_step]
    metrics = measured[-1] if measured and not args.load_best_model_at_end else trainer.evaluate()
    if trainer.is_world_process_zero():
        write_json(Path(args.output_dir) / EVALUATION_FILE, metrics, allow_nan=True)
    trainer.create_model_card()  # with these losses


def _rank(args: SyVLATrainingArguments) -> str:
    return "" if args.process_index == 0 else f"_{args.process_index}"


def load_checkpoint(model_args: ModelArguments) -> tuple[Any, Any]:
    """Model and its processor, with `model_overrides` applied to the config.

    Weights that are trained themselves are float32 master weights. Under an adapter, which trains its own, the frozen base
    keeps the dtype of the checkpoint.
    """
    import torch
    from transformers import AutoConfig, AutoModel, AutoProcessor

    import syvla  # noqa: F401  registers the Auto classes
    from syvla.modeling_syvla.resizing import resize_chunk, resize_queries, resize_views
    from syvla.processing.lfs_pointers import require_contents

    if (Path(model_args.model_path) / "adapter_config.json").is_file():
        raise ValueError(
            f"model_path: {model_args.model_path} holds an adapter; merge it into its base first "
            "(python -m syvla.training.run.adapters merge BASE ADAPTER OUTPUT), or continue its run with resume_from_checkpoint"
        )
    if not Path(model_args.model_path).exists() and len(Path(model_args.model_path).parts) > 2:
        raise ValueError(f"model_path: {model_args.model_path} is no folder; pass a checkpoint folder or a Hub id")
    require_contents(path for path in sorted(Path(model_args.model_path).glob("*")) if path.is_file())
    try:
        overrides = json.loads(model_args.model_overrides or "{}")
    except json.JSONDecodeError as error:
        raise ValueError(f"model_overrides: expected JSON, got {model_args.model_overrides!r} ({error})") from error
    config = AutoConfig.from_pretrained(model_args.model_path, revision=model_args.model_revision)
    unknown = sorted(key for key in overrides if not hasattr(config, key))
    if unknown:
        raise ValueError(f"model_overrides: {unknown} are no fields of the model's config")
    if "views" in overrides:
        raise ValueError(
            "model_overrides: views are changed with the option views, which changes their embeddings as well"
        )
    for key, value in overrides.items():
        setattr(config, key, value)
    kwargs: dict[str, Any] = {"config": config, "revision": model_args.model_revision}
    kwargs["dtype"] = torch.float32 if model_args.adapter == "none" else "auto"
    if model_args.attn_implementation:
        kwargs["attn_implementation"] = {"": "sdpa", "vlm_config": model_args.attn_implementation}
    model = AutoModel.from_pretrained(model_args.model_path, **kwargs)
    processor = AutoProcessor.from_pretrained(model_args.model_path, revision=model_args.model_revision)
    if model_args.chunk_size is not None:
        resize_chunk(model, model_args.chunk_size)
        processor.chunk_size = model_args.chunk_size
    if model_args.views:
        renamed = dict(entry.split("=", 1) for entry in model_args.views if "=" in entry)
        resize_views(model, [entry.split("=", 1)[0] for entry in model_args.views], renamed)
        processor.views = list(model.config.views)
    if model_args.num_query_tokens is not None:
        resize_queries(model, model_args.num_query_tokens)
        processor.num_query_tokens = model_args.num_query_tokens
    return model, processor


def choose_trained_weights(model_args: ModelArguments, model: Any, embodiments: Collection[str]) -> Any:
    """The model with `freeze` applied, or wrapped with the adapter. Robots without data in this run stay frozen."""
    from syvla.training.run.adapters import add_adapter
    from syvla.training.run.freezing import freeze, trainable_parameters

    if model_args.adapter == "none":
        freeze(model, model_args.freeze, embodiments)
    else:
        trained_modules = [name for name in model_args.adapter_trained_modules if name != "none"]
        if model_args.chunk_size is not None:
            trained_modules.append("expert.action_position_embedding")
        if model_args.views:
            trained_modules.append("expert.view_embedding")
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
