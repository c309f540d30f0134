"""Closed-loop and benchmark evaluation of SyVLA."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .closed_loop import evaluate_closed_loop
    from .demonstration_recording import record_demonstrations
    from .open_loop.evaluation import evaluate_open_loop, measure_open_loop
    from .vlm_benchmarks.evaluate_vlm import evaluate_vlm

_MODULES = {
    "evaluate_closed_loop": "closed_loop",
    "evaluate_open_loop": "open_loop.evaluation",
    "evaluate_vlm": "vlm_benchmarks.evaluate_vlm",
    "measure_open_loop": "open_loop.evaluation",
    "record_demonstrations": "demonstration_recording",
}

__all__ = [
    "evaluate_closed_loop",
    "evaluate_open_loop",
    "evaluate_vlm",
    "measure_open_loop",
    "record_demonstrations",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
