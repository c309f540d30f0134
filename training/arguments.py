"""Arguments of the training scripts: model, data and optimisation, with the fine-tuning column of Table 7 as defaults."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments


@dataclass
class ModelArguments:
    """What is trained."""

    model_path: str = field(default="", metadata={"help": "Checkpoint folder or Hub id to start from."})
    model_revision: str = field(default="main", metadata={"help": "Hub revision of the checkpoint."})
    model_overrides: str | None = field(
        default=None,
        metadata={"help": "JSON with fields of SyVLAConfig to change, e.g. '{\"decoupling_quantile\": 0.1}'."},
    )
    attn_implementation: str | None = field(default=None, metadata={"help": "Attention of the VLM, e.g. sdpa."})
    freeze_vlm: bool = field(default=False, metadata={"help": "Train adapter, queries and expert only."})


@dataclass
class DataArguments:
    """What it is trained on."""

    robot_datasets: list[str] = field(
        default_factory=list,
        metadata={
            "help": "LeRobot datasets: paths or Hub ids, or JSON objects with path, embodiment, cameras, state_key, "
            "action_key, thought_source, weight, episodes, revision, normalization."
        },
    )
    multimodal_datasets: list[str] = field(
        default_factory=list,
        metadata={"help": "Chat datasets with the columns messages and images: paths, Hub ids or JSON objects."},
    )
    multimodal_share: float = field(
        default=0.30, metadata={"help": "Share of multi-modal samples in every batch; 0 without multi-modal data."}
    )
    recompute_statistics: bool = field(
        default=False,
        metadata={"help": "Replace the normalisation statistics that the checkpoint has for an embodiment."},
    )
    cache_images: bool = field(default=False, metadata={"help": "Keep decoded frames in memory (small datasets)."})
    validate_data: bool = field(default=True, metadata={"help": "Check all data against the model before training."})

    def __post_init__(self) -> None:
        self.robot_specs = [_spec(entry, "robot_datasets") for entry in self.robot_datasets]
        self.multimodal_specs = [_spec(entry, "multimodal_datasets") for entry in self.multimodal_datasets]


@dataclass
class SyVLATrainingArguments(TrainingArguments):
    """`TrainingArguments` with the paper's fine-tuning defaults (Table 7).

    Defaults that differ from `TrainingArguments`: learning_rate, warmup_steps, lr_scheduler_type, adam_beta2, weight
    decay stays 0, per_device_train_batch_size, remove_unused_columns, logging_steps, report_to.
    """

    learning_rate: float = field(default=3e-5, metadata={"help": "Peak learning rate (Table 7)."})
    final_learning_rate: float = field(default=3e-6, metadata={"help": "Learning rate at the end (Table 7)."})
    lr_scheduler_type: str = field(
        default="cosine_with_min_lr",
        metadata={"help": "Schedule; cosine with warm-up to final_learning_rate (Table 7)."},
    )
    warmup_steps: float = field(default=1000, metadata={"help": "Warm-up steps, or a share of all steps if below 1."})
    adam_beta2: float = field(default=0.995, metadata={"help": "AdamW beta 2 (Table 7)."})
    per_device_train_batch_size: int = field(
        default=4, metadata={"help": "Batch per process; Table 7's 32 is 4 on each of 8 GPUs."}
    )
    max_steps: int = field(default=-1, metadata={"help": "Optimisation steps; -1: num_train_epochs decides."})
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay off: samples are dicts of raw data."}
    )
    logging_steps: float = field(default=10, metadata={"help": "Steps between log lines."})
    report_to: None | str | list[str] = field(  # noqa: RUF036  (HfArgumentParser wants this order)
        default="none", metadata={"help": "Trackers, e.g. trackio or wandb."}
    )

    def __post_init__(self) -> None:
        if self.lr_scheduler_type == "cosine_with_min_lr" and not getattr(self, "lr_scheduler_kwargs", None):
            self.lr_scheduler_kwargs: Any = {"min_lr": self.final_learning_rate}
        super().__post_init__()


def _spec(entry: str | dict[str, Any], name: str) -> dict[str, Any]:
    if isinstance(entry, str):
        entry = json.loads(entry) if entry.lstrip().startswith("{") else {"path": entry}
    if "path" not in entry:
        raise ValueError(f"{name}: every entry needs a 'path', got {entry}")
    return entry
