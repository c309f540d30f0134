"""Whether a value model belongs to a policy: same robots, views and normalization. Written beside it, checked before use."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .advantages import default_discount

FIT_FILE = "value_fit.json"
"""What the policy's processor looked like when the value model was trained, and how it was trained."""


def describe_processor(processor: Any, embodiments: list[str] | None = None) -> dict[str, Any]:
    """What of a processor a value model depends on, as JSON.

    Args:
        processor: [`SyVLAProcessor`].
        embodiments: Robots to describe; None: all.
    """
    names = sorted(processor.embodiments) if embodiments is None else embodiments
    return {
        "views": list(processor.views),
        "images": _image_settings(processor.expert_image_processor),
        "embodiments": {name: _describe(processor.embodiments[name]) for name in names},
    }


def write_fit(folder: str | Path, processor: Any, training: dict[str, Any], embodiments: list[str]) -> None:
    """Write `value_fit.json` into a value model's folder; `training` holds discount, decision length and results."""
    text = json.dumps({**describe_processor(processor, embodiments), "training": training}, indent=1)
    (Path(folder) / FIT_FILE).write_text(text + "\n", encoding="utf-8")


def read_fit(folder: str | Path) -> dict[str, Any]:
    """Contents of `value_fit.json`.

    Raises:
        ValueError: If the checkpoint has no value fit, or the file cannot be read.
    """
    path = Path(folder) / FIT_FILE
    try:
        fit: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return fit
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path}: cannot be read ({error}); a value model for reinforcement learning comes from syvla-value-warmup"
        ) from error


def discount_of(fit: Mapping[str, Any], chunk_size: int) -> float | None:
    """Discount per control step with which a value model was warmed up, None if it does not say.

    Models from before the discount counted control steps had one per decision of `decision_steps` control steps, which is
    converted.
    """
    training = fit.get("training", {})
    if training.get("discount") is not None:
        return float(training["discount"])
    if training.get("gamma") is None:
        return None
    return float(float(training["gamma"]) ** (1.0 / (training.get("decision_steps") or chunk_size)))


def run_discount(asked: float | None, fit: Mapping[str, Any] | None, chunk_size: int) -> float:
    """Discount per control step of a run: the value model's, whose values it must go with.

    Args:
        asked: The run's `gamma`; None: the value model's.
        fit: Contents of its `value_fit.json`, None without one.
        chunk_size: Of the policy.

    Raises:
        ValueError: The two differ.
    """
    known = None if fit is None else discount_of(fit, chunk_size)
    if known is None:
        return default_discount(chunk_size) if asked is None else asked
    if asked is not None and not math.isclose(math.log(asked), math.log(known), rel_tol=1e-3):
        raise ValueError(
            f"gamma: the value model was warmed up with a discount of {known:.8g} per control step, this run asks for "
            f"{asked:.8g}; leave gamma out, or warm up a value model with it (syvla-value-warmup --gamma {asked:.8g})"
        )
    return known


def value_model_problems(folder: str | Path, value_config: Any, processor: Any, embodiments: list[str]) -> list[str]:
    """Why a value model cannot serve a policy's robots; empty if it can.

    Args:
        folder: Folder of the value model.
        value_config: Its [`SyVLAValueConfig`].
        processor: The policy's [`SyVLAProcessor`].
        embodiments: Robots that the run uses.
    """
    fix = "warm up a value model for this policy (syvla-value-warmup --policy_path ...)"
    fit = read_fit(folder)
    problems = []
    if list(value_config.views) != list(processor.views):
        problems.append(f"views: the value model has {value_config.views}, the policy {processor.views}; {fix}")
    if fit.get("images") != _image_settings(processor.expert_image_processor):
        problems.append(f"images: the value model was trained on images prepared in another way; {fix}")
    for name in embodiments:
        known, entry = fit.get("embodiments", {}).get(name), processor.embodiments[name]
        if known is None or name not in value_config.embodiments:
            problems.append(f"embodiment {name!r}: the value model was never trained on it; {fix}")
            continue
        mine = _describe(entry)
        if value_config.embodiments[name]["id"] != entry["id"] or known["state_dim"] != mine["state_dim"]:
            problems.append(f"embodiment {name!r}: id or state_dim differ from the policy's; {fix}")
        elif known["state_statistics"] != mine["state_statistics"]:
            problems.append(f"embodiment {name!r}: states were normalized with other statistics; {fix}")
    return problems


def _describe(entry: dict[str, Any]) -> dict[str, Any]:
    statistics = {
        "normalization": entry["normalization"]["state"],
        **{key: [round(float(v), 6) for v in np.ravel(value)] for key, value in entry["statistics"]["state"].items()},
    }
    digest = hashlib.sha256(json.dumps(statistics, sort_keys=True).encode()).hexdigest()[:16]
    return {"id": entry["id"], "state_dim": entry["state_dim"], "state_statistics": digest}


def _image_settings(image_processor: Any) -> dict[str, Any]:
    """Settings that change pixels, without those that name classes or versions."""
    kept = ("size", "crop_size", "image_mean", "image_std", "rescale_factor", "do_resize", "do_normalize", "resample")
    settings = image_processor.to_dict()
    image_settings: dict[str, Any] = json.loads(json.dumps({key: settings.get(key) for key in kept}, default=str))
    return image_settings
