"""What is held out from training and when it is measured: checks of the arguments before anything is loaded."""

from __future__ import annotations

import json
import math
from typing import Any

EVAL_SPLIT_HELP = (
    "Episodes held out from training and its statistics, to measure the loss on: a share such as 0.1, episode numbers such as "
    "[3, 7], or a split that the dataset's info.json names. An entry's own eval_split wins; null there: none."
)
EVAL_ROWS_HELP = (
    "Rows of each multi-modal dataset held out from training, whose loss (eval_vlm_loss) shows what the VLM forgets; none: 256 "
    "or a tenth, whichever is less, where episodes are held out as well; 0: none."
)
EVAL_SAMPLES_HELP = "Held-out samples to measure of each dataset, spread evenly over it; 0: all."
OPEN_LOOP_HELP = (
    "Steps between comparisons of predicted with recorded actions on held-out episodes (eval_open_loop/<dataset>/...), as "
    "syvla-openloop makes them; 0: off."
)
DO_TRAIN_HELP = "Train; false: only measure the loss of model_path on the held-out data."
DO_EVAL_HELP = "Measure the loss on held-out data, at the end at least; none: where there is such data."

MOST_ROWS, LARGEST_SHARE_OF_ROWS = 256, 0.1


def parse_eval_split(value: Any) -> Any:
    """`eval_split` as the command line or a recipe gives it: a number, a list of numbers, or the name of a split.

    Raises:
        ValueError: If it is of another kind.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            return value  # the name of a split
    if value is None or isinstance(value, str | list) or (type(value) in (int, float) and math.isfinite(value)):
        return value
    raise ValueError(
        f"eval_split: expected a share such as 0.1, episode numbers such as [3, 7], or the name of a split, got {value!r}"
    )


def held_out_rows(rows: int | None, total: int, where: str, episodes_held_out: bool) -> int:
    """How many rows of a multi-modal dataset are held out.

    Args:
        rows: As given; None: not given.
        total: Rows of the dataset.
        where: Names the dataset.
        episodes_held_out: Whether the run holds episodes of robots out.

    Raises:
        ValueError: If none would be left, or the number is negative.
    """
    if rows is None:
        return min(MOST_ROWS, int(LARGEST_SHARE_OF_ROWS * total)) if episodes_held_out else 0
    if type(rows) is not int or rows < 0:
        raise ValueError(f"{where}: eval_rows: expected a number of rows, 0 or more, got {rows!r}")
    if rows >= total:
        raise ValueError(f"{where}: eval_rows={rows} leaves none of its {total} rows to train on; hold fewer out")
    return rows


def settle_evaluation(args: Any) -> None:
    """Makes the arguments of evaluation agree; called before `TrainingArguments.__post_init__`.

    Raises:
        ValueError: If they contradict each other.
    """
    strategy = str(getattr(args.eval_strategy, "value", args.eval_strategy) or "no")
    if args.eval_samples < 0:
        raise ValueError(f"eval_samples: expected 0 (all) or more, got {args.eval_samples}")
    if args.open_loop_steps < 0:
        raise ValueError(f"open_loop_steps: expected 0 (off) or more, got {args.open_loop_steps}")
    if args.eval_steps is not None and strategy == "no":
        args.eval_strategy = strategy = "steps"
    if strategy == "epoch" and args.eval_steps is not None:
        raise ValueError("eval_steps: has no effect with eval_strategy=epoch; leave one of them out")
    if args.do_eval is False and strategy != "no":
        raise ValueError(f"do_eval: false contradicts eval_strategy={strategy}; leave one of them out")
    if args.metric_for_best_model is not None and args.greater_is_better is None:
        args.greater_is_better = False  # all are losses; transformers takes a name for one only if it ends in "loss"
    if not args.do_train:
        if args.do_eval is False:
            raise ValueError("do_train and do_eval are both false: nothing is left to do")
        if args.resume_from_checkpoint not in (None, "none", "auto"):
            raise ValueError(
                "resume_from_checkpoint: nothing is trained with do_train false; name the checkpoint to measure as model_path"
            )
        if args.open_loop_steps:
            raise ValueError(
                "open_loop_steps: nothing is trained with do_train false; run syvla-openloop on the checkpoint"
            )
        if args.load_best_model_at_end:
            raise ValueError("load_best_model_at_end: nothing is trained with do_train false; leave it out")


def require_held_out(args: Any, held_out: bool) -> None:
    """Refuses to measure without data to measure on.

    Raises:
        ValueError: If an argument asks for it and nothing is held out.
    """
    strategy = getattr(args.eval_strategy, "value", args.eval_strategy)
    asked = {
        "do_eval": bool(args.do_eval),
        "do_train false": not args.do_train,
        f"eval_strategy={strategy}": strategy != "no",
        "eval_on_start": args.eval_on_start,
        "load_best_model_at_end": args.load_best_model_at_end,
        "metric_for_best_model": args.metric_for_best_model is not None,
        "eval_samples": args.eval_samples > 0,
        "open_loop_steps": args.open_loop_steps > 0,
    }
    if not held_out and (names := [name for name, value in asked.items() if value]):
        raise ValueError(
            f"{', '.join(names)}: there is no held-out data to measure on; hold some out, for example with --eval_split 0.1 "
            "(a tenth of the episodes)"
        )
