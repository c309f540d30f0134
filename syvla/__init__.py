"""SyVLA: an open vision-language-action model for robots.

Importing the package registers its classes with the Auto classes of `transformers` and its public names.
Neither torch nor transformers is imported before somebody needs it: the classes are registered at the moment at which
`transformers` itself is imported, so a robot's client or a simulator worker starts without both.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .installation import require_installed

require_installed("train", "wrapt")

from wrapt import register_post_import_hook  # noqa: E402  the line above says what to type where it is missing

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .evaluation import evaluate_closed_loop, evaluate_vlm, record_demonstrations
    from .modeling_syvla import (
        SyVLAConfig,
        SyVLAForConditionalGeneration,
        SyVLAModel,
        SyVLAValueConfig,
        SyVLAValueModel,
    )
    from .processing import (
        MixtureBatchSampler,
        MultimodalDataset,
        RobotDataset,
        RobotDatasetWriter,
        SyVLAProcessor,
    )
    from .serving import ChunkExecutor, PolicyClient, PolicyServer
    from .training import SyVLAPPOConfig, SyVLAPPOTrainer, SyVLATrainer, SyVLATrainingArguments

_PUBLIC_NAMES = {
    "ChunkExecutor": "serving",
    "MixtureBatchSampler": "processing",
    "MultimodalDataset": "processing",
    "PolicyClient": "serving",
    "PolicyServer": "serving",
    "RobotDataset": "processing",
    "RobotDatasetWriter": "processing",
    "SyVLAConfig": "modeling_syvla",
    "SyVLAForConditionalGeneration": "modeling_syvla",
    "SyVLAModel": "modeling_syvla",
    "SyVLAPPOConfig": "training",
    "SyVLAPPOTrainer": "training",
    "SyVLAProcessor": "processing",
    "SyVLATrainer": "training",
    "SyVLATrainingArguments": "training",
    "SyVLAValueConfig": "modeling_syvla",
    "SyVLAValueModel": "modeling_syvla",
    "evaluate_closed_loop": "evaluation",
    "evaluate_vlm": "evaluation",
    "record_demonstrations": "evaluation",
}

__all__ = [
    "ChunkExecutor",
    "MixtureBatchSampler",
    "MultimodalDataset",
    "PolicyClient",
    "PolicyServer",
    "RobotDataset",
    "RobotDatasetWriter",
    "SyVLAConfig",
    "SyVLAForConditionalGeneration",
    "SyVLAModel",
    "SyVLAPPOConfig",
    "SyVLAPPOTrainer",
    "SyVLAProcessor",
    "SyVLATrainer",
    "SyVLATrainingArguments",
    "SyVLAValueConfig",
    "SyVLAValueModel",
    "__version__",
    "evaluate_closed_loop",
    "evaluate_vlm",
    "record_demonstrations",
]


if not Path(__file__).with_name("training").is_dir():
    # A checkout whose links were not made (Windows without the right to make them), or an unpacked source distribution.
    __path__.append(str(Path(__file__).resolve().parents[1]))


def _register_auto_classes(transformers: Any) -> None:
    """Registers the model and the processor; called once, when `transformers` has been imported."""
    if find_spec("torch") is None:
        return  # transformers runs without it, for tokenizers alone; so may it go on beside a light client
    for package in (".modeling_syvla", ".processing"):
        try:
            import_module(package, __name__)
        except RuntimeError as error:
            # Another thread is importing the package and waits for transformers, which this one has locked: it goes on
            # after this call and registers the classes by itself.
            if type(error).__name__ != "_DeadlockError":
                raise


register_post_import_hook(_register_auto_classes, "transformers")


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC_NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_PUBLIC_NAMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
