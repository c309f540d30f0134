"""Training: scripts and what they share. Names are imported when they are used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from syvla.installation import require_installed

require_installed("train", "torch", "transformers")

if TYPE_CHECKING:
    from .imitation.trainer import SyVLATrainer
    from .rl.config import SyVLAPPOConfig
    from .rl.trainer import SyVLAPPOTrainer
    from .run.arguments import SyVLATrainingArguments

_MODULES = {
    "SyVLAPPOConfig": "rl.config",
    "SyVLAPPOTrainer": "rl.trainer",
    "SyVLATrainer": "imitation.trainer",
    "SyVLATrainingArguments": "run.arguments",
}

__all__ = ["SyVLAPPOConfig", "SyVLAPPOTrainer", "SyVLATrainer", "SyVLATrainingArguments"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
