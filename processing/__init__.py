"""Data to tensors and back: used unchanged by training, evaluation and serving.

Importing the package registers SyVLAProcessor with `AutoProcessor`; the dataset classes are imported when they are used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from transformers import AutoProcessor

from syvla.modeling_syvla.configuration_syvla import SyVLAConfig

from .processing_syvla import SyVLAProcessor

if TYPE_CHECKING:
    from .mixture import MixtureBatchSampler, MixtureDataset
    from .multimodal.dataset import MultimodalDataset
    from .recording.robot_dataset_writer import RobotDatasetWriter
    from .robot_data.robot_dataset import RobotDataset
    from .tiny_processor import build_tiny_processor

_MODULES = {
    "MixtureBatchSampler": "mixture",
    "MixtureDataset": "mixture",
    "MultimodalDataset": "multimodal.dataset",
    "RobotDataset": "robot_data.robot_dataset",
    "RobotDatasetWriter": "recording.robot_dataset_writer",
    "build_tiny_processor": "tiny_processor",
}

__all__ = [
    "MixtureBatchSampler",
    "MixtureDataset",
    "MultimodalDataset",
    "RobotDataset",
    "RobotDatasetWriter",
    "SyVLAProcessor",
    "build_tiny_processor",
]

AutoProcessor.register(SyVLAConfig, SyVLAProcessor, exist_ok=True)
SyVLAProcessor.register_for_auto_class("AutoProcessor")


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
