"""The README.md of a checkpoint, filled from its config, processor and training run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

TEMPLATE = Path(__file__).parent.parent / "model_cards" / "syvla_policy.md"
TAGS = ["robotics", "vision-language-action", "vla", "syvla", "flow-matching", "custom_code"]
# Width and depth of the language model of Qwen2.5-VL-3B, whose weights carry a research licence.
_QWEN_3B = {"hidden_size": 2048, "num_hidden_layers": 36}


def write_model_card(folder: Path, config: Any, processor: Any, fields: dict[str, Any]) -> Path:
    """Write `README.md` into a checkpoint folder.

    Args:
        folder: Checkpoint folder.
        config: [`SyVLAConfig`].
        processor: [`SyVLAProcessor`].
        fields: Values of the run: `step`, `final`, `arguments`, `robot_samples`, ... and optionally `datasets` (Hub ids),
            `datasets_used` (descriptions), `base_model`, `model_name`, `eval_results`.

    Returns:
        Path of the card.
    """
    text = config.get_text_config()
    qwen = all(getattr(text, key, None) == value for key, value in _QWEN_3B.items())
    name = fields.get("model_name") or Path(folder).resolve().name
    data = ModelCardData(
        license="other" if qwen else "apache-2.0",
        license_name="qwen-research" if qwen else None,
        license_link="https://huggingface.co/Qwen/Qwen2.5-VL-3B-Instruct/blob/main/LICENSE" if qwen else None,
        library_name="transformers",
        pipeline_tag="robotics",
        tags=TAGS,
        base_model=fields.get("base_model"),
        datasets=fields.get("datasets") or None,
        model_name=name if fields.get("eval_results") else None,
        eval_results=fields.get("eval_results"),
    )
    embodiments = processor.embodiments
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        title=name,
        model_id=fields.get("model_id") or name,
        qwen=qwen,
        views=list(config.views),
        embodiments=embodiments,
        first_embodiment=next(iter(embodiments), "my_robot"),
        instruction=fields.get("instruction", "lift the red cube"),
        num_query_tokens=config.num_query_tokens,
        chunk_size=config.chunk_size,
        intention_decoupling=config.intention_decoupling,
        decoupling_quantile=config.decoupling_quantile,
        decoupling_scope=config.decoupling_scope,
        **{"final": {}, "datasets_used": [], **{k: v for k, v in fields.items() if k not in _CARD_DATA}},
    )
    path = Path(folder) / "README.md"
    card.save(path)
    return path


_CARD_DATA = frozenset(("model_name", "model_id", "eval_results", "base_model", "datasets", "instruction"))
