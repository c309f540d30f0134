"""Which fields of `TrainingArguments` act in our trainers. One that would change nothing is refused by name.

A trainer of ours replaces parts of `transformers.Trainer`: the order of the samples, the loss, the evaluation. The fields of
`TrainingArguments` that steer those parts must keep their defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Refused:
    """A field that a trainer does not read.

    Attributes:
        accepted: Values that ask for nothing.
        reason: Why, and what to use instead.
    """

    accepted: tuple[Any, ...]
    reason: str


_MIXTURE = (
    "MixtureBatchSampler draws every batch with its share of multi-modal samples; use robot_weights, multimodal_weights"
)
_LOSSES = "evaluation measures losses alone and gathers no predictions"
_LOSS = "the losses are divided by the robot samples and answer tokens of the whole step, on all processes"
_RAW = "samples are dicts of raw data, of which the collator makes the columns"
_UPDATES = "the samples of an update are drawn by the trainer itself, from its rollouts and experts"
_NO_EVALUATION = "an update is judged by its guard (guard_heldout_cfm, guard_samples), not by an evaluation set"
_SEQUENCES = "image tokens, queries and positions of a sequence must stay on one process; use DDP, ZeRO or FSDP"

_BOTH = {
    "do_predict": Refused((False,), "the command trains; syvla-eval and syvla-eval-vlm measure"),
    "label_smoothing_factor": Refused(
        (0, 0.0), "the cross-entropy of answers has no smoothing, flow matching no classes"
    ),
    "label_names": Refused((None, ["returns"]), "the forward knows its targets by name"),
    "liger_kernel_config": Refused((None,), "Liger has no kernels for this model"),
    "parallelism_config": Refused((None,), _SEQUENCES),
    "remove_unused_columns": Refused((False,), _RAW),
    "use_cache": Refused((False,), "a training step keeps no key/value cache"),
    "use_liger_kernel": Refused((False,), "Liger has no kernels for this model"),
    "average_tokens_across_devices": Refused((True,), _LOSS),
    "eval_do_concat_batches": Refused((True,), _LOSSES),
    "include_for_metrics": Refused(([],), _LOSSES),
    "eval_use_gather_object": Refused((False,), _LOSSES),
    "eval_accumulation_steps": Refused((None,), _LOSSES),
    "batch_eval_metrics": Refused((False,), _LOSSES),
}

REFUSED_BY_TRAINER: Mapping[str, Refused] = {
    **_BOTH,
    "dataloader_drop_last": Refused(
        (False,), "batches of training are always full, and evaluation covers every held-out sample"
    ),
    "train_sampling_strategy": Refused(("random",), _MIXTURE),
    "length_column_name": Refused(("length",), _MIXTURE),
}
"""Fields that [`SyVLATrainer`] refuses."""

REFUSED_BY_PPO_TRAINER: Mapping[str, Refused] = {
    **_BOTH,
    "auto_find_batch_size": Refused(
        (False,), "an update is planned for its batch size; lower per_device_train_batch_size"
    ),
    "bf16_full_eval": Refused((False,), _NO_EVALUATION),
    "data_seed": Refused((None,), "seed decides all that is drawn"),
    "dataloader_drop_last": Refused((False,), _UPDATES),
    "dataloader_in_order": Refused((True,), _UPDATES),
    "dataloader_multiprocessing_context": Refused((None,), _UPDATES),
    "dataloader_num_workers": Refused((0,), _UPDATES),
    "dataloader_persistent_workers": Refused((False,), _UPDATES),
    "dataloader_prefetch_factor": Refused((None,), _UPDATES),
    "do_eval": Refused((False,), _NO_EVALUATION),
    "eval_delay": Refused((0, None), _NO_EVALUATION),
    "eval_on_start": Refused((False,), _NO_EVALUATION),
    "eval_steps": Refused((None,), _NO_EVALUATION),
    "eval_strategy": Refused(("no",), _NO_EVALUATION),
    "fp16_full_eval": Refused((False,), _NO_EVALUATION),
    "greater_is_better": Refused((None,), _NO_EVALUATION),
    "ignore_data_skip": Refused((True,), "a resumed update knows its place by itself"),
    "include_num_input_tokens_seen": Refused(("no", False), "tokens of rollouts and experts are not counted"),
    "length_column_name": Refused(("length",), _UPDATES),
    "load_best_model_at_end": Refused((False,), _NO_EVALUATION),
    "metric_for_best_model": Refused((None,), _NO_EVALUATION),
    "neftune_noise_alpha": Refused((None,), "likelihood ratios compare the same forward; noise would change them"),
    "num_train_epochs": Refused((3, 3.0), "max_rl_updates decides how long a run is, num_ppo_epochs an update"),
    "optim_target_modules": Refused((None,), "policy and value model are two groups of all their trained weights"),
    "per_device_eval_batch_size": Refused((8,), "local_rollout_forward_batch_size sizes passes without gradients"),
    "prediction_loss_only": Refused((False,), _NO_EVALUATION),
    "train_sampling_strategy": Refused(("random",), _UPDATES),
}
"""Fields that [`SyVLAPPOTrainer`] refuses."""

STATED = frozenset(("do_train", "do_eval", "prediction_loss_only", "local_rank"))
"""Fields that say what is so anyway: `Trainer` itself never reads them, or sets them."""

_UNREAD_BY_LOSS_EVALUATION = ("compute_metrics", "preprocess_logits_for_metrics")


def require_read_fields(args: Any, refused: Mapping[str, Refused], trainer: str) -> None:
    """Refuse settings that would change nothing.

    Raises:
        ValueError: Naming all such fields, their values and the reasons.
    """
    problems = []
    for name, field in refused.items():
        if not hasattr(args, name):  # of another version of transformers
            continue
        value = getattr(args, name)
        plain = getattr(value, "value", value)  # choices are enumerations
        if not any(plain == accepted for accepted in field.accepted):
            problems.append(f"{name}={plain!r}: expected {field.accepted[0]!r}; {field.reason}")
    config = getattr(args, "accelerator_config", None)
    for name in ("split_batches", "dispatch_batches"):
        if getattr(config, name, None):
            problems.append(f"accelerator_config.{name}: expected false; every process draws its own batches")
    if problems:
        raise ValueError(f"{trainer} does not read these settings:\n- " + "\n- ".join(problems))


def require_read_options(options: Mapping[str, Any], trainer: str, *, unread: Mapping[str, str] | None = None) -> None:
    """The same for what a trainer's constructor is given.

    Raises:
        ValueError: Naming the first option that would change nothing.
    """
    reasons = {
        **dict.fromkeys(_UNREAD_BY_LOSS_EVALUATION, _LOSSES),
        "compute_loss_func": "the model's forward computes the losses",
        **(unread or {}),
    }
    for name, reason in reasons.items():
        if options.get(name) is not None:
            raise ValueError(f"{trainer} does not read {name}: {reason}")


NO_EVALUATION_SET = {"eval_dataset": _NO_EVALUATION, "train_dataset": _UPDATES}
"""Options of `Trainer` that [`SyVLAPPOTrainer`] has no use for besides those of every trainer."""
