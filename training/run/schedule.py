"""Schedules of the learning rate that make no sense: one that rises is refused, one that never leaves warm-up is said."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

logger = logging.getLogger(__name__)

WITH_FINAL_RATE = "cosine_with_min_lr"


def require_falling_rate(args: Any) -> None:
    """Check `final_learning_rate`, which acts with the schedule cosine_with_min_lr alone.

    Raises:
        ValueError: If it is above the peak, or set with a schedule that does not read it.
    """
    if str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)) != WITH_FINAL_RATE:
        default = {field.name: field.default for field in dataclasses.fields(args)}["final_learning_rate"]
        if args.final_learning_rate != default:
            raise ValueError(
                f"final_learning_rate: {args.final_learning_rate:g} has no effect with lr_scheduler_type="
                f"{getattr(args.lr_scheduler_type, 'value', args.lr_scheduler_type)}; use {WITH_FINAL_RATE}, or leave it out"
            )
    elif args.final_learning_rate > args.learning_rate:
        raise ValueError(
            f"final_learning_rate: {args.final_learning_rate:g} is above the peak learning_rate {args.learning_rate:g}, so the "
            f"rate would rise to the end; set final_learning_rate as well, such as {args.learning_rate / 10:g}, a tenth as in "
            "Table 7"
        )


def warn_of_endless_warmup(args: Any, num_training_steps: int) -> None:
    """Say, with the numbers, that a run ends within its warm-up."""
    warmup = args.get_warmup_steps(num_training_steps)
    if warmup >= num_training_steps:
        reached = args.learning_rate * num_training_steps / max(warmup, 1)
        logger.warning(
            "warmup_steps: the run has %d steps and ends within its warm-up of %d, at a learning rate of %.3g instead of %.3g; "
            "set warmup_steps, such as 0.03 for 3%% of the steps",
            num_training_steps,
            warmup,
            reached,
            args.learning_rate,
        )
