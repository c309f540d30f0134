"""One output folder holds one run: what is refused at its start, and what a resumed run may change.

Every checkpoint says in `run_settings.json` which data and settings it was trained with.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from syvla.durable_files import write_json

logger = logging.getLogger(__name__)

SETTINGS_FILE = "run_settings.json"

OVERWRITE_HELP = (
    "Start anew in an output_dir that holds another run: its checkpoints are deleted once the new run has passed all checks. "
    "With a checkpoint to resume from, only later ones are deleted."
)
"""Help of `overwrite_output_dir` in every command that trains."""

FIXED = ("seed", "data_seed", "per_device_train_batch_size", "gradient_accumulation_steps", "world_size")
"""Arguments that decide which samples a step sees: a resumed run counts its way through the data by them."""

FREE = (
    "max_steps",
    "num_train_epochs",
    "learning_rate",
    "final_learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "optim",
    "ema_decay",
    "bf16",
    "fp16",
)
"""Arguments that a resumed run may change, which is said in a warning."""

_WEIGHTS = ("model*.safetensors", "adapter_model*.safetensors")


def used_folder_problem(output_dir: str | Path, checkpoints: Sequence[Path], resumed: Path | None) -> str | None:
    """Why a run would mix with another one in its output folder; None if it would not.

    Args:
        output_dir: Folder of the run.
        checkpoints: Checkpoints in it, earliest first.
        resumed: The checkpoint that is continued; None: the run starts anew.
    """
    output = Path(output_dir)
    fix = "name another output_dir, or delete them with overwrite_output_dir"
    if resumed is not None and resumed.resolve().parent == output.resolve():
        later = [path.name for path in checkpoints if step_of(path) > step_of(resumed)]
        return f"{output} holds checkpoints later than {resumed.name}: {', '.join(later)}; {fix}" if later else None
    if checkpoints:
        names = ", ".join(path.name for path in checkpoints[-5:])
        return (
            f"{output} holds checkpoints of another run ({names}), which would be mixed with those of this one; continue that "
            f"run with resume_from_checkpoint=auto, {fix}"
        )
    if resumed is None and (found := [path for pattern in _WEIGHTS for path in output.glob(pattern)]):
        return (
            f"{output} holds the weights of a finished run ({found[0].name}), which would be replaced; name another "
            "output_dir, or replace them with overwrite_output_dir"
        )
    return None


def step_of(checkpoint: Path) -> int:
    """Step of a folder `checkpoint-N`; -1 for one of another name."""
    number = checkpoint.name.removeprefix("checkpoint-")
    return int(number) if number.isdigit() else -1


def settings_of(args: Any, data: Mapping[str, Any], fixed: Sequence[str] = FIXED) -> dict[str, dict[str, Any]]:
    """What `run_settings.json` holds.

    Args:
        args: Training arguments.
        data: Facts about the data and the trained weights, JSON values by name; none of them may change.
        fixed: Arguments that may not change.

    Returns:
        {"fixed": ..., "free": ...}.
    """
    free = [name for name in FREE if name not in fixed]
    return {
        "fixed": {**data, **_values(args, fixed)},
        "free": _values(args, free),
    }


def save_settings(folder: str | Path, settings: Mapping[str, Any]) -> None:
    """Write the settings into a checkpoint."""
    write_json(Path(folder) / SETTINGS_FILE, settings)


def require_same_settings(checkpoint: Path, settings: Mapping[str, Mapping[str, Any]]) -> None:
    """Compare a checkpoint's run with the one that is to continue it.

    Other data, or arguments that decide which samples a step sees, are refused. Other arguments may change: a warning says
    which. A checkpoint without the file, written by an earlier version, is taken as it is.

    Raises:
        ValueError: Naming every difference that is not allowed, with both values.
    """
    path = checkpoint / SETTINGS_FILE
    if not path.is_file():
        logger.warning("%s has no %s, so it is not known whether this run fits it", checkpoint, SETTINGS_FILE)
        return
    saved = json.loads(path.read_text(encoding="utf-8"))
    now = json.loads(json.dumps(settings))
    differences = {kind: _differences(saved.get(kind, {}), now[kind]) for kind in ("fixed", "free")}
    if differences["fixed"]:
        raise ValueError(
            f"resume_from_checkpoint: {checkpoint} belongs to a run with other data or settings: "
            f"{'; '.join(differences['fixed'])}. Set them back, or start a new run from its weights: model_path={checkpoint} "
            "with another output_dir"
        )
    if differences["free"]:
        logger.warning("continuing %s with other settings: %s", checkpoint, "; ".join(differences["free"]))


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return [
        f"{name} was {old.get(name)!r}, is {new.get(name)!r}"
        for name in dict.fromkeys((*old, *new))
        if old.get(name) != new.get(name)
    ]


def _values(args: Any, names: Sequence[str]) -> dict[str, Any]:
    values = {name: getattr(args, name) for name in names if hasattr(args, name)}
    return {name: getattr(value, "value", value) for name, value in values.items()}
