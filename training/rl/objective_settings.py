"""Which objectives there are, and which settings each of them does not read: a setting that would do nothing is refused."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

OBJECTIVES = ("ppo", "nft", "recap", "imitation", "dagger")

IMITATING = ("imitation", "dagger")
"""Those that learn from expert samples alone; rollouts say which."""

FLOW_MATCHING = ("recap", *IMITATING)
"""Those whose loss is that of imitation: they look at no older policy."""

RATIOS = ("ppo",)
"""Those that weight a ratio to an older policy."""

_RATIO = {
    *(
        "average_flow_samples",
        "ratio_temperature",
        "flow_sde_noise_level",
        "cliprange",
        "expert_cliprange",
        "dual_clip",
    ),
    *("trust_region", "clamp_logratio", "clamp_old_cfm", "target_kl"),
}
_VALUE_STEPS = {"vf_coef", "cliprange_value", "num_value_only_steps"}
_EXPERT_ADVANTAGES = {"expert_advantage", "expert_advantages"}
_CREDIT = {
    *("bootstrap_timeouts", "takeover_failed_decisions", "gamma", "lam", "advantage_clip", "min_advantage_spread"),
    *("value_learning_rate", "value_fit_threshold", "value_fit_max_steps", "value_heldout_share"),
}
_LABELS = {"advantage_quantile", "indicator_dropout", "max_replayed_rollouts"}

_NEGATIVES = {"nft_beta"}
_GROUPS = {"rollout_advantages"}

_UNREAD: dict[str, frozenset[str]] = {
    "ppo": frozenset(_LABELS | _NEGATIVES),
    "nft": frozenset(_RATIO | _LABELS),
    "recap": frozenset(
        _RATIO | _VALUE_STEPS | _EXPERT_ADVANTAGES | _NEGATIVES | {"advantage_clip", "max_staleness", *_GROUPS}
    ),
    "imitation": frozenset(_RATIO | _VALUE_STEPS | _EXPERT_ADVANTAGES | _CREDIT | _LABELS | _NEGATIVES | _GROUPS),
    "dagger": frozenset(_RATIO | _VALUE_STEPS | _EXPERT_ADVANTAGES | _CREDIT | _LABELS | _NEGATIVES | _GROUPS),
}

_UNREAD_BY_GROUPS = frozenset(
    (_CREDIT | _VALUE_STEPS | {"expert_advantages"}) - {"advantage_clip", "min_advantage_spread"}
)
"""What `rollout_advantages="group"` does not read: it has no value model."""

_OFF = {
    **dict.fromkeys(("dual_clip", "clamp_old_cfm", "target_kl", "vf_coef", "num_value_only_steps"), 0),
    **dict.fromkeys(("min_advantage_spread", "value_fit_max_steps"), 0),
    "bootstrap_timeouts": False,
}
"""Values that switch something off, and so are true of an objective that does not have it."""


def unread_by(objective: str, rollout_advantages: str = "gae") -> frozenset[str]:
    """Settings that have no effect under an objective and a kind of advantages."""
    return _UNREAD[objective] | (_UNREAD_BY_GROUPS if rollout_advantages == "group" else frozenset())


def learns_values(args: Any) -> bool:
    """Whether a run with this [`SyVLAPPOConfig`] needs a value model."""
    return bool(args.objective not in IMITATING and args.rollout_advantages != "group")


def unread_settings(args: Any) -> list[str]:
    """Settings of a [`SyVLAPPOConfig`] that have no effect in it and that are neither at their default nor off."""
    defaults = {field.name: field.default for field in fields(args)}
    found = []
    for name in sorted(unread_by(args.objective, args.rollout_advantages)):
        value = getattr(args, name)
        if value != defaults[name] and not (name in _OFF and value == _OFF[name]):
            found.append(name)
    return found


def require_read_settings(args: Any) -> None:
    """Raises ValueError for settings that have no effect under the objective."""
    if names := unread_settings(args):
        defaults = {field.name: field.default for field in fields(args)}
        left = ", ".join(f"{name}={defaults[name]}" for name in names)
        group = args.rollout_advantages == "group" and names[0] not in _UNREAD[args.objective]
        why = "rollout_advantages=group" if group else f"objective={args.objective}"
        raise ValueError(
            f"{names[0]}: has no effect, since {why} does not read {', '.join(names)}; leave it out, or at its default ({left})"
        )
