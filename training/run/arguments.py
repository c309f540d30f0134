"""Arguments of the training scripts: model, data and optimization, with the fine-tuning column of Table 7 as defaults."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from transformers import TrainingArguments

from syvla.processing.augmentation import STRENGTHS, augmentation_settings

from .adapters import ADAPTERS, SCOPES, TRAINED_MODULES
from .checkpoints import RESUME_HELP
from .evaluation_arguments import (
    DO_EVAL_HELP,
    DO_TRAIN_HELP,
    EVAL_ROWS_HELP,
    EVAL_SAMPLES_HELP,
    EVAL_SPLIT_HELP,
    OPEN_LOOP_HELP,
    parse_eval_split,
    settle_evaluation,
)
from .finite_steps import NONFINITE_HELP
from .freezing import FREEZE_PRESETS
from .requirements import require_trackers
from .run_settings import OVERWRITE_HELP
from .schedule import WITH_FINAL_RATE, require_falling_rate

ROBOT_KEYS = (
    "path",
    "embodiment",
    "cameras",
    "state_key",
    "action_key",
    "thought_source",
    "weight",
    "episodes",
    "revision",
    "streaming",
    "cache_gb",
    "shuffle_files",
    "normalization",
    "clip",
    "units",
    "cache_images",
    "tolerance_s",
    "memory_limit",
    "cache_dir",
    "filter_file",
    "control_hz",
    "resample",
    "delta_actions",
    "accept",
    "eval_split",
    "license",
    "note",
)
MULTIMODAL_KEYS = (
    "path",
    "weight",
    "format",
    "images",
    "annotations",
    "split",
    "revision",
    "streaming",
    "rows",
    "shuffle_buffer",
    "max_pixels",
    "eval_rows",
)


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
    chunk_size: int | None = field(
        default=None, metadata={"help": "Actions predicted at once, if other than the checkpoint's."}
    )
    views: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Camera views, if other than the checkpoint's: names in order, any number of them. NEW=OLD gives a view "
            "of the checkpoint another name; a view that it lacks starts from the mean of its own."
        },
    )
    num_query_tokens: int | None = field(
        default=None, metadata={"help": "Feature Query Tokens, if another number than the checkpoint's (Table 5)."}
    )
    freeze: str = field(
        default="none",
        metadata={
            "help": "What stays as it is: vlm, vision (both image encoders), vlm_and_vision, or all_but_embodiments "
            "(only the robots' encoders and decoders, queries and adapter are trained).",
            "choices": list(FREEZE_PRESETS),
        },
    )
    adapter: str = field(
        default="none",
        metadata={"help": "Train a LoRA or DoRA adapter instead of the weights.", "choices": list(ADAPTERS)},
    )
    adapter_scope: str = field(
        default="both", metadata={"help": "Transformers that the adapter changes.", "choices": list(SCOPES)}
    )
    adapter_rank: int = field(default=16, metadata={"help": "Rank of the adapter's updates."})
    adapter_alpha: float = field(default=32.0, metadata={"help": "Updates are scaled by alpha / rank."})
    adapter_dropout: float = field(
        default=0.0,
        metadata={"help": "Dropout on the adapter's inputs; above 0 the passes of Intention Decoupling differ."},
    )
    adapter_trained_modules: list[str] = field(
        default_factory=lambda: list(TRAINED_MODULES),
        metadata={"help": "Modules trained fully and saved with the adapter; none: no module."},
    )

    def __post_init__(self) -> None:
        if self.adapter != "none" and self.freeze != "none":
            raise ValueError(
                f"freeze: {self.freeze!r} has no meaning with adapter={self.adapter!r}, which freezes all weights but its "
                "own; choose them with adapter_scope and adapter_trained_modules"
            )


@dataclass
class DataArguments:
    """What it is trained on."""

    robot_datasets: list[str] = field(
        default_factory=list,
        metadata={"help": f"LeRobot datasets: paths or Hub ids, or JSON objects with {', '.join(ROBOT_KEYS)}."},
    )
    multimodal_datasets: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Chat datasets with the columns messages and images: paths or Hub ids, or JSON objects with "
            f"{', '.join(MULTIMODAL_KEYS)}."
        },
    )
    multimodal_share: float = field(
        default=0.30, metadata={"help": "Share of multi-modal samples in every batch; 0 without multi-modal data."}
    )
    eval_split: str | None = field(default=None, metadata={"help": EVAL_SPLIT_HELP})
    multimodal_eval_rows: int | None = field(default=None, metadata={"help": EVAL_ROWS_HELP})
    max_pixels: int = field(
        default=1280 * 28 * 28,
        metadata={
            "help": "Larger images of multi-modal data are resized to about this many pixels (784 a token); a photo of 12 "
            "megapixels would else be 15,577 tokens. An entry of multimodal_datasets may say otherwise."
        },
    )
    max_skipped_share: float = field(
        default=0.5,
        metadata={
            "help": "Share of a multi-modal dataset's rows that may be unusable; beyond it the run ends with the causes. "
            "Skipped rows are named in skipped_rows.jsonl in output_dir."
        },
    )
    augmentation: str = field(
        default="none",
        metadata={
            "help": "Random changes of robot images in training: crop, turn and colors (default: openpi's and GR00T's), with "
            "strong also blur, JPEG, missing views, and noise on the state. See it: python -m "
            "syvla.training.show_augmentation.",
            "choices": list(STRENGTHS),
        },
    )
    augmentation_details: str | None = field(
        default=None,
        metadata={
            "help": "JSON (in a recipe: a mapping) with single fields of AugmentationSettings that differ from the "
            'strength\'s, e.g. \'{"rotation": 0, "view_dropout": 0.1}\'.'
        },
    )
    ignore_thoughts: bool = field(
        default=False,
        metadata={"help": "Train as if no dataset had thoughts (without CoT, Table 3), whatever their thought_source."},
    )
    recompute_statistics: bool = field(
        default=False,
        metadata={"help": "Replace the normalization statistics that the checkpoint has for an embodiment."},
    )
    cache_images: bool = field(default=False, metadata={"help": "Keep decoded frames in memory (small datasets)."})
    validate_data: bool = field(default=True, metadata={"help": "Check all data against the model before training."})
    validate_images: str = field(
        default="ends",
        metadata={
            "help": "Robot images that this check decodes: ends (first and last of each episode), all (finds damage in the "
            "middle of a video, and takes as long as one pass over the data) or none.",
            "choices": ["ends", "all", "none"],
        },
    )

    def __post_init__(self) -> None:
        if not 0.0 <= self.multimodal_share < 1.0:
            raise ValueError(f"multimodal_share: expected a number in [0, 1), got {self.multimodal_share}")
        if not 0.0 <= self.max_skipped_share <= 1.0:
            raise ValueError(f"max_skipped_share: expected a number in [0, 1], got {self.max_skipped_share}")
        self.augmentation_settings = augmentation_settings(
            self.augmentation, json_mapping("augmentation_details", self.augmentation_details)
        )
        self.robot_specs = [dataset_spec(entry, "robot_datasets", ROBOT_KEYS) for entry in self.robot_datasets]
        self.multimodal_specs = [
            dataset_spec(entry, "multimodal_datasets", MULTIMODAL_KEYS) for entry in self.multimodal_datasets
        ]
        common = parse_eval_split(self.eval_split)
        for spec in self.robot_specs:
            if common is not None or "eval_split" in spec:
                spec["eval_split"] = parse_eval_split(spec.get("eval_split", common))

    @property
    def holds_out(self) -> bool:
        """Whether any dataset says that a part of it is not trained on."""
        rows = [spec.get("eval_rows", self.multimodal_eval_rows) for spec in self.multimodal_specs]
        return any(rows) or any(spec.get("eval_split") is not None for spec in self.robot_specs)

    def require_both_sides(self) -> None:
        """Makes sure that the mixture can be made, before anything heavy is loaded.

        Raises:
            ValueError: If a side that the share calls for has no datasets.
        """
        if not self.robot_specs:
            raise ValueError("robot_datasets: none given; list at least one LeRobot dataset")
        if self.multimodal_share and not self.multimodal_specs:
            raise ValueError(
                f"multimodal_share: {self.multimodal_share} of every batch is to be multi-modal, but no multimodal_datasets "
                "are given; list some, or set multimodal_share to 0 to train on robot data alone (the VLM then forgets "
                "what it knew: paper, Table 9)"
            )


@dataclass
class SyVLATrainingArguments(TrainingArguments):
    """`TrainingArguments` with the paper's fine-tuning defaults (Table 7).

    Defaults that differ from `TrainingArguments`: learning_rate, warmup_steps, lr_scheduler_type, adam_beta2, weight
    decay stays 0, per_device_train_batch_size, remove_unused_columns, logging_steps, report_to.
    """

    if TYPE_CHECKING:
        output_dir: str = ""  # `TrainingArguments` chooses a folder where none is given

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
    max_steps: int = field(default=-1, metadata={"help": "Optimization steps; -1: num_train_epochs decides."})
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay off: samples are dicts of raw data."}
    )
    ema_decay: float = field(
        default=0.0,
        metadata={"help": "Decay of an exponential moving average of the weights, which is saved instead; 0: off."},
    )
    max_nonfinite_steps: int = field(default=3, metadata={"help": NONFINITE_HELP})
    vlm_eval_steps: int = field(
        default=0,
        metadata={"help": "Steps between measurements of what the VLM still knows (eval_vlm/<benchmark>); 0: off."},
    )
    vlm_eval_tasks: list[str] = field(
        default_factory=lambda: ["ai2d", "mme"],
        metadata={
            "help": "Benchmarks to measure: docvqa, ai2d, mmmu, mme, hallusionbench. Ours: two with short answers."
        },
    )
    vlm_eval_rows: int = field(default=64, metadata={"help": "First rows of each benchmark to ask; even for mme."})
    vlm_eval_data_root: str | None = field(
        default=None, metadata={"help": "Folder with their datasets, as --data-root of syvla-eval-vlm; none: the Hub."}
    )
    vlm_eval_max_new_tokens: int = field(
        default=16, metadata={"help": "Longest answer in tokens, so that a model that rambles costs little time."}
    )
    do_train: bool = field(default=True, metadata={"help": DO_TRAIN_HELP})
    do_eval: bool | None = field(  # type: ignore[assignment]  # none: not said
        default=None, metadata={"help": DO_EVAL_HELP}
    )
    eval_samples: int = field(default=0, metadata={"help": EVAL_SAMPLES_HELP})
    open_loop_steps: int = field(default=0, metadata={"help": OPEN_LOOP_HELP})
    length_bucket: int = field(
        default=1,
        metadata={"help": "Sequences are padded to a multiple of this many tokens, so that few shapes occur; 1: off."},
    )
    padding_free: bool | None = field(
        default=None,
        metadata={
            "help": "Run the VLM on the real tokens of a batch alone, all samples in one row, with the same losses; none: "
            "where model and settings allow it."
        },
    )
    resume_from_checkpoint: str | None = field(default=None, metadata={"help": RESUME_HELP})
    overwrite_output_dir: bool = field(default=False, metadata={"help": OVERWRITE_HELP})
    logging_steps: float = field(default=10, metadata={"help": "Steps between log lines."})
    report_to: None | str | list[str] = field(  # noqa: RUF036  (HfArgumentParser wants this order)
        default="none", metadata={"help": "Trackers, e.g. trackio or wandb."}
    )

    def __post_init__(self) -> None:
        if not 0.0 <= self.ema_decay < 1.0:
            raise ValueError(f"ema_decay: expected a number in [0, 1), got {self.ema_decay}")
        if self.length_bucket < 1:
            raise ValueError(f"length_bucket: expected a number of tokens of at least 1, got {self.length_bucket}")
        require_trackers(self.report_to)
        if self.max_nonfinite_steps < 0:
            raise ValueError(f"max_nonfinite_steps: expected 0 or more, got {self.max_nonfinite_steps}")
        if self.vlm_eval_steps < 0:
            raise ValueError(f"vlm_eval_steps: expected 0 (off) or more, got {self.vlm_eval_steps}")
        settle_evaluation(self)
        if not getattr(self, "lr_scheduler_kwargs", None):
            require_falling_rate(self)
        if self.lr_scheduler_type == WITH_FINAL_RATE and not getattr(self, "lr_scheduler_kwargs", None):
            # A share rather than `min_lr`, for which the schedule asks the optimizer, and DeepSpeed's does not answer.
            self.lr_scheduler_kwargs: Any = {"min_lr_rate": self.final_learning_rate / (self.learning_rate or 1.0)}
        super().__post_init__()


@dataclass
class PretrainingDataArguments(DataArguments):
    """What it is pretrained on."""

    multimodal_share: float = field(
        default=0.35, metadata={"help": "Share of multi-modal samples in every batch (paper, appendix A)."}
    )


@dataclass
class SyVLAPretrainingArguments(SyVLATrainingArguments):
    """[`SyVLATrainingArguments`] with the paper's pretraining defaults (Table 7)."""

    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate (Table 7)."})
    final_learning_rate: float = field(default=1e-5, metadata={"help": "Learning rate at the end (Table 7)."})
    warmup_steps: float = field(default=5000, metadata={"help": "Warm-up steps, or a share of all steps if below 1."})
    adam_beta2: float = field(default=0.999, metadata={"help": "AdamW beta 2 (Table 7)."})
    per_device_train_batch_size: int = field(
        default=16, metadata={"help": "Batch per process; Table 7's 512 is 16 on each of 32 GPUs."}
    )


def json_mapping(name: str, text: str | None) -> dict[str, Any]:
    """The mapping that an option holds as JSON; empty where it is not given.

    Raises:
        ValueError: It is no JSON, or no mapping.
    """
    try:
        value = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        raise ValueError(f"{name}: expected a JSON object, got {text!r} ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{name}: expected a JSON object, got {text!r}")
    return value


def dataset_spec(entry: str | dict[str, Any], name: str, keys: Sequence[str]) -> dict[str, Any]:
    """One dataset as a mapping with "path" and any of `keys`."""
    if isinstance(entry, str):
        try:
            entry = json.loads(entry) if entry.lstrip().startswith("{") else {"path": entry}
        except json.JSONDecodeError as error:
            raise ValueError(f"{name}: expected a path, a Hub id or a JSON object, got {entry!r} ({error})") from error
    if "path" not in entry:
        raise ValueError(f"{name}: every entry needs a 'path', got {entry}")
    for key in entry:
        if key not in keys:
            close = difflib.get_close_matches(key, keys, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(keys)}"
            raise ValueError(f"{name}: {entry['path']} has the unknown key {key!r}; {hint}")
    return entry
