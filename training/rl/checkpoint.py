"""Policy and value model in one checkpoint: the policy as any other checkpoint of it, the value model in a folder inside."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from syvla.durable_files import write_json
from syvla.training.hub.model_card import RECIPE_FIELDS
from syvla.training.hub.value_card import write_value_card
from syvla.training.run.adapters import base_model, describe_adapter, is_adapted, save_config

from .config import SyVLAPPOConfig
from .policy_and_value import PolicyAndValue
from .run_state import RLState
from .value_calibration import BINS
from .value_fit import FIT_FILE
from .weight_snapshot import WeightSnapshot

VALUE_FOLDER = "value_model"
ADAPTER_FOLDER = "adapter_in_training"

_CARD_SETTINGS = (
    "objective",
    "expert_mode",
    "expert_advantages",
    "expert_ratio",
    "ratio_method",
    "cliprange",
    "use_thoughts",
)
_CARD_METRICS = (
    *("objective/success_rate", "policy/cfm_heldout", "val/explained_variance", "val/explained_heldout"),
    *("val/calibration_error_heldout", "val/value_only_steps", "objective/advantage_success_mean"),
    *("objective/advantage_failure_mean",),
    *(f"objective/advantage_share[{low:g},{high:g})" for low, high in BINS),
)


@contextmanager
def prompts_as_trained(policy: Any, processor: Any, conditioned: bool) -> Iterator[None]:
    """Within it, what is saved says whether its prompts state advantages; training itself may be ahead of the weights.

    Args:
        policy: Of which the config is saved.
        processor: Saved with it.
        conditioned: Whether these weights have learned the indicator.
    """
    parts = (base_model(policy).config, processor)
    before = [part.advantage_conditioned for part in parts]
    for part in parts:
        part.advantage_conditioned = conditioned
    try:
        yield
    finally:
        for part, was in zip(parts, before, strict=True):
            part.advantage_conditioned = was


def save_policy_and_value(
    folder: Path, module: PolicyAndValue, processor: Any, value_fit: dict[str, Any] | None
) -> None:
    """Write policy (or its adapter), processor and value model with what it was fitted to."""
    module.policy.save_pretrained(folder)
    if is_adapted(module.policy):
        save_config(module.policy, folder)
    processor.save_pretrained(folder)
    if module.value_model is None:
        return
    value = folder / VALUE_FOLDER
    module.value_model.save_pretrained(value)
    if value_fit is not None:
        write_json(value / FIT_FILE, value_fit, allow_nan=True)
    write_value_card(value, module.value_model.config, training={"trained by": "syvla-ppo, with its policy"})


def load_policy_and_value(folder: str | Path, module: PolicyAndValue) -> None:
    """Give both models the weights of a checkpoint.

    Raises:
        ValueError: If it has no value model where the run has one, or weights are missing.
    """
    folder = Path(folder)
    if module.value_model is not None and not (folder / VALUE_FOLDER / "config.json").is_file():
        raise ValueError(
            f"{folder}: holds no {VALUE_FOLDER}/; resume_from_checkpoint needs a checkpoint of syvla-ppo, of a run with a "
            "value model as this one"
        )
    if is_adapted(module.policy):
        from peft import set_peft_model_state_dict
        from safetensors.torch import load_file

        set_peft_model_state_dict(module.policy, load_file(folder / "adapter_model.safetensors"))
    else:
        _load(module.policy, folder)
    if module.value_model is not None:
        _load(module.value_model, folder / VALUE_FOLDER)


def merged_policy(policy: Any) -> Any:
    """The [`SyVLAModel`] that acts: the policy itself, or a copy with its adapter merged in."""
    return copy.deepcopy(policy).merge_and_unload() if is_adapted(policy) else base_model(policy)


def save_to_return(policy: Any, folder: Path) -> None:
    """Puts the weights of an adapter, which is merged into a published policy, beside it, so that training can return to it."""
    if is_adapted(policy):
        (folder / ADAPTER_FOLDER).mkdir()
        WeightSnapshot.take(policy).save(folder / ADAPTER_FOLDER)


def return_to_policy(policy: Any, folder: Path) -> None:
    """Gives the policy in training the weights of a published one. See `save_to_return`."""
    if is_adapted(policy):
        WeightSnapshot.load(folder / ADAPTER_FOLDER).restore(policy)
    else:
        _load(policy, folder)


def decoupling_of(args: SyVLAPPOConfig, policy: Any) -> bool:
    """Whether Intention Decoupling masks query states in the updates: the run's own setting, or else the checkpoint's."""
    own = args.intention_decoupling
    return bool(base_model(policy).config.intention_decoupling) if own is None else own


def ppo_card_fields(args: SyVLAPPOConfig, state: RLState, policy: Any, step: int) -> dict[str, Any]:
    """What the model card says about the run, see `write_model_card`."""
    decoupling = decoupling_of(args, policy)
    last = state.history[-1] if state.history else {}
    return {
        "step": step,
        "world_size": args.world_size,
        "arguments": {key: value for key, value in args.to_dict().items() if key in RECIPE_FIELDS},
        "final": {name: f"{last[name]:.4g}" for name in _CARD_METRICS if last.get(name) is not None},
        "adapter": describe_adapter(policy),
        "model_id": args.hub_model_id,
        "model_name": (args.hub_model_id or Path(args.output_dir).resolve().name).split("/")[-1],
        "reinforcement_learning": {
            "updates": state.updates,
            "rollouts": len(state.consumed),
            "rollouts' success by update": [_rounded(entry["objective/success_rate"]) for entry in state.history],
            "updates that the guard refused": sum(entry["refused"] is not None for entry in state.history),
            **{name.replace("_", " "): getattr(args, name) for name in _CARD_SETTINGS},
            "intention decoupling": decoupling,
        },
    }


def _rounded(rate: float | None) -> float | None:
    return None if rate is None else round(rate, 3)


def _load(model: Any, folder: Path) -> None:
    loaded = type(model).from_pretrained(folder, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
