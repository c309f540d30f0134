"""The README.md of a value model's checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from safetensors import safe_open

TEMPLATE = Path(__file__).parents[2] / "model_cards" / "syvla_value.md"
TAGS = ["robotics", "reinforcement-learning", "value-model", "syvla", "custom_code"]


def write_value_card(
    folder: str | Path, config: Any, *, model_id: str | None = None, training: Mapping[str, Any] | None = None
) -> Path:
    """Write `README.md` into the folder of a saved [`SyVLAValueModel`].

    Args:
        folder: Checkpoint folder.
        config: [`SyVLAValueConfig`].
        model_id: Hub id; the folder's name when not given.
        training: What the run tells about itself, listed as it is.

    Returns:
        Path of the card.
    """
    folder = Path(folder)
    model_id = model_id or folder.resolve().name
    data = ModelCardData(license="apache-2.0", library_name="transformers", pipeline_tag="robotics", tags=TAGS)
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        title=model_id.split("/")[-1],
        model_id=model_id,
        config=config,
        parameters=_count_parameters(folder),
        training=dict(training or {}),
    )
    path = folder / "README.md"
    card.save(path)
    return path


def _count_parameters(folder: Path) -> int:
    count = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            count += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return count
