"""Data to tensors and back: used unchanged by training, evaluation and serving."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .processing_syvla import SyVLAProcessor
    from .robot_dataset import RobotDataset
    from .robot_dataset_writer import RobotDatasetWriter

_MODULES = {
    "SyVLAProcessor": "processing_syvla",
    "RobotDataset": "robot_dataset",
    "RobotDatasetWriter": "robot_dataset_writer",
}

__all__ = ["RobotDataset", "RobotDatasetWriter", "SyVLAProcessor"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
